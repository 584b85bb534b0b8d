"""The installed lldb, in batch mode, against the fake machine behind a real server."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.gdbstub.fake import DATA, TEXT
from tests.gdbstub.serving import Serving, serving

LLDB = next((path for name in ("lldb", "lldb-19", "lldb-16", "lldb-14") if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(LLDB is None, reason="lldb is not installed (apt install lldb)"),
]


def lldb(served: Serving, *commands: str) -> str:
    """Run lldb with commands after it has attached, and take all it wrote."""
    assert LLDB is not None
    arguments = [LLDB, "--no-lldbinit", "--batch"]
    for command in (f"gdb-remote {served.host}:{served.port}", *commands):
        arguments += ["-o", command]
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.stdout


def test_lldb_attaches_looks_runs_and_leaves() -> None:
    with serving() as served:
        out = lldb(
            served,
            "register read rip rdi cr0",
            f"breakpoint set -a {TEXT + 4:#x}",
            "continue",
            "stepi",
            f"memory read {TEXT:#x}",
            f"memory region {TEXT:#x}",
            "breakpoint delete --force",
            f"watchpoint set expression -- {DATA:#x}",
            "continue",
            "process plugin packet monitor registers",
            "detach",
        )
        assert f"rip = {TEXT:#x}" in out and "cr0 = 0x0000000080050033" in out
        assert "stop reason = breakpoint 1.1" in out
        assert "stop reason = instruction step into" in out
        assert f"{TEXT:#x}: 90 90 88 07 90 eb fa" in out
        assert f"[{TEXT:#x}-{TEXT + 0x1000:#x}) r-x" in out
        assert "stop reason = watchpoint 1" in out
        assert "privilege level 0" in out
        served.settle()
        assert served.machine.running and not served.machine.breakpoints and not served.machine.watchpoints


def test_lldb_does_not_search_memory_for_a_darwin_kernel() -> None:
    with serving() as served:
        reads: list[int] = []
        read = served.machine.read_virtual

        def counted(address: int, length: int) -> bytes:
            reads.append(address)
            return read(address, length)

        served.machine.read_virtual = counted  # type: ignore[method-assign]
        lldb(served, "detach")
        assert len(reads) < 50
