"""Layers onto a tree: whiteouts, links, owners, and names that want to leave it."""

from __future__ import annotations

import contextlib
import stat
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.build.layers import apply_layer
from enclavedbg.eif.build.tree import LINK_LIMIT, Tree
from enclavedbg.errors import EifError
from tests.eif.build.images import entry, listing, tar


def layered(*layers: bytes) -> tuple[Tree, list[str]]:
    tree, notes = Tree(), []
    for number, layer in enumerate(layers, start=1):
        apply_layer(tree, memoryview(layer), what=f"layer {number}", notes=notes)
    return tree, notes


def test_whiteouts_hide_the_layers_below_only() -> None:
    lower = tar(
        entry("etc", "folder"),
        entry("etc/passwd", data=b"old"),
        entry("etc/group", data=b"g"),
        entry("opt", "folder"),
        entry("opt/a", data=b"a"),
        entry("opt/deep", "folder"),
        entry("opt/deep/b", data=b"b"),
    )
    # Beside, and even behind, what its own layer puts there.
    upper = tar(
        entry("etc/passwd", data=b"new"),
        entry("etc/.wh.passwd"),
        entry("etc/.wh.group"),
        entry("opt/c", data=b"c"),
        entry("opt/.wh..wh..opq"),
        entry("none/.wh.file"),
        entry(".wh..wh.plnk/1"),
    )
    tree, _ = layered(lower, upper)
    assert listing(tree) == {"etc": None, "etc/passwd": b"new", "opt": None, "opt/c": b"c", ".wh..wh.plnk": None,
                             ".wh..wh.plnk/1": b""}  # fmt: skip


def test_a_whiteout_of_a_folder_takes_all_of_it() -> None:
    tree, _ = layered(tar(entry("a/b/c", data=b"1")), tar(entry(".wh.a")))
    assert listing(tree) == {}


def test_owners_and_modes_stay() -> None:
    tree, _ = layered(
        tar(
            entry("./", "folder", mode=0o700, owner=(5, 6)),
            entry("su", data=b"x", mode=0o4711, owner=(0, 42)),
            entry("home", "folder", mode=0o1777, owner=(1000, 100)),
            entry("pipe", "fifo", mode=0o600),
            entry("sh", "symlink", target="/bin/dash", owner=(7, 8)),
        )
    )
    assert (tree.root.mode, tree.root.uid, tree.root.gid) == (stat.S_IFDIR | 0o700, 5, 6)
    found = {path: (oct(node.mode), node.uid, node.gid) for path, node in tree.walk()}
    assert found == {
        "home": ("0o41777", 1000, 100),
        "pipe": ("0o10600", 0, 0),
        "sh": ("0o120777", 7, 8),
        "su": ("0o104711", 0, 42),
    }


def test_a_folder_again_changes_the_folder_and_a_file_replaces_it() -> None:
    lower = tar(entry("d", "folder"), entry("d/f", data=b"1"), entry("e", "folder"), entry("e/f"))
    tree, _ = layered(lower, tar(entry("d", "folder", mode=0o700), entry("e", data=b"file")))
    assert listing(tree) == {"d": None, "d/f": b"1", "e": b"file"}
    node = tree.find("d")
    assert node is not None and stat.S_IMODE(node.mode) == 0o700


def test_links_on_the_way_are_followed_inside() -> None:
    lower = tar(
        entry("usr/lib", "folder"),
        entry("lib", "symlink", target="usr/lib"),
        entry("abs", "symlink", target="/usr/lib"),
        entry("usr/up", "symlink", target="../usr/./lib"),
    )
    tree, _ = layered(lower, tar(entry("lib/a", data=b"a"), entry("abs/b", data=b"b"), entry("usr/up/c", data=b"c")))
    assert {path for path in listing(tree) if path.startswith("usr/lib/")} == {"usr/lib/a", "usr/lib/b", "usr/lib/c"}


def test_hard_links_are_one_file() -> None:
    tree, _ = layered(tar(entry("a", data=b"1", mode=0o600), entry("d/b", "link", target="a")))
    assert tree.find("a") is tree.find("d/b")
    # One of them goes, the other stays.
    tree, _ = layered(tar(entry("a", data=b"1"), entry("b", "link", target="./a")), tar(entry(".wh.a")))
    assert listing(tree) == {"b": b"1"}


