"""Ramdisks listed and read as Linux unpacks them: any mixture of archives, links, replacements, limits, damage."""

from __future__ import annotations

import contextlib
import gzip
import stat
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.filesystem import FileSystem, Limits, Missing, read_filesystem, read_ramdisk
from enclavedbg.errors import EifError
from tests.eif.test_compression import COMPRESSORS

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def folder(name: str, mode: int = DIRECTORY, **more: int) -> CpioEntry:
    return CpioEntry(name, mode, **more)  # type: ignore[arg-type]


def file(name: str, data: bytes = b"", mode: int = FILE, **more: int) -> CpioEntry:
    return CpioEntry(name, mode, data, **more)  # type: ignore[arg-type]


def link(name: str, target: str) -> CpioEntry:
    return CpioEntry(name, LINK, target.encode())


def unpacked(*entries: CpioEntry) -> FileSystem:
    return read_filesystem([write_newc(entries)])


def paths(system: FileSystem) -> list[str]:
    return [path for path, _ in system.tree.walk()]


def reasons(system: FileSystem) -> str:
    return "\n".join(f"{p.entry.name if p.entry else ''}: {p.why}" for p in system.tree.problems)


@pytest.mark.parametrize("name", [None, *sorted(COMPRESSORS)])
def test_entries_with_all_their_fields_and_contents(name: str | None) -> None:
    plain = write_newc(
        [
            folder("dev", uid=1, gid=2, mtime=3),
            CpioEntry("dev/null", stat.S_IFCHR | 0o666, rdev=(1, 3)),
            file("big", bytes(range(256)) * 9000, ino=77),
            link("sh", "busybox"),
            file("after", b"tail"),
        ]
    )
    system = read_filesystem([plain if name is None else COMPRESSORS[name](plain)])
    (ramdisk,) = system.ramdisks
    (archive,) = ramdisk.archives
    assert archive.compression == (name and name.removesuffix("-unsized"))
    assert (archive.unpacked, archive.entries, archive.trailers) == (len(plain), 5, 1)
    assert archive.size == len(ramdisk.data)
    dev, null, big, sh, after = ramdisk.entries
    assert (dev.uid, dev.gid, dev.mtime, dev.mode) == (1, 2, 3, DIRECTORY)
    assert (null.rdev, big.ino, big.size, sh.target, after.order) == ((1, 3), 77, 256 * 9000, "busybox", 4)
    assert b"".join(ramdisk.contents(big)) == bytes(range(256)) * 9000
    assert system.read("/after") == b"tail"
    heads = system.read_many([system.tree.lookup(p) for p in ("/big", "/after")], head=3)
    assert sorted(heads.values()) == [b"\0\1\2", b"tai"]


def test_archives_behind_each_other_and_zeros_anywhere() -> None:
    one, two, three = (write_newc([file(name, name.encode())]) for name in ("a", "b", "c"))
    (ramdisk,) = read_filesystem([bytes(8) + one + gzip.compress(two) + bytes(5) + COMPRESSORS["xz"](three)]).ramdisks
    assert [(a.compression, a.entries) for a in ramdisk.archives] == [(None, 1), ("gzip", 1), ("xz", 1)]
    assert [b"".join(ramdisk.contents(e)) for e in ramdisk.entries] == [b"a", b"b", b"c"]
    assert [e.scope for e in ramdisk.entries] == [0, 1, 2]
    # Linux needs no trailer, and several archives may lie in one stream.
    untrailed = one[: one.index(b"070701", 6)]
    (ramdisk,) = read_filesystem([untrailed + gzip.compress(two + bytes(512) + three)]).ramdisks
    assert [(a.entries, a.trailers) for a in ramdisk.archives] == [(1, 0), (2, 2)]
    assert b"".join(ramdisk.contents(ramdisk.entries[2])) == b"c"


def test_parameters_of_compression() -> None:
    data = write_newc([file("a", bytes(5000))])

    def found(packed: bytes) -> dict[str, int | str]:
        return read_ramdisk(packed).archives[0].parameters

    assert found(gzip.compress(data, mtime=9))["mtime"] == 9
    assert found(gzip.compress(data, 9))["effort"] == "best"
    assert found(COMPRESSORS["xz"](data)) == {"check": "crc32", "dictionary": 8 << 20, "filters": "lzma2"}
    assert found(COMPRESSORS["bzip2"](data)) == {"block_size": 900_000}
    assert found(COMPRESSORS["lzma"](data)) == {"lc": 3, "lp": 0, "pb": 2, "dictionary": 8 << 20}
    assert found(COMPRESSORS["zstd"](data)) == {"checksum": "no", "content_size": len(data)}
    assert found(COMPRESSORS["zstd-unsized"](data))["window"] == 2 << 20
    assert int(found(COMPRESSORS["lz4"](data))["first_block"]) > 0
    assert found(data) == {}


