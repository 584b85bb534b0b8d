"""The Enclave Image Format: read, check, measure, write."""

from __future__ import annotations

from enclavedbg.eif.describe import Description, describe
from enclavedbg.eif.format import EifHeader, EifSection, HeaderFlags, SectionType
from enclavedbg.eif.measure import Measured, Measurements, certificate_pcr, measure, measure_file
from enclavedbg.eif.metadata import build_metadata
from enclavedbg.eif.reader import EifImage, file_size, read_eif
from enclavedbg.eif.writer import write_eif

__all__ = [
    "Description",
    "EifHeader",
    "EifImage",
    "EifSection",
    "HeaderFlags",
    "Measured",
    "Measurements",
    "SectionType",
    "build_metadata",
    "certificate_pcr",
    "describe",
    "file_size",
    "measure",
    "measure_file",
    "read_eif",
    "write_eif",
]
