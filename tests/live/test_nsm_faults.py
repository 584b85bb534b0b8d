"""Faults, catchpoints, identity and seeds of the secure module, as programs in a real guest meet them."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from recipe.images import nsm_check_image, packaged_nsm_check, packaged_parts

from enclavedbg.demo import image_path
from enclavedbg.machine.catchpoints import Catchpoint
from enclavedbg.machine.clock import SEEDED_START
from enclavedbg.machine.enclave import EnclaveConfig, seeded_authority
from enclavedbg.machine.events import ConsoleLine, GuestStopped
from enclavedbg.nsm.document import MapEncoding
from enclavedbg.nsm.events import NsmExchange
from enclavedbg.nsm.faults import parse_fault
from enclavedbg.nsm.pcr import identity_registers
from enclavedbg.nsm.selector import parse_selector
from enclavedbg.nsm.wire import Attestation, ErrorCode
from enclavedbg.options import Address
from enclavedbg.runner import serving_gdb
from enclavedbg.shell.session import Session
from tests.live.attest import attest
from tests.live.driver import LIMIT, READY, Run, play, running
from tests.nsm.support import believed

pytestmark = pytest.mark.live

ROLE, INSTANCE = "arn:aws:iam::123456789012:role/Webserver", "i-1234567890abcdef0"


def checked(arguments: list[str], *faults: str) -> list[str]:
    """Run nsm-check with a module that has these faults; its lines without the `NSM `."""
    eif = nsm_check_image(packaged_parts(), packaged_nsm_check(), arguments)
    texts: list[str] = []

    async def scene() -> None:
        async with running(eif=eif, faults=tuple(map(parse_fault, faults))) as run:
            await run.verdict()
            await run.until_console("init: /nsm-check exited with status ")
        texts.extend(record.event.text for record in run.records if isinstance(record.event, ConsoleLine))

    play(scene)
    return [text.removeprefix("NSM ") for text in texts if text.startswith("NSM ")]


def test_every_error_reaches_a_program() -> None:
    names = [code.name for code in ErrorCode]
    faults = [f"LockPCR#{n} error {name}" for n, name in enumerate(names, start=1)]
    arguments = [*(f"expect=LockPCR:{name}" for name in names), "expect=LockPCR:ok"]
    lines = checked(arguments, *faults)
    assert lines == [*(f"{argument} ok" for argument in arguments), f"all ok ({len(arguments)} cases)"]


def test_cut_and_late_answers_reach_a_program() -> None:
    arguments = ["expect=DescribeNSM:cut", "slow=DescribePCR:300", "expect=DescribePCR:ok", "expect=LockPCR:ok"]
    lines = checked(arguments, "DescribeNSM cut 10", "DescribePCR#1 delay 400ms")
    assert lines == [*(f"{argument} ok" for argument in arguments), "all ok (4 cases)"]


def test_a_dropped_request_keeps_its_program_waiting_and_nothing_else() -> None:
    async def scene() -> None:
        async with running(faults=(parse_fault("Attestation drop"),)) as run:
            await run.until_console(READY)
            asking = asyncio.create_task(attest(run, nonce=b"n"))
            record = await run.until(lambda r: isinstance(r.event, NsmExchange) and r.event.name == "Attestation")
            assert isinstance(record.event, NsmExchange)
            assert (record.event.response, record.event.fault) == (None, "drop")
            # The driver gives up after two minutes; the machine itself goes on, and can be stopped and looked at.
            run.enclave.debug.interrupt()
            await run.until(lambda r: isinstance(r.event, GuestStopped))
            assert run.enclave.verdict is None
            asking.cancel()

    play(scene)


def test_catchpoints_stop_before_and_after() -> None:
    async def scene() -> None:
        async with running() as run:
            await run.until_console(READY)
            debug = run.enclave.debug
            for number, after in ((1, False), (2, True)):
                selector, _ = parse_selector(["Attestation", "if", "nonce", "==", "hex:6e6e"], answered=after)
                run.enclave.catchpoints.add(number, Catchpoint(selector, after))
            asking = asyncio.create_task(attest(run, nonce=b"nn"))
            before = (await run.until(lambda r: isinstance(r.event, GuestStopped))).event
            assert isinstance(before, GuestStopped)
            assert before.reason == (
                "catchpoint 1: Attestation user_data=none nonce=2 bytes public_key=none, not answered yet"
            )
            held = debug.state()
            debug.resume()
            after_stop = (await run.until(lambda r: isinstance(r.event, GuestStopped))).event
            assert isinstance(after_stop, GuestStopped)
            assert after_stop.reason.startswith("catchpoint 2: Attestation ")
            assert "-> document=" in after_stop.reason
            assert debug.state().rip == held.rip, "the answer is made before the guest goes on"
            debug.resume()
            assert (await asking)[:1] == b"\x84"

    play(scene)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (apt install gdb)")
def test_gdb_catches_an_attestation_request() -> None:
    async def scene() -> None:
        async with running() as run:
            await run.until_console(READY)
            session = Session(run.enclave)
            async with serving_gdb(run.enclave, Address("127.0.0.1", 0), session) as server:
                host, port = server.address
                commands = [
                    "set remotetimeout 30",
                    f"target remote {host}:{port}", "monitor catch nsm Attestation", "continue", "bt", "x/i $pc",
                    "monitor nsm 1", "monitor delete", "detach",
                ]  # fmt: skip
                arguments = [word for command in commands for word in ("-ex", command)]
                gdb = await asyncio.create_subprocess_exec(
                    "gdb", "--nx", "--batch", *arguments,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                await run.until_kind("resume")
                asking = asyncio.create_task(attest(run, nonce=b"n"))
                out, _ = await asyncio.wait_for(gdb.communicate(), LIMIT)
                text = out.decode()
                assert "enclavedbg: catchpoint 1: Attestation user_data=none nonce=1 bytes" in text
                assert "received signal SIGTRAP" in text
                assert "in vm_notify ()" in text
                assert "nsm_" in text
                assert "nsm.request: Attestation" in text
                assert (await asking)[:1] == b"\x84"
            session.close()

    play(scene)


async def document(run: Run) -> bytes:
    await run.until_console(READY)
    return await attest(run, nonce=b"n" * 20, user_data=b"hello")


def in_a_run(**config: object) -> tuple[bytes, str, bytes]:
    """A document, the module's id and the root of a run of the demo image."""
    found: list[tuple[bytes, str, bytes]] = []

    async def scene() -> None:
        async with running(**config) as run:
            made = await document(run)
            found.append((made, run.enclave.nsm.module_id, run.enclave.nsm.authority.root()))

    play(scene)
    return found[0]


