"""What goes to standard output: exact for machines, harmless for terminals."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.verbs.eif.output import print_json

NASTY = 'Zürich \x1b[31m \x9b31m \u202e \x7f \u2028 \ufeff \U000e0041 "quoted\\" \ud800'


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_exact_and_nothing_in_it_acts_on_a_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_json({"text": NASTY})
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == {"text": NASTY}
    assert all(c.isprintable() or c == "\n" for c in text)
    assert ("Zürich" in text) is (encoding == "utf-8")


VALUES = st.recursive(
    st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(VALUES)
def test_any_value_comes_back(value: object) -> None:
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        print_json(value)
        text = sys.stdout.getvalue()
    finally:
        sys.stdout = out
    assert json.loads(text) == value
    assert all(c.isprintable() or c == "\n" for c in text)