def test_later_ramdisks_replace_what_earlier_ones_made() -> None:
    first = write_newc(
        [folder("etc"), file("etc/a", b"old", mode=FILE | 0o111), file("etc/b", b"kept"), link("c", "x")]
    )
    second = write_newc([file("etc/a", b"newer", uid=5), folder("c"), file("c/d", b"!")])
    system = read_filesystem([first, gzip.compress(second)])
    node = system.tree.lookup("/etc/a")
    assert (node.size, node.uid, node.is_executable, node.entry and node.entry.ramdisk) == (5, 5, False, 1)
    assert [system.read(p) for p in ("/etc/a", "/etc/b", "/c/d")] == [b"newer", b"kept", b"!"]
    assert not system.tree.problems


def test_what_the_kernel_has_already() -> None:
    assert paths(read_filesystem([])) == ["/", "/dev", "/dev/console", "/root"]
    system = unpacked(file("dev/x"), file("init", b"#!"))
    assert system.tree.lookup("/dev/console").rdev == (5, 1)
    assert system.tree.lookup("/dev/console").entry is None
    assert system.tree.exists("/dev/x") and not system.tree.exists("/nothing")


def test_hard_links_share_their_contents_within_an_archive() -> None:
    shared = write_newc([file("a", ino=9, nlink=2), file("b", b"data", ino=9, nlink=2)])
    again = write_newc([file("c", b"other", ino=9, nlink=2)])
    system = read_filesystem([shared + again])
    assert system.tree.lookup("/a") is system.tree.lookup("/b")
    assert (system.read("/a"), system.tree.lookup("/a").links) == (b"data", 2)
    assert system.read("/c") == b"other"
    # An entry of the same type writes into the inode, through all its names.
    system = read_filesystem([shared, write_newc([file("b", b"now")])])
    assert system.read("/a") == b"now"


def test_what_linux_passes_over() -> None:
    system = unpacked(
        file("no/parent"),
        folder("full"),
        file("full/x"),
        file("full", b"not a file"),
        file("n" * 256),
        CpioEntry("odd", 0o644),
        CpioEntry("fat", DIRECTORY, b"contents"),
        file("slash/"),
        link("empty", ""),
        file("one", ino=1, nlink=2),
        folder("one"),
        file("two", ino=1, nlink=2),
        folder("."),
        folder("/abs"),
        folder("../../up"),
    )
    assert paths(system) == ["/", "/abs", "/dev", "/dev/console", "/full", "/full/x", "/one", "/root", "/up"]
    for expected in (
        "no/parent: there is no 'no'", "full: a directory that is not empty", "more than 255 bytes",
        "odd: type 0o0 is unknown", "fat: it has contents", "slash/: the name is a directory's", "empty: a symbolic",
        "two: hard link to 'one': a directory",
    ):  # fmt: skip
        assert expected in reasons(system)


def test_links_are_followed_as_in_the_enclave() -> None:
    system = unpacked(
        folder("usr"), folder("usr/bin"), link("bin", "usr/bin"), file("bin/sh", b"shell"), link("up", "../../usr"),
        folder("rootfs"), link("rootfs/sh", "/bin/sh"), folder("rootfs/bin"), file("rootfs/bin/sh", b"inner"),
        link("loop", "loop"), link("usr/abs", "/usr/bin/sh"),
    )  # fmt: skip
    assert system.read("/usr/bin/sh") == system.read("/up/bin/sh") == system.read("/usr/abs") == b"shell"
    assert system.read("/rootfs/sh") == b"shell"
    assert system.read("/sh", root="/rootfs") == system.read("/../bin/sh", root="/rootfs") == b"inner"
    assert system.tree.lookup("/bin", follow=False).target == "usr/bin"
    for path, problem in (("/loop", "levels"), ("/bin/sh/x", "not a directory"), ("/x", "no 'x'"), ("/init/", "no")):
        with pytest.raises(Missing, match=problem):
            system.tree.lookup(path)
    with pytest.raises(EifError, match="is a directory, expected a regular file"):
        system.read("/usr")
    with pytest.raises(EifError, match="at most 2"):
        system.read("/bin/sh", limit=2)


def test_dots_and_slashes_at_the_end_want_a_directory() -> None:
    system = unpacked(
        CpioEntry("pipe", stat.S_IFIFO | 0o600), file("pipe/."), folder("real"), link("linked", "real"),
        folder("linked/", uid=8), link("shut", "pipe/"), link("none", "gone"), folder("none/"), file("linked/."),
    )  # fmt: skip
    assert system.tree.lookup("/linked", follow=False).is_symlink and system.tree.lookup("/real").uid == 8
    assert system.tree.lookup("/pipe").mode == stat.S_IFIFO | 0o600
    assert not system.tree.exists("/shut") and not system.tree.exists("/pipe/.")
    assert "pipe/.: not a directory" in reasons(system) and "none/: a symbolic link is in its place" in reasons(system)


