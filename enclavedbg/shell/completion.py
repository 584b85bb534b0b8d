"""What the Tab key offers: commands, symbols, registers, kinds of events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from enclavedbg.shell.render import KINDS
from enclavedbg.shell.session import REGISTER_NAMES, Session
from enclavedbg.shell.table import CommandError, CommandTable

LIMIT = 50


class ShellCompleter(Completer):
    """Completes the first word from the table and the others by what the command takes."""

    def __init__(self, session: Session, table: CommandTable) -> None:
        self._session = session
        self._table = table

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor.lstrip()
        first, space, rest = before.partition(" ")
        if not space:
            for command in self._table:
                if command.name.startswith(first):
                    yield Completion(command.name, -len(first), display_meta=command.summary)
            return
        try:
            command = self._table.find(first)
        except CommandError:
            return
        word = rest.split(" ")[-1]
        before_it = rest.removesuffix(word).split()
        places = command.completes.split(" ")
        for candidate in self._candidates(places[min(len(before_it), len(places) - 1)], word):
            yield Completion(candidate, -len(word))

    def _candidates(self, what: str, word: str) -> Iterator[str]:
        if what == "address":
            yield from self._addresses(word)
        elif what == "event":
            yield from (kind for kind in ("on", "off", *KINDS) if kind.startswith(word))
        elif what == "command":
            yield from (command.name for command in self._table if command.name.startswith(word))
        elif what:
            yield from (choice for choice in what.split("|") if choice.startswith(word))

    def _addresses(self, word: str) -> Iterator[str]:
        head = ""
        for sign in "+-":
            if sign in word:
                at = word.rindex(sign) + 1
                head, word = word[:at], word[at:]
        if word.startswith("$"):
            yield from (f"{head}${name}" for name in REGISTER_NAMES if name.startswith(word[1:]))
            return
        symbols = self._session.known_symbols()
        if symbols is None:
            self._session.start_symbols()  # they are there for the next key
        elif word:
            yield from (head + name for name in symbols.complete(word, limit=LIMIT))
