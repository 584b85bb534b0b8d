"""Command lines cut as the kernel cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.eif.bootline import parse_bootline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", ()),
        (b"  quiet\n", (("quiet", None),)),
        (b"a=1 b", (("a", "1"), ("b", None))),
        (b"console=ttyS0,115200 a=", (("console", "ttyS0,115200"), ("a", ""))),
        (b'a="b c" d', (("a", "b c"), ("d", None))),
        (b'"a=b c" d', (("a", "b c"), ("d", None))),
        (b"root=PARTUUID=1-2", (("root", "PARTUUID=1-2"),)),
        (b"a\0b", (("a", None),)),
    ],
)
def test_parameters(text: bytes, expected: tuple[tuple[str, str | None], ...]) -> None:
    line = parse_bootline(text)
    assert line.parameters == expected and line.for_init is None and not line.open_quote


def test_words_for_init_and_open_quotes() -> None:
    line = parse_bootline(b'a -- b=c "d')
    assert line.parameters == (("a", None),) and line.for_init == ("b=c", '"d') and line.open_quote


def test_values_of_a_name() -> None:
    line = parse_bootline(b"console=tty0 console=ttyS0 initcall-blacklist=x")
    assert line.values("console") == ["tty0", "ttyS0"] and line.last("console") == "ttyS0"
    assert line.has("initcall_blacklist") and not line.has("quiet") and line.last("quiet") is None


@given(st.binary(max_size=100))
def test_anything(data: bytes) -> None:
    line = parse_bootline(data)
    assert sum(len(name) + len(value or "") for name, value in line.parameters) <= len(data)
