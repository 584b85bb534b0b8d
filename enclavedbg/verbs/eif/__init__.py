"""`enclavedbg eif …`: work with enclave image files."""

from __future__ import annotations

from enclavedbg.verbs.table import Family

FAMILY = Family(
    "eif",
    "work with enclave image files",
    (
        # Each line comes with its module.
    ),
    (
        "enclavedbg eif describe app.eif       sections, measurements, signature",
        "enclavedbg eif lint app.eif           what will go wrong when it starts",
        "enclavedbg eif diff old.eif new.eif   why are the PCRs others?",
    ),
)
