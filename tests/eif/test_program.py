"""ELF and script heads: against pyelftools on real files, and on anything."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.program import Shebang, read_program, read_shebang
from enclavedbg.errors import EifError
from tests.eif.lint.images import program

GOOD = program(interpreter="/ld", needed=["liba.so", "libb.so"], soname="me", rpath="/a:$ORIGIN", runpath="/b")


def real_files() -> list[Path]:
    """This Python and the compiled modules that it has loaded."""
    loaded = {Path(m.__file__) for m in sys.modules.values() if getattr(m, "__file__", None) and m.__file__}
    return [Path(sys.executable).resolve(), *sorted(path for path in loaded if path.suffix == ".so")[:20]]


@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_as_pyelftools_reads_it(path: Path) -> None:
    found = read_program(path.read_bytes())
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert found.bits == elf.elfclass and found.kind in (2, 3)
        tags = [tag for s in elf.iter_segments() if isinstance(s, DynamicSegment) for tag in s.iter_tags()]
        assert list(found.needed) == [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
        sonames = [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"]
        assert found.soname == (sonames[0] if sonames else None)
        linkers = [s.get_interp_name() for s in elf.iter_segments() if s["p_type"] == "PT_INTERP"]
        assert found.interpreter == (linkers[0] if linkers else None)


@pytest.mark.parametrize("bits", [32, 64])
def test_made_in_code(bits: int) -> None:
    data = program(bits=bits, interpreter="/ld", needed=["a", "b"], soname="me", rpath="/a:$ORIGIN", runpath="/b")
    found = read_program(data)
    assert (found.machine, found.bits, found.interpreter, found.soname) == ("x86_64", bits, "/ld", "me")
    assert (found.needed, found.rpath, found.runpath) == (("a", "b"), ("/a", "$ORIGIN"), ("/b",))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "expected an ELF"),
        (GOOD[:51], "cut short"),
        (GOOD[:200], "cut short"),
        (GOOD[:56] + b"\xff\xff" + GOOD[58:], "at most 128"),
        (GOOD[:54] + b"\1\0" + GOOD[56:], "1 bytes each"),
        (GOOD[:32] + b"\xff" * 8 + GOOD[40:], "cut short"),
    ],
)
def test_refusals(data: bytes, why: str) -> None:
    with pytest.raises(EifError, match=why):
        read_program(data)


def test_big_endian_is_named_as_such() -> None:
    data = b"\x7fELF\2\2\1" + bytes(9) + b"\0\2\0\x16" + bytes(44)
    assert read_program(data).machine == "s390x (big-endian)"


def test_shebang() -> None:
    assert read_shebang(b"#!/bin/sh") == Shebang("/bin/sh", None)
    assert read_shebang(b"#! /usr/bin/env  -S a b \nx") == Shebang("/usr/bin/env", "-S a b")
    assert read_shebang(b"#!/bin/sh\r\n") == Shebang("/bin/sh\r", None)
    assert read_shebang(b"#!\n") is None and read_shebang(b"# !x") is None and read_shebang(b"#!/b\0") is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, len(GOOD)), st.binary(max_size=16))
def test_anything(data: bytes, at: int, change: bytes) -> None:
    for candidate in (data, b"\x7fELF" + data, GOOD[:at] + change + GOOD[at + len(change) :]):
        with contextlib.suppress(EifError):
            read_program(candidate)
        read_shebang(candidate)
