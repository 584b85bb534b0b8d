"""`enclavedbg attest …`: work with attestation documents."""

from __future__ import annotations

from enclavedbg.verbs.table import Family, Verb

FAMILY = Family(
    "attest",
    "work with attestation documents",
    (
        Verb("explain", "what a document says, and every check of a verifier", "enclavedbg.verbs.attest.explain"),
        Verb("policy", "would a KMS key policy allow this enclave?", "enclavedbg.verbs.attest.policy"),
        Verb("forge", "documents that a verifier must refuse, to test yours", "enclavedbg.verbs.attest.forge"),
        Verb("root", "the development root certificate, to give to a verifier", "enclavedbg.verbs.attest.root"),
    ),
    (
        "enclavedbg attest explain document.bin           is it valid, and what does it say?",
        "enclavedbg attest explain --expect-eif app.eif d.bin     ... of this image?",
        "enclavedbg attest policy policy.json document.bin",
        "enclavedbg attest root > root.pem",
    ),
)
