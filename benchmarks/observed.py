"""The command `enclavedbg` with two things more: it prints a line at the heartbeat, and `--python` as the last
argument keeps to the software CPU's Python path. Everything else is the command itself, so its times are too.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from enclavedbg import cli

HEARTBEAT = "[heartbeat]"


def main() -> int:
    """Run the command with these arguments."""
    from enclavedbg import runner
    from enclavedbg.machine.events import BootStage, Record

    class Printer(runner.Printer):
        def observe(self, record: Record) -> None:
            super().observe(record)
            if isinstance(record.event, BootStage) and record.event.stage == "heartbeat":
                self.line(HEARTBEAT)

    runner.Printer = Printer  # type: ignore[misc]
    if sys.argv[-1] == "--python":
        config_of = runner.config_of
        runner.config_of = lambda options: replace(config_of(options), native=False)
        del sys.argv[-1]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
