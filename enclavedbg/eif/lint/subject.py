"""The image under examination: its parts, each read at most once, when the first rule asks for it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from enclavedbg.eif.archives import DEFAULT_LIMITS, Limits
from enclavedbg.eif.bootline import BootLine, parse_bootline
from enclavedbg.eif.filesystem import FileSystem, read_filesystem
from enclavedbg.eif.format import SectionType
from enclavedbg.eif.kernelimage import KernelImage, read_kernel
from enclavedbg.eif.tree import Node
from enclavedbg.eif.walk import View, Walk, WalkedSection
from enclavedbg.errors import EifError

ROOTFS = "/rootfs"
"""Where the application's file system lies in an image that nitro-cli built; init makes it the root."""
FILE_LIMIT = 4 << 20
"""Bytes of /cmd, /env and /modules that are read; Linux passes some two million to a program."""
_MODULE_NAME = re.compile(r"([^/]+)\.ko(\.gz|\.xz|\.zst)?$")
CMDLINE_READ_LIMIT = 64 << 10
"""Bytes of a command line that are looked at; kernels take some two thousand."""


@dataclass
class Subject:
    """An image of which at least the header can be read.

    `data` is the whole file, `memory` the bytes of memory that the enclave is to have (None: not said), `now` an
    aware time. Parts that are missing are None; of parts that are damaged, `..._error` says why.
    """

    data: memoryview
    walk: Walk
    memory: int | None
    now: datetime
    limits: Limits = DEFAULT_LIMITS
    kernel_error: EifError | None = field(default=None, init=False)
    _files: dict[str, bytes | None] = field(default_factory=dict, init=False)
    filesystem_error: EifError | None = field(default=None, init=False)

    @cached_property
    def view(self) -> View:
        """The sections to look into: nitro-cli's view, else a loader's, else the one that gets further."""
        walked, table = self.walk.walked, self.walk.table
        if walked.refusal is None:
            return walked
        return table if table.refusal is None or len(table.sections) > len(walked.sections) else walked

    def contents(self, section: WalkedSection) -> memoryview:
        """A section's data."""
        return self.data[section.data_offset : section.end]

    def _first(self, kind: SectionType) -> memoryview | None:
        section = next(iter(self.view.of_type(kind)), None)
        return None if section is None else self.contents(section)

    @property
    def architecture(self) -> str:
        """What the header says: `x86_64` or `aarch64`."""
        return self.walk.header.architecture

    @cached_property
    def cmdline(self) -> bytes | None:
        """The command line, its first CMDLINE_READ_LIMIT bytes."""
        data = self._first(SectionType.CMDLINE)
        return None if data is None else bytes(data[:CMDLINE_READ_LIMIT])

    @cached_property
    def bootline(self) -> BootLine:
        """The command line's parameters; none when there is no command line."""
        return parse_bootline(self.cmdline or b"")

    @cached_property
    def kernel_data(self) -> memoryview | None:
        """The Kernel section's data."""
        return self._first(SectionType.KERNEL)

    @cached_property
    def kernel(self) -> KernelImage | None:
        """The kernel looked into; None when there is none or `kernel_error` says why not."""
        if self.kernel_data is None:
            return None
        try:
            return read_kernel(self.kernel_data, self.architecture)
        except EifError as error:
            self.kernel_error = error
            return None

    @cached_property
    def ramdisks(self) -> tuple[WalkedSection, ...]:
        """The Ramdisk sections."""
        return self.view.of_type(SectionType.RAMDISK)

    @cached_property
    def filesystem(self) -> FileSystem | None:
        """The files of all ramdisks; None when there are none or `filesystem_error` says why not."""
        if not self.ramdisks:
            return None
        try:
            return read_filesystem(
                [self.contents(section) for section in self.ramdisks],
                bases=[section.data_offset for section in self.ramdisks],
                limits=self.limits,
            )
        except EifError as error:
            self.filesystem_error = error
            return None

    def node(self, path: str) -> Node | None:
        """What a path of the ramdisks leads to, symbolic links followed; None when it leads nowhere."""
        if self.filesystem is None:
            return None
        try:
            return self.filesystem.tree.lookup(path)
        except EifError:
            return None

    def file(self, path: str) -> bytes | None:
        """A small file's contents; None when there is none, or it has more than FILE_LIMIT bytes."""
        if path not in self._files:
            node = self.node(path)
            self._files[path] = None
            if node is not None and self.filesystem is not None:
                with contextlib.suppress(EifError):
                    self._files[path] = self.filesystem.read(node, limit=FILE_LIMIT)
        return self._files[path]

    @cached_property
    def modules(self) -> tuple[tuple[str, str], ...]:
        """Path, and name with underscores, of all files that are named like kernel modules."""
        if self.filesystem is None:
            return ()
        named = ((path, _MODULE_NAME.search(path)) for path, node in self.filesystem.tree.walk() if node.is_file)
        return tuple((path, match[1].replace("-", "_")) for path, match in named if match is not None)

    @cached_property
    def first_program(self) -> str:
        """The path of the program that the kernel starts from the ramdisk."""
        return self.bootline.last("rdinit") or "/init"

    @cached_property
    def has_application(self) -> bool:
        """Whether the ramdisks are laid out as nitro-cli does it: /cmd, /env, and the application in /rootfs."""
        return any(self.node(path) is not None for path in ("/cmd", ROOTFS))
