"""Booting: from process start to the console's `Run /init` and to the heartbeat, against QEMU's TCG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.harness import Context, Sample
from benchmarks.images import DEMO, NO_QEMU, QEMU_SIDE, debian_image, observed, ours, qemu, stress_image, surroundings
from benchmarks.observed import HEARTBEAT
from benchmarks.process import Child, Hopeless
from enclavedbg.errors import EnclaveDbgError

OURS = "enclavedbg"
INIT = "Run /init as init process"
STRESS_INIT = "Run /stress as init process"
STRESS_OK = "STRESS all ok"
TO_INIT = "process start to init"
TO_HEARTBEAT = "process start to heartbeat"
TO_STRESS_OK = "process start to the end of the work"
WORK = "the work alone"
NO_CLOCK = "could not calculate TSC khz"
"""Linux measures its clock against QEMU's timer, and on a busy machine may find that impossible."""
ATTEMPTS = 10


def boot_demo(context: Context) -> None:
    """The packaged image."""
    eif = context.folder / "demo.eif"
    eif.write_bytes(DEMO.read_bytes())
    _boot(context, eif, rounds=9, heartbeat_target=1.3, ratio_target=0.7)


def boot_debian(context: Context) -> None:
    """Debian's own cloud kernel, which finds the devices through ACPI and loads their drivers as modules."""
    context.progress.say("fetching the kernel with apt")
    try:
        eif = debian_image(context.folder)
    except (EnclaveDbgError, OSError) as error:
        context.report.note(f"not measured: {error}")
        return
    _boot(context, eif, rounds=5, heartbeat_target=None, ratio_target=1.0)


def stress(context: Context) -> None:
    """A program that computes, spawns, faults and rewrites its own code, as the first process."""
    eif = stress_image(context.folder)
    markers = {TO_INIT: STRESS_INIT, TO_STRESS_OK: STRESS_OK}
    environment = surroundings(context.folder)
    python = f"{OURS}, Python path"
    sides = {
        OURS: _side(ours(eif), markers, environment),
        python: _side(observed(eif, "--python"), markers, environment),
        **_qemu_side(context, eif, markers),
    }
    samples = {
        side: [{**sample, WORK: sample[TO_STRESS_OK] - sample[TO_INIT]} for sample in found]
        for side, found in context.in_turns(sides, rounds=4).items()
    }
    for what in (TO_STRESS_OK, WORK):
        context.add(samples, what)
        context.report.ratio(what, OURS, QEMU_SIDE)
        context.report.ratio(what, python, OURS)


def _boot(context: Context, eif: Path, *, rounds: int, heartbeat_target: float | None, ratio_target: float) -> None:
    environment = surroundings(context.folder)
    sides = {
        OURS: _side(observed(eif), {TO_INIT: INIT, TO_HEARTBEAT: HEARTBEAT}, environment),
        **_qemu_side(context, eif, {TO_INIT: INIT}),
    }
    samples = context.in_turns(sides, rounds=rounds)
    context.add(samples, TO_HEARTBEAT, targets={OURS: heartbeat_target} if heartbeat_target else None)
    context.add(samples, TO_INIT)
    context.report.ratio(TO_INIT, OURS, QEMU_SIDE, target=ratio_target)


def _qemu_side(context: Context, eif: Path, markers: Mapping[str, str]) -> dict[str, Callable[[], Sample]]:
    command = qemu(eif)
    if command is None:
        context.report.note(NO_QEMU)
        return {}
    return {QEMU_SIDE: _patient(context, _side(command, markers, {}, hopeless=NO_CLOCK))}


def _patient(context: Context, run: Callable[[], Sample]) -> Callable[[], Sample]:
    """The peer's run, repeated when its kernel finds no clock: then it hangs, which says nothing about speed."""

    def again() -> Sample:
        for _ in range(ATTEMPTS - 1):
            try:
                return run()
            except Hopeless:
                context.report.repeated[QEMU_SIDE] = context.report.repeated.get(QEMU_SIDE, 0) + 1
        return run()

    return again


def _side(
    command: list[str], markers: Mapping[str, str], environment: Mapping[str, str], *, hopeless: str = ""
) -> Callable[[], Sample]:
    """A run of a command that is ended once it has said all the markers."""

    def run() -> Sample:
        with Child(command, environment=environment) as child:
            found = child.until(*markers.values(), hopeless=hopeless)
        return {what: found[marker] for what, marker in markers.items()}

    return run
