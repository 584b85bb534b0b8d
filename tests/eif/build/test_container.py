"""Container images in every form, and what is wrong with some of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.build.container import container_tree, read_container
from enclavedbg.eif.build.docker import docker_info, image_name, repo_tags, run_command, run_environment, run_notes
from enclavedbg.errors import EifError
from tests.eif.build.images import (
    COMPRESSORS,
    Image,
    as_archive,
    as_folder,
    both_files,
    docker_files,
    dump,
    entry,
    listing,
    oci_files,
    sha256,
    tar,
)

LAYERS = (
    tar(entry("bin", "folder"), entry("bin/app", data=b"program" * 500, mode=0o755), entry("tmp/x", data=b"x")),
    tar(entry("tmp/.wh.x"), entry("etc/conf", data=b"c")),
)
IMAGE = Image(LAYERS)
FILES = {"bin": None, "bin/app": b"program" * 500, "etc": None, "etc/conf": b"c", "tmp": None}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("write", [as_folder, as_archive])
def test_oci_image_layout(tmp_path: Path, write: Callable[[Mapping[str, bytes], Path], Path], compression: str) -> None:
    container = read_container(write(oci_files(IMAGE, compression=compression), tmp_path / "image"))
    tree, notes = container_tree(container)
    assert listing(tree) == FILES
    assert notes == []
    assert container.image_id == sha256(IMAGE.config).removeprefix("sha256:")
    assert repo_tags(container) == ["app:1.2"]


@pytest.mark.parametrize("files", [docker_files(IMAGE), both_files(IMAGE)], ids=["old", "new"])
@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=["tar", "gzip", "zstd"])
def test_docker_save(tmp_path: Path, files: dict[str, bytes], compress: Callable[[bytes], bytes]) -> None:
    archive = as_archive(files, tmp_path / "app.tar")
    archive.write_bytes(compress(archive.read_bytes()))
    container = read_container(archive)
    assert listing(container_tree(container)[0]) == FILES
    assert image_name(container) == "app"
    assert run_command(container) == ["/app", "-v"]
    assert run_environment(container) == {"A": "1", "B": "x=y"}


def test_equal_layers_that_docker_links(tmp_path: Path) -> None:
    image = Image([LAYERS[0]])
    files = docker_files(image)
    manifest = json.loads(files["manifest.json"])
    path = manifest[0]["Layers"][0]
    entries = [entry(name, data=data) for name, data in files.items() if name != path]
    entries += [entry("other/layer.tar", data=LAYERS[0]), entry(path, "symlink", target="../other/layer.tar")]
    (tmp_path / "a.tar").write_bytes(tar(*entries))
    assert "bin/app" in listing(container_tree(read_container(tmp_path / "a.tar"))[0])
    entries[-1] = entry(path, "symlink", target="../../outside")
    (tmp_path / "a.tar").write_bytes(tar(*entries))
    with pytest.raises(EifError, match=r"'\.\.' in it"):
        read_container(tmp_path / "a.tar")


def test_several_streams_in_one_layer_and_frames_without_contents(tmp_path: Path) -> None:
    layer = LAYERS[0]
    halves = layer[:1000], layer[1000:]
    for compression, blob in [
        ("+gzip", b"".join(gzip.compress(half, mtime=0) for half in halves) + bytes(100)),
        (
            "+zstd",
            b"\x50\x2a\x4d\x18\x03\0\0\0abc" + b"".join(COMPRESSORS["+zstd"](h) for h in halves),
        ),
    ]:
        files = _replaced_layer(oci_files(Image([layer]), compression=compression), blob)
        assert "bin/app" in listing(container_tree(read_container(as_folder(files, tmp_path / compression)))[0])


def _replaced_layer(files: dict[str, bytes], blob: bytes) -> dict[str, bytes]:
    """The files of a layout with another blob for the one layer, and everything that names it."""
    index = json.loads(files["index.json"])
    manifest = json.loads(files["blobs/" + index["manifests"][0]["digest"].replace(":", "/")])
    manifest["layers"][0] |= {"digest": sha256(blob), "size": len(blob)}
    data = dump(manifest)
    index["manifests"][0] |= {"digest": sha256(data), "size": len(data)}
    changed = {"blobs/" + sha256(item).replace(":", "/"): item for item in (blob, data)}
    return {**files, **changed, "index.json": dump(index)}


def test_one_of_several(tmp_path: Path) -> None:
    arm = Image(LAYERS, architecture="arm64")
    other = Image(LAYERS[:1], name="docker.io/me/other:latest")
    path = as_folder(oci_files(IMAGE, arm, other), tmp_path / "layout")
    assert read_container(path, tag="app:1.2").config["architecture"] == "amd64"
    assert read_container(path, tag="app:1.2", architecture="aarch64").config["architecture"] == "arm64"
    assert len(read_container(path, tag="me/other").layers) == 1
    with pytest.raises(EifError, match=r"2 images that fit: .*app:1\.2, .*other:latest; name one"):
        read_container(path)
    with pytest.raises(EifError, match="no image 'x', it has"):
        read_container(path, tag="x")
    archive = as_archive(docker_files(IMAGE, other), tmp_path / "two.tar")
    assert len(read_container(archive, tag="app:1.2").layers) == 2
    with pytest.raises(EifError, match="2 images that fit"):
        read_container(archive)


def test_indexes_in_indexes_with_attestations(tmp_path: Path) -> None:
    files = oci_files(IMAGE)
    inner = json.loads(files["index.json"])
    attestation = dict(inner["manifests"][0], digest="sha256:" + "0" * 64, platform={"os": "unknown"})
    arm = dict(attestation, digest="sha256:" + "1" * 64, platform={"os": "linux", "architecture": "arm64"})
    inner["manifests"] += [attestation, arm]  # their blobs are not there
    data = dump(inner)
    files["blobs/" + sha256(data).replace(":", "/")] = data
    outer = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": sha256(data), "size": len(data)}
    files["index.json"] = dump({"manifests": [outer]})
    assert listing(container_tree(read_container(as_folder(files, tmp_path / "x")))[0]) == FILES


def test_command_is_nitro_clis_choice_and_surprises_are_said(tmp_path: Path) -> None:
    def container(**run: object) -> tuple[list[str], list[str]]:
        path = as_archive(docker_files(Image(LAYERS, run=run)), tmp_path / "a.tar")
        image = read_container(path)
        return run_command(image), run_notes(image)

    assert container(Cmd=["a"], Entrypoint=None) == (["a"], [])
    assert container(Cmd=None, Entrypoint=["e", "f"]) == (["e", "f"], [])
    command, notes = container(Cmd=["a"], Entrypoint=["e"], WorkingDir="/srv", User="me")
    assert command == ["a"]
    assert 'only Cmd runs, ["a"]; docker would run ["e", "a"]' in notes[0]
    assert "WorkingDir '/srv'" in notes[1] and "User 'me'" in notes[2]
    with pytest.raises(EifError, match="neither Cmd nor Entrypoint"):
        container()
    with pytest.raises(EifError, match="not an array of strings"):
        container(Cmd="a")


def test_docker_info(tmp_path: Path) -> None:
    info = docker_info(read_container(as_archive(docker_files(IMAGE), tmp_path / "a.tar")))
    assert info == {
        "Id": sha256(IMAGE.config),
        "RepoTags": ["app:1.2"],
        "RepoDigests": [],
        "Parent": "",
        "Comment": "",
        "Created": "2024-05-06T07:08:09.123456789Z",
        "DockerVersion": "",
        "Author": "someone",
        "Config": {"Cmd": ["/app", "-v"], "Env": ["A=1", "B=x=y"]},
        "Architecture": "amd64",
        "Os": "linux",
        "RootFS": {"Type": "layers", "Layers": [sha256(layer) for layer in LAYERS]},
    }


def test_wrong_platform(tmp_path: Path) -> None:
    with pytest.raises(EifError, match="image for arm64, the kernel is for x86_64"):
        read_container(as_archive(docker_files(Image(LAYERS, architecture="arm64")), tmp_path / "a.tar"))
    with pytest.raises(EifError, match="image for windows"):
        read_container(as_archive(oci_files(Image(LAYERS, os="windows")), tmp_path / "b.tar"))


def test_every_file_is_needed_and_checked(tmp_path: Path) -> None:
    for number, files in enumerate((docker_files(IMAGE), oci_files(IMAGE), both_files(IMAGE))):
        for name in files.keys() - {"oci-layout", "manifest.json"}:
            less = {other: data for other, data in files.items() if other != name}
            changed = files | {name: files[name][:-9] + b"x" + files[name][-8:]}
            # The index itself has no digest; what it names has.
            for variant in (less,) if name == "index.json" else (less, changed):
                path = as_archive(variant, tmp_path / f"{number}.tar")
                with pytest.raises(EifError) as caught:
                    container_tree(read_container(path))
                assert "\n" not in str(caught.value)


def test_layers_have_a_limit_together(tmp_path: Path) -> None:
    zeros = tar(entry("zeros", data=bytes(3_000_000)))
    for compression in COMPRESSORS:
        path = as_folder(oci_files(Image([zeros, LAYERS[0]]), compression=compression), tmp_path / f"x{compression}")
        assert container_tree(read_container(path, limit=3_100_000))
        with pytest.raises(EifError, match=r"layer 2.* (more than|at most)"):
            container_tree(read_container(path, limit=len(zeros) + 100))
        with pytest.raises(EifError, match=r"layer 1.* (more than|at most)"):
            container_tree(read_container(path, limit=2_000_000))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("index.json", b"[]", "expected an object"),
        ("index.json", b'{"manifests":{}}', "expected an array"),
        ("index.json", b'{"manifests":[]}', "no image in it"),
        ("index.json", b'{"manifests":[{"digest":"sha256:../../etc/passwd"}]}', "no digest"),
        ("index.json", b'{"manifests":[{"digest":7}]}', "expected a string"),
        ("index.json", b"[" * 5000, "not JSON|deep"),
        ("index.json", b'{"a":' + b"[" * 80 + b"]" * 80 + b"}", "64 deep"),
        ("index.json", b'{"manifests":NaN}', "not JSON"),
        ("index.json", b"\xff", "not JSON"),
    ],
)
def test_malformed_documents(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(EifError, match=message):
        read_container(as_folder(oci_files(IMAGE) | {name: data}, tmp_path / "x"))


@pytest.mark.parametrize("path", ["/".join(["x" * 200] * 40), "\ud800", "a\0b", "../../etc/passwd", "/etc/passwd", ""])
def test_paths_in_documents(tmp_path: Path, path: str) -> None:
    files = {"manifest.json": dump([{"Config": path, "Layers": []}])}
    for number, image in enumerate((as_folder(files, tmp_path / "x"), as_archive(files, tmp_path / "x.tar"))):
        with pytest.raises(EifError) as caught:
            read_container(image)
        assert "\n" not in str(caught.value), number


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EifError, match="has neither"):
        read_container(tmp_path / "empty")
    with pytest.raises(EifError, match="cannot read"):
        read_container(tmp_path / "none")
    (tmp_path / "noise").write_bytes(b"noise" * 200)
    with pytest.raises(EifError, match="no sound tar"):
        read_container(tmp_path / "noise")
    (tmp_path / "slip.tar").write_bytes(tar(entry("../manifest.json", data=b"[]")))
    with pytest.raises(EifError, match=r"'\.\.' in it"):
        read_container(tmp_path / "slip.tar")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["manifests", "digest", "size", "mediaType", "annotations", "platform", "Config", "Layers", "RepoTags",
             "config", "layers", "rootfs", "diff_ids", "architecture", "os"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@given(value=JSON, name=st.sampled_from(["index.json", "manifest.json"]), named=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_document_gives_an_image_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, value: object, name: str, named: bool
) -> None:
    path = tmp_path_factory.mktemp("x") / "a.tar"
    with pytest.raises(EifError) as caught:
        read_container(as_archive({name: dump([value] if named else value)}, path))
    assert "\n" not in str(caught.value)
