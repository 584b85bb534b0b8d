"""`enclavedbg eif …`: work with enclave image files."""

from __future__ import annotations

from enclavedbg.verbs.table import Family, Verb

FAMILY = Family(
    "eif",
    "work with enclave image files",
    (
        Verb("describe", "sections, measurements, signature, metadata", "enclavedbg.verbs.eif.describe"),
        Verb("measure", "PCR0, PCR1, PCR2 and PCR8, as the enclave will have them", "enclavedbg.verbs.eif.measure"),
        Verb("ls", "sections, and the files in the ramdisks", "enclavedbg.verbs.eif.ls"),
        Verb("cat", "print a section or a file of a ramdisk", "enclavedbg.verbs.eif.cat"),
        Verb("extract", "sections as files and ramdisks as folders", "enclavedbg.verbs.eif.extract"),
        Verb("lint", "what will go wrong when an image starts", "enclavedbg.verbs.eif.lint"),
        Verb("diff", "what differs, and which PCRs that moves", "enclavedbg.verbs.eif.diff"),
        Verb("build", "make an image of parts, a folder or a container image", "enclavedbg.verbs.eif.build"),
        Verb("sign", "add a signature, or replace it", "enclavedbg.verbs.eif.sign"),
    ),
    (
        "enclavedbg eif describe app.eif       sections, measurements, signature",
        "enclavedbg eif lint app.eif           what will go wrong when it starts",
        "enclavedbg eif diff old.eif new.eif   why are the PCRs others?",
    ),
)
