from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.shell.text import Text, joined, plain
from enclavedbg.shell.wrap import wrapped

DIGEST = "0123456789ab" * 8


def shown(text: Text, columns: int) -> list[str]:
    return plain(wrapped(text, columns)).splitlines()


def test_what_fits_is_left_alone() -> None:
    text: Text = [("name", "a  "), ("", "b" * 17), ("", "\n")]
    assert plain(wrapped(text, 20)) == plain(text)


def test_events_go_on_below_their_text() -> None:
    text: Text = [("dim", "    0.325 "), ("code", "vsock: the quick brown fox jumps")]
    assert shown(text, 30) == ["    0.325 vsock: the quick", "          brown fox jumps"]


def test_a_digest_is_cut_into_equal_parts() -> None:
    row: Text = [("name", "PCR0  "), ("", DIGEST), ("dim", " locked"), ("good", "  = file")]
    assert shown(row, 80) == [f"PCR0  {DIGEST[:48]}", f"      {DIGEST[48:]} locked  = file"]
    line: Text = [("dim", "    0.346 "), ("", f"PCR0: {DIGEST}")]
    assert shown(line, 80) == [f"    0.346 PCR0: {DIGEST[:48]}", f"          {DIGEST[48:]}"]


def test_styles_stay_with_their_words() -> None:
    text = wrapped([("dim", "1 "), ("good", "aaaa bbbb"), ("bad", " cccc")], 8)
    assert [(style, piece) for style, piece in text if style] == [
        ("dim", "1 "), ("good", "aaaa"), ("good", "bbbb"), ("bad", "cccc")
    ]  # fmt: skip


pieces = st.tuples(st.sampled_from(["", "dim", "name", "good"]), st.text("ab \n", max_size=60))


@given(st.lists(pieces, max_size=8), st.integers(1, 40))
def test_no_line_is_too_long_and_nothing_but_spaces_is_lost(text: Text, columns: int) -> None:
    out = plain(wrapped(text, columns))
    assert all(len(line) <= columns for line in out.split("\n"))
    assert "".join(out.split()) == "".join(plain(text).split())
    # A last line of nothing but spaces may go: it shows nothing.
    last = plain(text).rpartition("\n")[2]
    assert out.endswith("\n") == plain(text).endswith("\n") or not last.strip()


def test_several_lines() -> None:
    assert plain(wrapped(joined([[("", "a b c")], [("", "d")]]), 3)) == "a b\nc\nd\n"
