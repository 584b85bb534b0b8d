"""The thread that prints: whatever the guest writes, and wherever it goes."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from enclavedbg.runner import Printer


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"caf\\xe9 \\u2192\nnext\n"),
        ("iso-8859-1", b"caf\xe9 \\u2192\nnext\n"),
        ("utf-8", "caf\u00e9 \u2192\nnext\n".encode()),
    ],
)
def test_what_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    broken: list[bool] = []

    async def scene() -> None:
        printer = Printer(asyncio.get_running_loop(), on_broken=lambda: broken.append(True))
        printer.line("caf\u00e9 \u2192")
        printer.line("next")
        await printer.close()

    asyncio.run(scene())
    sys.stdout.flush()
    assert raw.getvalue() == shown
    assert not broken