def test_what_is_lost_is_said() -> None:
    tree, notes = layered(
        tar(
            entry("dev/null", "device"),
            entry("ping", data=b"x", pax={"SCHILY.xattr.security.capability": "\x01"}),
        )
    )
    assert listing(tree) == {"ping": b"x"}
    assert notes == [
        "dev/null is a device and was left out",
        "ping loses its capabilities, which a ramdisk cannot hold",
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("../evil")], r"'\.\.' in it"),
        ([entry("a/../../evil")], r"'\.\.' in it"),
        ([entry("/etc/passwd")], "absolute"),
        ([entry("a", "link", target="/etc/passwd")], "absolute"),
        ([entry("a", "link", target="../../etc/passwd")], r"'\.\.' in it"),
        ([entry("a", "link", target="b")], "nothing is"),
        ([entry("d", "folder"), entry("a", "link", target="d")], "a folder is"),
        ([entry("out", "symlink", target="../.."), entry("out/evil")], "out of the root folder"),
        ([entry("l", "symlink", target="l"), entry("l/x")], f"more than {LINK_LIMIT}"),
        ([entry("f"), entry("f/x")], "no folder"),
        ([entry("x" * 256)], "255 bytes"),
        ([entry("./", "file")], "root folder"),
        ([entry(".wh.")], "hides no file"),
        ([entry("a/.wh...")], "hides no file"),
        ([entry("../.wh.x")], r"'\.\.' in it"),
    ],
)
def test_hostile_names(entries: list[tuple[tarfile.TarInfo, bytes]], message: str) -> None:
    with pytest.raises(EifError, match=message) as caught:
        layered(tar(*entries))
    assert str(caught.value).startswith("layer 1: ") and "\n" not in str(caught.value)


def test_damaged_archives() -> None:
    whole = tar(entry("a", data=b"x" * 600), entry("b", data=b"y"))
    huge = bytearray(whole)
    huge[124:136] = b"77777777777\0"
    huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + 8 * 32 + sum(huge[156:512]))
    negative = bytearray(whole)
    negative[124:136] = b"\xff" * 11 + b"\x00"
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:512]))
    broken = bytearray(whole)
    broken[1536 + 5] ^= 1  # in b's header
    sparse = bytearray(whole)
    sparse[156] = ord("S")
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:512]))
    for data, message in [
        (bytes(huge), "are left|no sound tar"),
        (bytes(negative), "damaged|no sound tar"),
        (bytes(broken), "damaged after member 1"),
        (bytes(sparse), "sparse"),
        (whole[:700], "are left|no sound tar"),
        (b"not a tar archive" * 100, "no sound tar"),
    ]:
        with pytest.raises(EifError, match=message):
            layered(data)
    assert listing(layered(b"")[0]) == {}


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_mutated_layers_give_a_tree_or_our_error(data: st.DataObject) -> None:
    layer = bytearray(
        tar(
            entry("d", "folder"),
            entry("d/f", data=b"1" * 99, pax={"comment": "long"}),
            entry("d/l", "link", target="d/f"),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(layer) - 1))
        layer[at : at + 2] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(EifError):
        layered(bytes(layer))


NAMES = st.text("ab./~é", min_size=1, max_size=8)
MEMBERS = st.one_of(
    st.builds(entry, NAMES, st.just("file"), data=st.binary(max_size=3)),
    st.builds(entry, NAMES, st.just("folder")),
    st.builds(entry, NAMES, st.sampled_from(["symlink", "link"]), target=NAMES),
    st.builds(lambda name: entry(f"{name}/.wh.a"), NAMES),
)


@given(st.lists(st.lists(MEMBERS, max_size=5), max_size=3))
@settings(max_examples=80, deadline=None)
def test_any_members_stay_inside(layers: list[list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    with contextlib.suppress(EifError):
        tree, _ = layered(*(tar(*members) for members in layers))
        for path in listing(tree):
            assert not path.startswith("/") and ".." not in path.split("/")
