"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code; hanging is what the suite's limits are for.
settings.register_profile("enclavedbg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("enclavedbg")
