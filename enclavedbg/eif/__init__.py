"""The Enclave Image Format: read, check, measure, write."""

from __future__ import annotations

from enclavedbg.eif.format import EifHeader, EifSection, HeaderFlags, SectionType
from enclavedbg.eif.measure import Measurements, certificate_pcr, measure
from enclavedbg.eif.metadata import build_metadata
from enclavedbg.eif.reader import EifImage, file_size, read_eif
from enclavedbg.eif.writer import write_eif

__all__ = [
    "EifHeader",
    "EifImage",
    "EifSection",
    "HeaderFlags",
    "Measurements",
    "SectionType",
    "build_metadata",
    "certificate_pcr",
    "file_size",
    "measure",
    "read_eif",
    "write_eif",
]
