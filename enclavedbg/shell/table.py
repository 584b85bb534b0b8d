"""The table of commands: each is a decorated function; shell, `help`, completion and gdb's `monitor` read it."""

from __future__ import annotations

import difflib
import inspect
import shlex
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavedbg.errors import EnclaveDbgError
from enclavedbg.shell.text import Text, joined

if TYPE_CHECKING:
    from enclavedbg.shell.session import Session

Handler = Callable[["Session", list[str]], Awaitable[Text]]


class CommandError(EnclaveDbgError):
    """A command line that is not understood, or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `usage` is what follows its name; `completes` says what its words may be.

    `details` is for who asks about this command; `repeats` that an empty line does it again.
    `completes` is one of "" (nothing), "address", "event", "command" or a list separated by "|"; with spaces between,
    each is for the word in its place, and the last for all further ones.
    """

    name: str
    aliases: tuple[str, ...]
    usage: str
    summary: str
    details: str
    completes: str
    monitor: bool
    repeats: bool
    run: Handler

    @property
    def syntax(self) -> str:
        return f"{self.name} {self.usage}".rstrip()


class CommandTable:
    """Commands by name, alias or unambiguous beginning."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}
        self._aliases: dict[str, str] = {}

    def add(
        self,
        name: str,
        *aliases: str,
        usage: str = "",
        completes: str = "",
        monitor: bool = True,
        repeats: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Register the decorated function; its docstring becomes its help, the first line that in the list."""

        def register(handler: Handler) -> Handler:
            summary, _, details = inspect.cleandoc(handler.__doc__ or "").partition("\n")
            taken = {name, *aliases} & {*self._commands, *self._aliases}
            if taken:
                raise ValueError(f"two commands are called {taken.pop()!r}")
            self._commands[name] = Command(
                name, aliases, usage, summary.rstrip("."), details.strip(), completes, monitor, repeats, handler
            )
            self._aliases.update(dict.fromkeys(aliases, name))
            return handler

        return register

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())

    async def run(self, session: Session, line: str) -> Text:
        """Run a typed line and return what to show; raises EnclaveDbgError with what to tell the person."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise CommandError(f"cannot read the line: {str(error).lower()}") from None
        if not words:
            return []
        return await self.find(words[0]).run(session, words[1:])

    def repeats(self, line: str) -> bool:
        """Whether an empty line after this one does it again."""
        try:
            return self.find(line.split()[0]).repeats if line.strip() else False
        except CommandError:
            return False

    def help(self, word: str | None = None) -> Text:
        """All commands with a line each, or one with its syntax."""
        if word is not None:
            command = self.find(word)
            details = f"\n{command.details}" if command.details else ""
            also = f"\nAlso: {', '.join(command.aliases)}" if command.aliases else ""
            return [("value", command.syntax), ("", f"\n{command.summary}.{details}{also}\n")]
        width = max(len(command.syntax) for command in self)
        return joined([("name", f"{c.syntax:{width}}"), ("", f"  {c.summary}")] for c in self)

    def find(self, word: str) -> Command:
        """The command that a word means; raises CommandError when there is none, or several."""
        if word in self._aliases:
            return self._commands[self._aliases[word]]
        if word in self._commands:
            return self._commands[word]
        fitting = [name for name in self._commands if name.startswith(word)]
        if len(fitting) == 1:
            return self._commands[fitting[0]]
        if fitting:
            raise CommandError(f"{word!r} could be {', '.join(fitting)}")
        near = difflib.get_close_matches(word, [*self._commands, *self._aliases], n=1)
        raise CommandError(
            f"there is no command {word!r}; did you mean {near[0]}?"
            if near
            else f"there is no command {word!r}; help lists all"
        )
