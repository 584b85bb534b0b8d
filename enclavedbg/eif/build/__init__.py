"""Builds enclave images: from parts, from a folder, from a container image; equal inputs give equal bytes."""

from __future__ import annotations

from enclavedbg.eif.build.boot import Boot, gather_boot
from enclavedbg.eif.build.builders import About, Built, build_from_container, build_from_folder, build_from_parts
from enclavedbg.eif.build.command import encode_command, encode_environment
from enclavedbg.eif.build.container import Container, container_tree, read_container
from enclavedbg.eif.build.docker import docker_info, run_command, run_environment
from enclavedbg.eif.build.folder import read_folder
from enclavedbg.eif.build.image import write_image
from enclavedbg.eif.build.ramdisk import application_ramdisk, archive, bootstrap_ramdisk
from enclavedbg.eif.build.tree import Tree

__all__ = [
    "About",
    "Boot",
    "Built",
    "Container",
    "Tree",
    "application_ramdisk",
    "archive",
    "bootstrap_ramdisk",
    "build_from_container",
    "build_from_folder",
    "build_from_parts",
    "container_tree",
    "docker_info",
    "encode_command",
    "encode_environment",
    "gather_boot",
    "read_container",
    "read_folder",
    "run_command",
    "run_environment",
    "write_image",
]
