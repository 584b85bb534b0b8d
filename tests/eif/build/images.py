"""Makes container images in code: layers, OCI image layouts, and both forms of what docker save writes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from enclavedbg.eif.build.tree import Tree

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
_TYPES = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


def entry(
    name: str,
    kind: str = "file",
    *,
    data: bytes = b"",
    target: str = "",
    mode: int | None = None,
    owner: tuple[int, int] = (0, 0),
    pax: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = _TYPES[kind]
    info.mode = mode if mode is not None else 0o755 if kind == "folder" else 0o644
    info.uid, info.gid = owner
    info.linkname = target
    info.size = len(data)
    info.mtime = 1234567890
    info.pax_headers = dict(pax or {})
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


@dataclass
class Image:
    """A container image to be written in any form."""

    layers: Sequence[bytes]
    run: Mapping[str, object] = field(default_factory=lambda: {"Cmd": ["/app", "-v"], "Env": ["A=1", "B=x=y"]})
    architecture: str = "amd64"
    os: str = "linux"
    name: str = "docker.io/library/app:1.2"
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def config(self) -> bytes:
        return dump(
            {
                "architecture": self.architecture,
                "os": self.os,
                "created": "2024-05-06T07:08:09.123456789Z",
                "author": "someone",
                "config": self.run,
                "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in self.layers]},
                "history": [],
                **self.extra,
            }
        )


def oci_files(*images: Image, compression: str = "+gzip") -> dict[str, bytes]:
    """The files of an OCI image layout."""
    files = {"oci-layout": dump({"imageLayoutVersion": "1.0.0"})}
    manifests = []

    def blob(data: bytes, kind: str) -> dict[str, object]:
        files["blobs/" + sha256(data).replace(":", "/")] = data
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    for image in images:
        manifest = {
            "schemaVersion": 2,
            "config": blob(image.config, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                blob(COMPRESSORS[compression](layer), f"application/vnd.oci.image.layer.v1.tar{compression}")
                for layer in image.layers
            ],
        }
        descriptor = blob(dump(manifest), "application/vnd.oci.image.manifest.v1+json")
        descriptor["platform"] = {"architecture": image.architecture, "os": image.os}
        descriptor["annotations"] = {"io.containerd.image.name": image.name}
        manifests.append(descriptor)
    files["index.json"] = dump({"schemaVersion": 2, "manifests": manifests})
    return files


def docker_files(*images: Image) -> dict[str, bytes]:
    """The files of an archive of docker save before version 25."""
    files = {}
    manifest = []
    for image in images:
        config = sha256(image.config).removeprefix("sha256:") + ".json"
        files[config] = image.config
        layers = []
        for layer in image.layers:
            path = sha256(layer + b"id").removeprefix("sha256:") + "/layer.tar"
            files[path] = layer
            layers.append(path)
        manifest.append(
            {"Config": config, "RepoTags": [image.name.removeprefix("docker.io/library/")], "Layers": layers}
        )
    files["manifest.json"] = dump(manifest)
    return files


def both_files(image: Image) -> dict[str, bytes]:
    """What docker save writes since version 25: an OCI image layout, and a manifest.json that names its blobs."""
    files = oci_files(image, compression="")
    manifest = {
        "Config": "blobs/" + sha256(image.config).replace(":", "/"),
        "RepoTags": ["app:1.2"],
        "Layers": ["blobs/" + sha256(layer).replace(":", "/") for layer in image.layers],
    }
    return {**files, "manifest.json": dump([manifest])}


def as_folder(files: Mapping[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def as_archive(files: Mapping[str, bytes], path: Path) -> Path:
    path.write_bytes(tar(*(entry(name, data=data) for name, data in files.items())))
    return path


def listing(tree: Tree) -> dict[str, bytes | None]:
    """Every path with its contents or target, None for folders."""
    return {
        path: None if node.children is not None else b"".join(bytes(piece) for piece in node.contents.pieces())
        for path, node in tree.walk()
    }