def test_the_parents_identity_is_measured() -> None:
    made, module_id, root = in_a_run(role_arn=ROLE, instance_id=INSTANCE, map_encoding=MapEncoding.DEFINITE)
    found = believed(made, root=root, expect_pcrs=identity_registers(instance_id=INSTANCE, role_arn=ROLE))
    assert module_id.startswith(f"{INSTANCE}-enc")
    assert found.payload[0] == 0xA9
    assert found.pcrs[3].hex().startswith("78fce75d")


def test_a_made_up_instance_is_measured_too() -> None:
    made, module_id, root = in_a_run()
    found = believed(made, root=root)
    instance = module_id.partition("-enc")[0]
    assert found.pcrs[4] == identity_registers(instance_id=instance)[4]
    assert found.pcrs[3] == bytes(48)
    assert found.payload[0] == 0xBF


def test_seeded_runs_repeat_to_the_byte() -> None:
    first, second = in_a_run(seed=7), in_a_run(seed=7)
    assert first == second
    made, _, root = first
    assert root == seeded_authority(7).root()
    assert believed(made, root=root).timestamp == SEEDED_START
    assert in_a_run(seed=8)[2] != root


def test_random_answers_of_seeded_runs_repeat() -> None:
    async def answers(seed: int) -> list[object]:
        async with running(EnclaveConfig(image_path(), memory=128 << 20, seed=seed)) as run:
            await run.until_console(READY)
        exchanges = [r.event for r in run.records if isinstance(r.event, NsmExchange) and r.event.name == "GetRandom"]
        return [exchange.response for exchange in exchanges[:1]]

    async def scene() -> None:
        one, again, other = await answers(3), await answers(3), await answers(4)
        assert one
        assert one == again
        assert one != other

    play(scene)


def test_requests_are_events_before_they_are_answered() -> None:
    async def scene() -> None:
        async with running() as run:
            await document(run)
            kinds = [r.event.kind for r in run.records if isinstance(getattr(r.event, "request", None), Attestation)]
            assert kinds == ["nsm.request", "nsm.exchange"]

    play(scene)
