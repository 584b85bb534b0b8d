"""Debian's own cloud kernel, which no one here configured: drivers as modules, devices found through ACPI."""

from __future__ import annotations

import asyncio
import os

import pytest

from enclavedbg.kernel.orc import OrcTable
from enclavedbg.kernel.symbols import KernelSymbols
from enclavedbg.kernel.unwind import backtrace
from enclavedbg.machine.cpu.engine import BreakpointHit
from enclavedbg.machine.cpu.soft import native
from enclavedbg.machine.verdict import Outcome
from tests.live.attest import attest
from tests.live.debian import debian_eif
from tests.live.driver import READY, play, running
from tests.nsm.support import believed

pytestmark = [pytest.mark.live, pytest.mark.debian]

MEMORY = 256 << 20


@pytest.mark.skipif(native.load() is None, reason="the native part is not built")
def test_from_power_on_to_heartbeat_attestation_and_power_off() -> None:
    async def scene() -> None:
        async with running(eif=debian_eif("demo"), memory=MEMORY) as run:
            for index in range(3):
                line = await run.until_console(f"PCR{index}: ")
                assert line == f"PCR{index}: {getattr(run.enclave.measurements, f'pcr{index}').hex()}"
            await run.until_console(READY)
            await run.once("vsock.heartbeat")
            assert "virtio_mmio.device=" not in run.enclave.console.text(), "its devices are found through ACPI alone"

            echo = await run.enclave.vsock.connect(5000)
            payload = os.urandom(200_000)
            sent = asyncio.create_task(echo.write(payload))
            assert await echo.read_exactly(len(payload)) == payload
            await sent
            echo.close()

            nonce = os.urandom(20)
            document = await attest(run, nonce=nonce, user_data=b"cloud")
            verified = believed(document, root=run.enclave.nsm.authority.root(), nonce=nonce)
            assert verified.user_data == b"cloud"
            assert verified.pcrs[0] == run.enclave.measurements.pcr0

            assert await run.command("poweroff") == b"ok\n"
            verdict = await run.verdict()
            assert (verdict.outcome, verdict.line) == (Outcome.CLEAN, "the enclave ended: the guest powered off")
            assert "ACPI: PM: Preparing to enter system sleep state S5" in run.enclave.console.text()

    play(scene)


def test_reboot_and_a_python_only_cpu() -> None:
    async def scene() -> None:
        async with running(eif=debian_eif("demo"), memory=MEMORY, native=False) as run:
            await run.until_console(READY)
            assert await run.command("reboot") == b"ok\n"
            verdict = await run.verdict()
            assert (verdict.outcome, verdict.line) == (Outcome.CLEAN, "the enclave ended: the guest rebooted")

    play(scene)


@pytest.mark.skipif(native.load() is None, reason="the native part is not built")
def test_a_panic_has_its_verdict() -> None:
    async def scene() -> None:
        async with running(eif=debian_eif("demo"), memory=MEMORY) as run:
            await run.until_console(READY)
            assert await run.command("panic") == b"ok\n"
            verdict = await run.verdict()
            assert verdict.outcome is Outcome.PANIC
            assert "sysrq triggered crash" in verdict.line

    play(scene)


@pytest.mark.skipif(native.load() is None, reason="the native part is not built")
def test_symbols_breakpoint_and_backtrace_without_a_file() -> None:
    async def scene() -> None:
        async with running(eif=debian_eif("demo"), memory=MEMORY, halted=True) as run:
            elf = run.enclave.kernel_elf
            symbols = KernelSymbols.from_vmlinux(elf)
            address = symbols.address("acpi_init")
            assert address is not None
            run.enclave.debug.add_breakpoint(address, owner="test")
            run.enclave.debug.resume()
            await run.until_kind("stop")
            assert run.enclave.debug.stop_reason == BreakpointHit(address)
            trace = backtrace(
                run.enclave.debug.read_virtual, run.enclave.debug.state(), symbols, OrcTable.from_vmlinux(elf)
            )
            names = [frame.symbol for frame in trace.frames]
            assert names[:2] == ["acpi_init", "do_one_initcall"]
            assert {"kernel_init", "ret_from_fork"} <= set(names)

    play(scene)
