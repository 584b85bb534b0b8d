"""All commands in one table: whoever wants them imports this, and so every module that adds to it."""

from __future__ import annotations

from enclavedbg.shell import enclave_commands, history_commands, machine_commands, nsm_commands

MODULES = (machine_commands, history_commands, enclave_commands, nsm_commands)
COMMANDS = machine_commands.COMMANDS

__all__ = ["COMMANDS", "MODULES"]
