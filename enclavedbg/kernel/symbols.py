"""The kernel's symbols by name and by address."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from enclavedbg.kernel.image import KernelImage
from enclavedbg.kernel.kallsyms import Kallsyms, read_kallsyms


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol: `type` is nm's letter (upper case: global; "A": percpu or absolute), `size` in bytes.

    kallsyms has no sizes: a symbol reaches to the next one, or to the end of its section.
    """

    name: str
    address: int
    type: str
    size: int

    @property
    def is_function(self) -> bool:
        return self.type in "tTwW"


class KernelSymbols:
    """All the symbols of a kernel image, looked up by name or address.

    `slide` is the distance by which the running kernel was moved (KASLR); it is added to every address given
    and taken from every address asked, percpu offsets excepted.
    """

    def __init__(self, image: KernelImage, table: Kallsyms, *, slide: int = 0) -> None:
        self.image = image
        self.table = table
        self.slide = slide

    @classmethod
    def from_vmlinux(cls, elf: bytes) -> KernelSymbols:
        """Read the symbols of an unpacked kernel; raises SymbolError when it has none."""
        return cls(KernelImage(elf), read_kallsyms(elf))

    def moved(self, slide: int) -> KernelSymbols:
        """The same symbols for a kernel moved by `slide` bytes from where it was linked."""
        return KernelSymbols(self.image, self.table, slide=slide)

    def __len__(self) -> int:
        return len(self.table.entries)

    def __iter__(self) -> Iterator[Symbol]:
        return map(self._symbol, range(len(self)))

    def address(self, name: str) -> int | None:
        """Address of the first symbol of that name (several static ones may share it), or None."""
        index = self._index.get(name)
        return None if index is None else self._place(index)

    def symbol(self, name: str) -> Symbol | None:
        """The first symbol of that name, or None."""
        index = self._index.get(name)
        return None if index is None else self._symbol(index)

    def symbol_after(self, address: int) -> Symbol | None:
        """The first symbol that begins above an address, or None."""
        at = bisect_right(self.table.addresses, address - self.slide)
        return self._symbol(at) if at < len(self) else None

    def lookup(self, address: int) -> tuple[str, int] | None:
        """(name, offset) of the symbol that an address lies in, or None outside the kernel's own sections."""
        linked = address - self.slide
        section = self.image.section_at(linked)
        if section is None:
            return None
        addresses = self.table.addresses
        at = bisect_right(addresses, linked) - 1
        if at < 0 or addresses[at] < section.address:
            return None
        # Among names of one address the kernel puts the one to show first.
        at = bisect_left(addresses, addresses[at])
        return self.table.entries[at][1:], linked - addresses[at]

    def describe(self, address: int) -> str:
        """An address as people read it: "do_sys_openat2+0x1c", or plain hex when no symbol is near."""
        found = self.lookup(address)
        if found is None:
            return f"{address:#x}"
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name

    def complete(self, prefix: str, *, limit: int = 100) -> list[str]:
        """The first `limit` names that begin with `prefix`, in alphabetical order."""
        names = self._sorted_names
        start = bisect_left(names, prefix)
        found = []
        for name in names[start : start + max(0, limit)]:
            if not name.startswith(prefix):
                break
            found.append(name)
        return found

    @cached_property
    def _index(self) -> dict[str, int]:
        entries = self.table.entries
        index = {entry[1:]: at for at, entry in enumerate(reversed(entries))}
        last = len(entries) - 1
        return {name: last - at for name, at in index.items()}

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self._index)

    def _place(self, index: int) -> int:
        address = self.table.addresses[index]
        return address + self.slide if self.image.section_at(address) is not None else address

    def _symbol(self, index: int) -> Symbol:
        entry = self.table.entries[index]
        return Symbol(entry[1:], self._place(index), entry[0], self._size(index))

    def _size(self, index: int) -> int:
        addresses = self.table.addresses
        address = addresses[index]
        section = self.image.section_at(address)
        after = bisect_right(addresses, address)
        end = addresses[after] if after < len(addresses) else address
        if section is not None:
            limit = section.address + section.size
            end = min(end, limit) if end > address else limit
        return max(0, end - address)