def test_a_plain_archive_at_an_odd_place_of_the_whole() -> None:
    packed = gzip.compress(write_newc([file("a")]), mtime=0)
    packed += bytes(1) * (len(packed) % 4 == 0)
    plain = write_newc([file("b")])
    system = read_filesystem([packed, plain])
    assert "no multiple of 4" in reasons(system) and not system.tree.exists("/b")
    padded = packed + bytes(-len(packed) % 4)
    assert read_filesystem([padded, plain]).tree.exists("/b")


def test_damage_and_limits_are_named() -> None:
    plain = write_newc([file("a", b"x" * 5000), file("b")])
    for data, message in [
        (b"rubbish", "ramdisk 0, archive 0 at byte 0x0 of it: neither a cpio archive"),
        (plain[:60], "ends inside the header"),
        (plain[:3000], "'a' at byte 0x0 of the archive needs 21"),
        (plain + b"\1" + plain, "neither a cpio"),
        (plain + bytes(2) + plain, "neither a cpio"),
        (gzip.compress(plain)[:-9], "gzip data is damaged"),
        (gzip.compress(plain + b"x"), "after unpacking"),
        (gzip.compress(plain[:500]), "more than there are"),
        (b"070707" + plain[6:], "expected 070701"),
        (plain[:110] + b"aa" + plain[112:], "does not end in NUL"),
        (plain[:14] + b"zz" + plain[16:], "not in hex digits"),
    ]:
        with pytest.raises(EifError, match=message) as caught:
            read_filesystem([data], bases=[1000])
        assert caught.value.offset is not None and caught.value.offset >= 1000
    for limits, message in [
        (Limits(unpacked=4000), "more than the 4000 bytes"),
        (Limits(entries=1), "more than 1 entries"),
        (Limits(archives=0), "more than 0 archives"),
        (Limits(text=1), "more than 1 bytes of names"),
    ]:
        with pytest.raises(EifError, match=message):
            read_filesystem([gzip.compress(plain)], limits=limits)


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_memory_stays_small_whatever_the_ramdisk_unpacks_to(name: str) -> None:
    packed = COMPRESSORS[name](write_newc([file("zeros", bytes(48 << 20)), file("end", b"!")]))
    tracemalloc.start()
    try:
        system = read_filesystem([packed])
        assert system.read("/end") == b"!"
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_tangled_links_end() -> None:
    entries = [link("l0", "."), *(link(f"l{n}", f"l{n - 1}/" * 200) for n in range(1, 40))]
    with pytest.raises(EifError, match="tangled"):
        unpacked(*entries, *(file("l39/" + "l39/" * 900 + str(n)) for n in range(2000)))


NAMES = st.text(st.sampled_from("ab/."), min_size=1, max_size=8)
ENTRIES = st.builds(
    CpioEntry,
    name=NAMES,
    mode=st.sampled_from([FILE, DIRECTORY, LINK, stat.S_IFCHR | 0o600, 0]),
    data=st.sampled_from([b"", b"a", b"..", b"/", b"a/b", b"../../a", b"contents"]),
    nlink=st.integers(0, 3),
    ino=st.integers(1, 2),
)


@given(st.lists(st.lists(ENTRIES, max_size=12), max_size=3), st.sampled_from(["gzip", "lz4", None]))
@settings(max_examples=150, deadline=None)
def test_any_archives_make_a_sound_tree(archives: list[list[CpioEntry]], name: str | None) -> None:
    data = [write_newc(entries) for entries in archives]
    system = read_filesystem(data if name is None else [COMPRESSORS[name](d) for d in data])
    names: dict[int, int] = {}
    for path, node in system.tree.walk():
        assert system.tree.lookup(path, follow=False) is node
        names[id(node)] = names.get(id(node), 0) + 1
        assert node.is_directory or names[id(node)] <= node.links
        if node.is_file:
            assert len(system.read(node)) == node.size


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_list_or_our_error(entries: list[CpioEntry], packed: bool, data: st.DataObject) -> None:
    archive = bytearray(write_newc(entries))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    rest = data.draw(st.binary(max_size=20))
    with contextlib.suppress(EifError):
        system = read_filesystem([gzip.compress(archive) + rest if packed else bytes(archive) + rest])
        for path, node in system.tree.walk():
            assert path.startswith("/")
            if node.is_file:
                assert len(system.read(node)) == node.size
