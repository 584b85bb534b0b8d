"""Container images as files: OCI image layouts and what `docker save` writes, without docker.

Sources: OCI image-spec (image-layout.md, image-index.md, manifest.md, config.md); Docker image specification v1.2 for
manifest.json. Every document and layer is checked against its digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from enclavedbg.eif.build.blobs import (
    Blobs,
    as_object,
    blob_path,
    check_digest,
    find,
    objects,
    open_blobs,
    parse_document,
    read_document,
    string,
    strings,
)
from enclavedbg.eif.build.layers import apply_layer
from enclavedbg.eif.build.tarball import uncompressed
from enclavedbg.eif.build.tree import Tree
from enclavedbg.errors import EifError

DEFAULT_LIMIT = 8 << 30
"""Bytes that archive and layers unpack to, each."""
LAYER_LIMIT = 1024
INDEX_DEPTH = 4
CANDIDATE_LIMIT = 1000
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

T = TypeVar("T")

_CONFIG_NAME = re.compile(r"(?:.*/|sha256:)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class Container:
    """A container image: its configuration, and its layers' bytes (perhaps compressed) in the order they apply.

    `image_id` is the configuration's SHA-256 in hex, `names` are those it goes by, `NAME:TAG`; `diff_ids` are the
    digests of the layers without compression. `limit` is the most bytes that its layers may unpack to.
    """

    source: str
    config: Mapping[str, object]
    image_id: str
    names: tuple[str, ...]
    layers: tuple[memoryview, ...]
    diff_ids: tuple[str, ...]
    limit: int

    @property
    def run_config(self) -> Mapping[str, object]:
        """The configuration's member `config`: what to run, and how."""
        return as_object(self.config.get("config") or {}, what=f"{self.source}: the image's configuration")

    def run_strings(self, name: str) -> list[str]:
        """An array of strings of `run_config`, empty when it is not there. Raises EifError."""
        return strings(self.run_config.get(name), what=f"{self.source}: {name} of the image's configuration")


def read_container(
    path: Path, *, tag: str | None = None, architecture: str = "x86_64", limit: int = DEFAULT_LIMIT
) -> Container:
    """The one image in an OCI layout (folder or archive) or `docker save` archive for an architecture.

    `tag` says which, where there are several. Raises EifError when there is none or more than one, when something
    is missing, damaged or malformed, and for an image of another architecture or operating system.
    """
    blobs = open_blobs(path, limit=limit)
    if blobs.find("oci-layout") is not None or blobs.find("index.json") is not None:
        container = _read_oci(blobs, tag=tag, architecture=architecture, limit=limit)
    elif blobs.find("manifest.json") is not None:
        container = _read_docker(blobs, tag=tag, limit=limit)
    else:
        raise EifError(
            f"{blobs.name} has neither index.json nor manifest.json; give an OCI image layout or what docker save wrote"
        )
    _check_platform(container, architecture)
    return container


def container_tree(container: Container) -> tuple[Tree, list[str]]:
    """The file system that the layers make, and notes on what of them cannot be in an image. Raises EifError."""
    tree = Tree()
    notes: list[str] = []
    left = container.limit
    for number, (layer, diff_id) in enumerate(zip(container.layers, container.diff_ids, strict=True), start=1):
        what = f"{container.source}: layer {number}"
        data = uncompressed(layer, limit=left, what=what)
        left -= len(data)
        check_digest(data, diff_id, what=f"{what}, uncompressed,")
        apply_layer(tree, data, what=what, notes=notes)
    return tree, notes


def _check_platform(container: Container, architecture: str) -> None:
    stated = container.config.get("architecture")
    found = ARCHITECTURES.get(stated, stated) if isinstance(stated, str) else stated
    if found != architecture:
        raise EifError(f"{container.source} is an image for {stated}, the kernel is for {architecture}; use one for it")
    system = container.config.get("os")
    if system != "linux":
        raise EifError(f"{container.source} is an image for {system}, an enclave runs linux; build it for that")


def _container(
    blobs: Blobs, config: memoryview, names: list[str], layers: list[memoryview], *, limit: int
) -> Container:
    if len(layers) > LAYER_LIMIT:
        raise EifError(f"{blobs.name} has {len(layers)} layers, at most {LAYER_LIMIT} are read")
    what = f"{blobs.name}: the image's configuration"
    document = as_object(parse_document(blobs, config, "the image's configuration"), what=what)
    root = as_object(document.get("rootfs") or {}, what=f"{what}: rootfs")
    diff_ids = strings(root.get("diff_ids"), what=f"{what}: diff_ids")
    if len(diff_ids) != len(layers):
        raise EifError(f"{what} lists {len(diff_ids)} layers, the manifest {len(layers)}; save the image again")
    image_id = hashlib.sha256(config).hexdigest()
    return Container(blobs.name, document, image_id, tuple(names), tuple(layers), tuple(diff_ids), limit)


# --- docker save, before it wrote OCI image layouts


def _read_docker(blobs: Blobs, *, tag: str | None, limit: int) -> Container:
    what = f"{blobs.name}: manifest.json"
    images = objects(parse_document(blobs, find(blobs, "manifest.json"), "manifest.json"), what=what)
    named = [(image, strings(image.get("RepoTags"), what=f"{what}: RepoTags")) for image in images]
    image, names = _only(blobs, [(image, names) for image, names in named if _has_name(names, tag)], tag, named)
    path = string(image.get("Config"), what=f"{what}: Config")
    match = _CONFIG_NAME.fullmatch(path)
    config = find(blobs, path, digest=f"sha256:{match[1]}" if match else None)
    layers = [find(blobs, layer) for layer in strings(image.get("Layers"), what=f"{what}: Layers")]
    return _container(blobs, config, names, layers, limit=limit)


