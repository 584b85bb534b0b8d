"""What all tests share: how Hypothesis looks for examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code; hanging is what the suite's limits are for.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time, so that a failure is about the change; `--hypothesis-profile=search` looks for new ones.
settings.register_profile("repeat", settings.get_profile("search"), derandomize=True)
settings.load_profile("repeat")
