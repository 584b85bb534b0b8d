"""An enclave that cannot be made gives back what it had taken so far."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from enclavedbg.errors import VsockError
from enclavedbg.machine.enclave import Enclave, EnclaveConfig
from tests.live.driver import BASE


def test_a_failure_half_way_leaves_no_thread_and_no_file_open(tmp_path: Path) -> None:
    # CID 3 is the parent's, which shows only when the machine around it stands.
    config = EnclaveConfig(BASE.eif, memory=BASE.memory, cid=3, console_file=tmp_path / "console")

    def attempt() -> None:
        loop = asyncio.new_event_loop()
        try:
            Enclave(config, loop=loop)
        finally:
            loop.close()

    for _ in range(2):  # the first one loads libraries, which may keep files of their own
        gc.collect()
        threads, files = threading.enumerate(), len(os.listdir("/proc/self/fd"))
        with pytest.raises(VsockError, match="CID 3"):
            attempt()
    gc.collect()
    assert threading.enumerate() == threads
    assert len(os.listdir("/proc/self/fd")) == files
