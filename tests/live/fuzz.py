"""Random guests, one after the other: `python -m tests.live.fuzz native|python FIRST COUNT`.

A process of its own, as a mistake here would end it: test_hostile.py runs it and looks at how it ended. The number
of the guest at work is on the last line, and COUNT 1 runs that one again.
"""

from __future__ import annotations

import asyncio
import faulthandler
import random
import sys

from tests.live.hostile import HostileMachine

SECONDS = 0.03
"""How long a guest may go on before it is told to stop."""


def main(path: str, first: int, count: int) -> None:
    faulthandler.enable()
    loop = asyncio.new_event_loop()
    outcomes: dict[str, int] = {}
    for seed in range(first, first + count):
        print(seed, flush=True)
        faulthandler.dump_traceback_later(60, exit=True)
        noise = random.Random(seed)
        with HostileMachine(native=path == "native", loop=loop, seed=seed) as machine:
            machine.randomise(noise)
            verdict = machine.run(seconds=SECONDS)
        name = verdict.outcome.name if verdict else "RUNNING"
        outcomes[name] = outcomes.get(name, 0) + 1
    loop.close()
    print("done:", " ".join(f"{name} {n}" for name, n in sorted(outcomes.items())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
