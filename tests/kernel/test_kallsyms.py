from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.kallsyms import DIGITS, read_kallsyms
from tests.kernel.builders import PERCPU, TEXT, KallsymsWriter, align, many_symbols


def decoded(image: bytes) -> list[tuple[str, str, int]]:
    table = read_kallsyms(image)
    return [(e[0], e[1:], a) for e, a in zip(table.entries, table.addresses, strict=True)]


@pytest.mark.parametrize("order", ["6.1", "6.2", "6.4"])
@pytest.mark.parametrize("percpu", [False, True])
@pytest.mark.parametrize("count", [300, 511, 512, 513, 1100])
def test_every_layout_decodes_to_what_was_encoded(order: str, percpu: bool, count: int) -> None:
    symbols = (PERCPU if percpu else []) + many_symbols(count)
    image = bytes(0x1000) + KallsymsWriter(symbols, order=order, absolute_percpu=percpu).encode() + bytes(0x1000)
    assert decoded(image) == symbols


def test_text_and_starts_name_the_same_strings_as_the_entries() -> None:
    table = read_kallsyms(KallsymsWriter(many_symbols(400)).encode())
    for entry, start in zip(table.entries, table.starts, strict=True):
        assert table.text[start : table.text.index(b"\0", start)].decode() == entry


def test_other_tables_of_digits_are_passed_over() -> None:
    decoy = b"".join(bytes([i]) + b"\0" for i in range(1, 256))
    image = align(decoy + DIGITS + bytes(99), 8) + KallsymsWriter(many_symbols(600)).encode()
    assert len(decoded(image)) == 600


def test_names_longer_than_127_take_two_bytes() -> None:
    symbols = [("T", "a" * 400 + str(i), TEXT + 16 * i) for i in range(600)]
    assert decoded(KallsymsWriter(symbols).encode()) == symbols


@pytest.mark.parametrize("image", [b"", DIGITS, bytes(4096), b"x\0" * 48 + DIGITS + b"\0" * 4000])
def test_an_image_without_symbols_is_told_in_one_line(image: bytes) -> None:
    with pytest.raises(SymbolError, match=r"no kernel symbols found \(.*\); give the debug vmlinux") as error:
        read_kallsyms(image)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_another_table_but_nothing_else(data: st.DataObject) -> None:
    image = bytearray(
        KallsymsWriter(many_symbols(520), order=data.draw(st.sampled_from(["6.1", "6.2", "6.4"]))).encode()
    )
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    for damaged in (bytes(image), bytes(image[:cut]), bytes(image[cut:])):
        try:
            table = read_kallsyms(damaged)
        except SymbolError:
            continue
        assert len(table.entries) == len(table.addresses) == len(table.starts)


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_with_the_packages_own_error(data: bytes) -> None:
    with pytest.raises(SymbolError):
        read_kallsyms(data + DIGITS + data)


def test_an_endless_run_of_markers_is_looked_at_once() -> None:
    # Ascending words without a zero at their start, for a megabyte before a token table: must not go quadratic.
    words = b"".join((0x1000_0000 + 300 * i).to_bytes(4, "little") for i in range(1 << 18))
    with pytest.raises(SymbolError, match="no markers before the token table"):
        read_kallsyms(words + KallsymsWriter([]).token_table())