# --- OCI image layout


@dataclass(frozen=True, slots=True)
class _Candidate:
    descriptor: Mapping[str, object]
    names: list[str]


def _read_oci(blobs: Blobs, *, tag: str | None, architecture: str, limit: int) -> Container:
    index = read_document(blobs, "index.json")
    found: dict[str, _Candidate] = {}
    _collect(blobs, index, [], found, depth=0)
    every = [(candidate, candidate.names) for candidate in found.values()]
    fitting = [(c, names) for c, names in every if _has_name(names, tag)]
    if len(fitting) > 1:
        # Those of other architectures, which often are not even in the archive.
        fitting = [(c, names) for c, names in fitting if _is_for(c.descriptor, architecture)] or fitting
    candidate, names = _only(blobs, fitting, tag, every)
    manifest = as_object(parse_document(blobs, _blob(blobs, candidate.descriptor), "the manifest"), what="the manifest")
    what = f"{blobs.name}: the manifest"
    config = _blob(blobs, as_object(manifest.get("config"), what=f"{what}: config"))
    layers = []
    for descriptor in objects(manifest.get("layers"), what=f"{what}: layers"):
        kind = string(descriptor.get("mediaType"), what=f"{what}: mediaType")
        if ".tar" not in kind:
            raise EifError(f"{what} has a layer of type {kind[:80]!r}, expected a tar archive; this is no such image")
        layers.append(_blob(blobs, descriptor))
    return _container(blobs, config, names, layers, limit=limit)


def _collect(
    blobs: Blobs, index: Mapping[str, object], names: list[str], found: dict[str, _Candidate], *, depth: int
) -> None:
    """Every manifest below an index by its digest, with the names that it and the indexes above it have."""
    if depth > INDEX_DEPTH:
        raise EifError(f"{blobs.name} nests indexes more than {INDEX_DEPTH} deep; save the image again")
    for descriptor in objects(index.get("manifests"), what=f"{blobs.name}: manifests"):
        own = names + [name for name in _names(descriptor) if name not in names]
        digest = string(descriptor.get("digest"), what=f"{blobs.name}: digest")
        kind = descriptor.get("mediaType")
        if isinstance(kind, str) and ("image.index" in kind or "manifest.list" in kind):
            child = as_object(parse_document(blobs, _blob(blobs, descriptor), "an index"), what="an index")
            _collect(blobs, child, own, found, depth=depth + 1)
            continue
        if _is_attestation(descriptor):
            continue
        known = found.get(digest)
        found[digest] = _Candidate(descriptor, list(dict.fromkeys([*(known.names if known else ()), *own])))
        if len(found) > CANDIDATE_LIMIT:
            raise EifError(f"{blobs.name} has more than {CANDIDATE_LIMIT} images; save the one that you want")


def _blob(blobs: Blobs, descriptor: Mapping[str, object]) -> memoryview:
    digest = string(descriptor.get("digest"), what=f"{blobs.name}: digest")
    data = find(blobs, blob_path(digest), digest=digest)
    if descriptor.get("size") != len(data):
        raise EifError(
            f"{blobs.name}: {digest} has {len(data)} bytes, expected {descriptor.get('size')}; fetch it again"
        )
    return data


def _annotations(descriptor: Mapping[str, object]) -> Mapping[str, object]:
    return as_object(descriptor.get("annotations") or {}, what="annotations")


def _platform(descriptor: Mapping[str, object]) -> Mapping[str, object]:
    return as_object(descriptor.get("platform") or {}, what="platform")


def _names(descriptor: Mapping[str, object]) -> list[str]:
    """The full name that containerd gives, before what the OCI specification has, which may be a tag only."""
    annotations = _annotations(descriptor)
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    return [value for key in keys if isinstance(value := annotations.get(key), str)]


def _is_attestation(descriptor: Mapping[str, object]) -> bool:
    """What BuildKit puts beside an image: no image."""
    return "vnd.docker.reference.type" in _annotations(descriptor) or _platform(descriptor).get("os") == "unknown"


def _is_for(descriptor: Mapping[str, object], architecture: str) -> bool:
    stated = _platform(descriptor).get("architecture")
    return stated is None or (isinstance(stated, str) and ARCHITECTURES.get(stated) == architecture)


# --- choosing


def _has_name(names: list[str], tag: str | None) -> bool:
    wanted = () if tag is None else (tag, f"{tag}:latest")
    return tag is None or any(name == w or name.endswith(f"/{w}") for name in names for w in wanted)


def _only(
    blobs: Blobs, fitting: list[tuple[T, list[str]]], tag: str | None, every: list[tuple[T, list[str]]]
) -> tuple[T, list[str]]:
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted({name[:80] for _, names in every for name in names})[:20]) or "images without names"
    if not every:
        raise EifError(f"{blobs.name} has no image in it; save or copy it again")
    if not fitting:
        raise EifError(f"{blobs.name} has no image {tag!r}, it has {known}; name one of them")
    raise EifError(f"{blobs.name} has {len(fitting)} images that fit: {known}; name one of them with --tag")
