"""A family of verbs: a table, from which help and dispatch are made."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

from enclavedbg.options import UsageError


class VerbModule(Protocol):
    """What a verb's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Do it; the exit status. Errors of the package become one line and a status in cli.main."""
        ...


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of a family: its name, one line of help, and the module that does it."""

    name: str
    summary: str
    module: str


@dataclass(frozen=True, slots=True)
class Family:
    """Verbs under a common word, with what `enclavedbg WORD` says of them and three examples."""

    word: str
    summary: str
    verbs: tuple[Verb, ...]
    examples: tuple[str, ...] = ()

    def help(self) -> str:
        """The family's help."""
        width = max((len(verb.name) for verb in self.verbs), default=0)
        lines = [f"enclavedbg {self.word}: {self.summary}", ""]
        lines += [f"  {example}" for example in self.examples]
        lines += [""] * bool(self.examples)
        lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in self.verbs]
        lines += ["", f"enclavedbg {self.word} VERB --help says more of each."]
        return "\n".join(lines) + "\n"

    def run(self, arguments: Sequence[str]) -> int:
        """Do what `enclavedbg WORD ARGUMENTS...` says; the exit status. Raises UsageError."""
        if not arguments or arguments[0] in ("-h", "--help"):
            sys.stdout.write(self.help())
            return 0
        verb = next((v for v in self.verbs if v.name == arguments[0]), None)
        if verb is None:
            names = [v.name for v in self.verbs]
            near = difflib.get_close_matches(arguments[0], names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UsageError(f"there is no command {self.word} {arguments[0]!r}; {hint}")
        module = cast(VerbModule, importlib.import_module(verb.module))
        parser = Parser(prog=f"enclavedbg {self.word} {verb.name}", description=verb.summary, allow_abbrev=False)
        module.add_arguments(parser)
        # Intermixed, so that an option may stand before an argument that can be left out.
        return module.run(parser.parse_intermixed_args(arguments[1:]))


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not hide that its help cannot be written."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own passes over errors: on a full disk, help would vanish with status 0.
        (file or sys.stderr).write(message)
