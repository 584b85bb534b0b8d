"""The machine executing a real enclave image: from power-on to heartbeat, attestation and every kind of end."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.eif import measure, read_eif, write_eif
from enclavedbg.errors import EifError, MachineError
from enclavedbg.machine import vcpu
from enclavedbg.machine.cpu.soft import native
from enclavedbg.machine.enclave import Enclave
from enclavedbg.machine.verdict import Outcome
from tests.eif.test_signature import certificate, cose, section
from tests.live.attest import attest
from tests.live.driver import BASE, DEMO, READY, play, running
from tests.nsm.support import believed

pytestmark = pytest.mark.live

RECORDED = json.loads((DEMO.parent / "measurements.json").read_text())

both_engines = pytest.mark.parametrize(
    "use_native",
    [
        pytest.param(
            True, id="native", marks=pytest.mark.skipif(native.load() is None, reason="the native part is not built")
        ),
        pytest.param(False, id="python"),
    ],
)


@both_engines
def test_from_power_on_to_heartbeat_attestation_echo_and_clean_exit(use_native: bool) -> None:
    async def scene() -> None:
        async with running(native=use_native) as run:
            stages = [(await run.until_kind("boot")).event.stage for _ in range(5)]  # type: ignore[attr-defined]
            assert stages == ["eif-read", "measured", "kernel-unpacked", "kernel-placed", "kernel-entered"]
            for index in range(3):
                line = await run.until_console(f"PCR{index}: ")
                assert line == f"PCR{index}: {getattr(run.enclave.measurements, f'pcr{index}').hex()}"
            await run.until_console(READY)
            await run.once("vsock.heartbeat")

            echo = await run.enclave.vsock.connect(5000)
            payload = os.urandom(200_000)
            sent = asyncio.create_task(echo.write(payload))
            assert await echo.read_exactly(len(payload)) == payload
            await sent
            echo.finish()
            assert await echo.read() == b""

            document = await attest(run, nonce=b"n" * 20, user_data=b"hello")
            verified = believed(document, root=run.enclave.nsm.authority.root(), nonce=b"n" * 20)
            assert verified.user_data == b"hello"
            assert verified.pcrs[0] == run.enclave.measurements.pcr0
            assert verified.module_id == run.enclave.nsm.module_id

            assert await run.command("exit 3") == b"ok\n"
            verdict = await run.verdict()
            assert verdict.outcome is Outcome.CLEAN
            assert verdict.line == "the enclave ended: init: /demo exited with status 3"
            assert "init: /demo exited with status 3" in run.enclave.console.text()

    play(scene)


def test_debug_mode_zeroes_the_images_registers() -> None:
    async def scene() -> None:
        async with running(debug_mode=True) as run:
            assert (await run.until_console("PCR0: ")).endswith("0" * 96)

    play(scene)


@pytest.mark.parametrize(
    ("command", "outcome", "words"),
    [
        ("exit 0", Outcome.CLEAN, "init: /demo exited with status 0"),
        ("crash", Outcome.CLEAN, "init: /demo killed by signal 11"),
        ("oom", Outcome.CLEAN, "init: /demo killed by signal 9"),
        ("reboot", Outcome.CLEAN, "the guest rebooted"),
        ("poweroff", Outcome.CLEAN, "the guest powered off"),
        ("panic", Outcome.PANIC, "kernel panic: "),
        ("kernel BUG", Outcome.CLEAN, "after a kernel error: kernel BUG at"),
        ("kernel EXHAUST_STACK", Outcome.PANIC, "stack guard page was hit"),
    ],
)
def test_every_end_has_a_verdict(command: str, outcome: Outcome, words: str) -> None:
    async def scene() -> None:
        async with running() as run:
            await run.until_console(READY)
            assert await run.command(command) == b"ok\n"
            verdict = await run.verdict()
            assert (verdict.outcome, verdict.exit_status) == (outcome, outcome.value)
            assert words in verdict.line
            assert "\n" not in verdict.line

    play(scene)


def test_a_kernel_that_spins_with_interrupts_off_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with running() as run:
            await run.until_console(READY)
            monkeypatch.setattr(vcpu, "DEAF_NS", 1_000_000_000)
            assert await run.command("hang kernel") == b"ok\n"
            verdict = await run.verdict()
            assert verdict.outcome is Outcome.HANG
            assert "interrupts stayed off" in verdict.line

    play(scene)


def test_a_time_limit_says_where_the_guest_was() -> None:
    async def scene() -> None:
        async with running() as run:
            await run.until_console(READY)
            assert await run.command("hang") == b"ok\n"
            run.enclave.time_out(1.5)
            verdict = await run.verdict()
            assert verdict.outcome is Outcome.TIMEOUT
            assert verdict.line.startswith("still running after 1.5 s, the CPU at 0x")

    play(scene)


def test_guest_reaches_unix_sockets_and_they_reach_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(vsock_dir=tmp_path / "v") as run:
            await run.until_console(READY)
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "v" / "vsock"))
            writer.write(b"CONNECT 5000\nhello")
            assert (await reader.readline()).startswith(b"OK ")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
        assert not (tmp_path / "v").exists()

    play(scene)


def test_closing_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    async def scene() -> None:
        async with running(vsock_dir=tmp_path, console_file=tmp_path / "console") as run:
            await run.until_console("Linux version")

    play(scene)
    assert {t.name for t in set(threading.enumerate()) - before if not t.daemon} == set()
    assert not [t for t in threading.enumerate() if t.name in ("enclavedbg-vcpu", "enclavedbg-alarm")]
    assert [p.name for p in tmp_path.iterdir()] == ["console"]
    assert b"Linux version" in (tmp_path / "console").read_bytes()


def test_packaged_image_is_what_its_recipe_recorded() -> None:
    async def scene() -> None:
        async with running(halted=True) as run:
            for index in range(3):
                assert getattr(run.enclave.measurements, f"pcr{index}").hex() == RECORDED[f"PCR{index}"]

    play(scene)


@pytest.mark.parametrize(
    ("this_image", "valid", "warning"),
    [(True, True, ""), (False, True, "it does not sign PCR0"), (True, False, "the signing certificate is valid from")],
)
def test_a_signature_is_checked_as_run_enclave_does(this_image: bool, valid: bool, warning: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    since = datetime.now(UTC) - timedelta(days=1 if valid else 31)
    pem = certificate(key, since=since).public_bytes(Encoding.PEM)
    image = read_eif(DEMO)
    pcr0 = measure(image).pcr0 if this_image else bytes(48)
    signed = write_eif(
        kernel=image.kernel,
        cmdline=image.cmdline,
        ramdisks=image.ramdisks,
        metadata=image.metadata,
        signature=section(pem, cose(key, 1, pcr0)),
    )

    async def scene() -> None:
        async with running(eif=signed) as run:
            await run.until_console(READY)
            assert run.enclave.nsm.bank.values()[8] == run.enclave.measurements.pcr8 != bytes(48)
        warnings = [r.event.summary() for r in run.records if r.event.kind == "warning"]
        assert len(warnings) == bool(warning)
        assert all(warning in text for text in warnings)

    play(scene)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_image_is_refused_in_one_line(damage: str) -> None:
    image = bytearray(DEMO.read_bytes())
    if damage == "truncate":
        del image[-1000:]
    else:
        image[len(image) // 2] ^= 1

    async def scene() -> None:
        with pytest.raises(EifError) as caught:
            async with running(eif=bytes(image)):
                pass
        assert "\n" not in str(caught.value)

    play(scene)


def test_too_little_memory_says_how_much_it_takes() -> None:
    async def scene() -> None:
        with pytest.raises(MachineError, match=r"needs at least \d+ MiB, --memory gives 32 MiB"):
            async with running(memory=32 << 20):
                pass

    play(scene)


def test_kvm_is_refused_honestly() -> None:
    async def scene() -> None:
        with pytest.raises(MachineError, match="software CPU only"):
            Enclave(BASE.__class__(eif=DEMO, cpu="kvm"), loop=asyncio.get_running_loop())

    play(scene)
