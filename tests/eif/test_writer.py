"""The EIF writer and nitro-cli's metadata."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from enclavedbg.eif import build_metadata, read_eif, write_eif
from enclavedbg.errors import EifError


def test_reference_vector_byte_for_byte() -> None:
    file = write_eif(
        kernel=b"KERNEL",
        cmdline=b"console=ttyS0",
        ramdisks=[b"RAMDISK0", memoryview(b"RAMDISK1")],
        metadata=build_metadata(
            name="t",
            version="1",
            build_time=datetime(2024, 1, 1, tzinfo=UTC),
            build_tool="x",
            build_tool_version="0",
            kernel_version="6.6.79",
        ),
    )
    assert hashlib.sha256(file).hexdigest() == "49e4d9bf50aa4a8618d332738c7e16c34bd375d2763d451e5621ed587b9c1ecc"


def test_metadata_is_sorted_inside_and_in_utc() -> None:
    metadata = build_metadata(
        name="n",
        version="v",
        build_time=datetime(2024, 7, 9, 19, 16, 38, 424202, tzinfo=timezone(timedelta(hours=2))),
        docker_info={"b": [{"z": 1, "a": 2}], "a": None},
    )
    file = write_eif(kernel=b"", cmdline=b"", ramdisks=[], metadata=metadata)
    assert b'"DockerInfo":{"a":null,"b":[{"a":2,"z":1}]}' in file
    assert b'"BuildTime":"2024-07-09T17:16:38.424202+00:00"' in file
    assert read_eif(file).metadata == metadata
    with pytest.raises(EifError, match="time zone"):
        build_metadata(name="n", version="v", build_time=datetime(2024, 1, 1))


def test_parts_that_make_no_file() -> None:
    with pytest.raises(EifError, match="NUL at byte 1"):
        write_eif(kernel=b"", cmdline=b"a\0", ramdisks=[])
    with pytest.raises(EifError, match="33 sections"):
        write_eif(kernel=b"", cmdline=b"", ramdisks=[b""] * 30)
    with pytest.raises(EifError, match="signature of 32769"):
        write_eif(kernel=b"", cmdline=b"", ramdisks=[], signature=bytes(32769))
    with pytest.raises(EifError, match="riscv"):
        write_eif(kernel=b"", cmdline=b"", ramdisks=[], architecture="riscv")
    with pytest.raises(EifError, match="JSON"):
        write_eif(kernel=b"", cmdline=b"", ramdisks=[], metadata={"a": b"bytes"})
    assert len(read_eif(write_eif(kernel=b"", cmdline=b"", ramdisks=[b""] * 29)).ramdisks) == 29
