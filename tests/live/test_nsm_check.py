"""The conformance program in a guest: every request of the secure module and every error, through the driver."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from recipe.images import nsm_check_image, packaged_nsm_check, packaged_parts

from enclavedbg.machine.cpu.soft import native
from enclavedbg.machine.events import ConsoleLine
from tests.live.driver import play, running

pytestmark = pytest.mark.live

NATIVE = pytest.param(
    True, id="native", marks=pytest.mark.skipif(native.load() is None, reason="the native part is not built")
)
PYTHON = pytest.param(False, id="python")

EXITED = "init: /nsm-check exited with status "

CASES = {
    "ioctl/other-command", "ioctl/request-of-4096-bytes", "ioctl/request-of-4097-bytes", "ioctl/bad-request-address",
    "ioctl/bad-response-address", "ioctl/read-only-argument", "ioctl/capacity-10", "module/fields", "module/id",
    "module/locked-at-start", "random/form", "random/differs", "random/hwrng", "start/image-registers",
    "start/zero-registers", "encoding/indefinite-maps", "encoding/31-in-2-bytes", "encoding/names-in-chunks",
    "encoding/unknown-field-with-everything", "encoding/changes-nothing", "malformed/cut-name",
    "malformed/trailing-byte", "malformed/nested-1000-deep-in-a-field", "malformed/index-65536",
    "malformed/index-negative", "malformed/index-twice", "malformed/name-in-lower-case", "malformed/name-in-an-array",
    "malformed/unknown-name", "malformed/extend-data-number", "malformed/range-65568", "malformed/nonce-number",
    "refused/describe-32", "refused/describe-65535", "refused/extend-32", "refused/extend-locked-15", "refused/lock-32",
    "refused/lock-locked-0", "refused/lock-range-33", "attestation/all-null", "attestation/three-fields",
    "attestation/1024-bytes-in-each", "attestation/two-nonces", "attestation/no-fields", "attestation/indefinite",
    "attestation/text-for-bytes", "attestation/empty-fields",
    "attestation/1025-bytes-of-nonce-refused-by-emulators-choice", "attestation/registers-of-the-application",
    "extend/once", "extend/twice", "extend/with-no-data", "extend/with-most-data", "extend/with-text-in-chunks",
    "lock/one", "lock/one-shows", "lock/twice", "lock/extend-after", "lock/keeps-value", "errors/change-nothing",
    "lock-range/0", "lock-range/20", "lock-range/20-again", "lock-range/33", "lock-range/32", "lock-range/32-shows",
    "lock-range/32-document",
}  # fmt: skip
"""What must have been checked, so that nothing vanishes unnoticed."""

CHOICES = {"encoding/indefinite-maps", "malformed/trailing-byte", "extend/with-text-in-chunks"}
"""Some of what is known of emulators only."""


def checked(*arguments: str, use_native: bool = True, debug_mode: bool = False) -> tuple[list[str], int]:
    """Run the program in a guest: its lines without the `NSM `, and its exit status, which init tells."""
    eif = nsm_check_image(packaged_parts(), packaged_nsm_check(), arguments)
    texts: list[str] = []

    async def scene() -> None:
        async with running(eif=eif, native=use_native, debug_mode=debug_mode) as run:
            await run.verdict()
            await run.until_console(EXITED)
        texts.extend(record.event.text for record in run.records if isinstance(record.event, ConsoleLine))

    play(scene)
    (status,) = [int(text.removeprefix(EXITED)) for text in texts if text.startswith(EXITED)]
    return [text.removeprefix("NSM ") for text in texts if text.startswith("NSM ")], status


def cases(lines: list[str]) -> list[str]:
    """The names of the checks, each of which held, as the last line says too."""
    assert [line for line in lines if " bad" in line] == []
    names = [line.removesuffix(" ok") for line in lines[:-1]]
    assert len(set(names)) == len(names)
    assert lines[-1] == f"all ok ({len(names)} cases)"
    return names


@pytest.mark.parametrize("use_native", [NATIVE, PYTHON])
def test_the_module_is_what_its_reference_says(use_native: bool) -> None:
    lines, status = checked(use_native=use_native)
    assert set(cases(lines)) >= CASES
    assert status == 0


def test_in_debug_mode_the_images_registers_are_zero() -> None:
    lines, status = checked("debug=1", debug_mode=True)
    assert set(cases(lines)) >= CASES
    assert status == 0


def test_a_wrong_register_is_told_and_ends_with_status_1() -> None:
    """Without debug=1 the program must refuse a debug-mode enclave: it does judge, and goes on after that."""
    lines, status = checked(debug_mode=True)
    assert [line for line in lines if " bad: " in line] == [
        f"start/image-registers bad: expected PCR0 not zero, got {'0' * 48}... (48 bytes)"
    ]
    assert lines[-1].startswith("1 of ")
    assert lines[-1].endswith(" bad")
    assert status == 1


def test_choices_of_emulators_can_be_left_out() -> None:
    lines, status = checked("choices=0")
    names = set(cases(lines))
    assert names.isdisjoint(CHOICES)
    assert {name for name in CASES if name.startswith(("ioctl/", "module/", "refused/", "lock-range/"))} <= names
    assert status == 0


def test_plain_requests_get_their_normal_answers() -> None:
    """The mode for injected faults, where none is injected: a fault that is missing is told."""
    requests = ["DescribeNSM", "GetRandom", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCR", "LockPCRs", "Attestation"]
    arguments = [f"expect={request}:ok" for request in requests]
    lines, status = checked(*arguments, "expect=DescribeNSM:InternalError", "expect=LockPCR:cut")
    assert lines[: len(arguments)] == [f"{argument} ok" for argument in arguments]
    assert lines[len(arguments)].startswith("expect=DescribeNSM:InternalError bad: expected the error InternalError, ")
    assert lines[len(arguments) + 1 :] == [
        "expect=LockPCR:cut bad: expected CBOR that is cut off, got whole CBOR: 674c6f636b504352",
        "2 of 10 bad",
    ]
    assert status == 1


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the guest's program does not run here"
)
@pytest.mark.parametrize(
    "argument",
    [
        "nonsense", "debug", "debug=2", "debug=11", "choices=", "expect=", "expect=GetRandom", "expect=GetRandom:",
        "expect=GetRandom:Success", "expect=getrandom:ok", "expect=Get:ok", "expect=GetRandom:okay",
        "slow=GetRandom:0", "slow=GetRandom:-5", "slow=GetRandom: 5", "slow=GetRandom:5s", "slow=GetRandom:",
        "slow=GetRandom:99999999999999999999", "slow=Nothing:5",
    ],
)  # fmt: skip
def test_an_unknown_argument_is_refused(argument: str, tmp_path: Path) -> None:
    """Without a guest: arguments are looked at before the device is opened."""
    program = tmp_path / "nsm-check"
    program.write_bytes(packaged_nsm_check())
    program.chmod(0o755)
    done = subprocess.run([program, "debug=1", argument], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"nsm-check: {argument} is no option (see nsm_check.c)\n"
