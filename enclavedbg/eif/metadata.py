"""The Metadata section as nitro-cli writes it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from enclavedbg import __version__
from enclavedbg.errors import EifError


def build_metadata(
    *,
    name: str,
    version: str,
    build_time: datetime,
    build_tool: str = "enclavedbg",
    build_tool_version: str = __version__,
    operating_system: str = "Linux",
    kernel_version: str = "Unknown",
    docker_info: object = None,
    custom: object = None,
) -> dict[str, object]:
    """The members in nitro-cli's order, for `write_eif`; equal arguments give equal bytes.

    `build_time` must be aware; `docker_info` and `custom` are any JSON values, whose keys come out sorted.
    """
    if build_time.tzinfo is None:
        raise EifError("the build time has no time zone; give an aware datetime")
    return {
        "ImageName": name,
        "ImageVersion": version,
        "BuildMetadata": {
            "BuildTime": build_time.astimezone(UTC).isoformat(),
            "BuildTool": build_tool,
            "BuildToolVersion": build_tool_version,
            "OperatingSystem": operating_system,
            "KernelVersion": kernel_version,
        },
        "DockerInfo": sorted_members(docker_info),
        "CustomMetadata": sorted_members(custom),
    }


def sorted_members(value: object) -> object:
    """The value with the keys of every object in it sorted, as the reference tool's JSON library leaves them."""
    if isinstance(value, Mapping):
        return {key: sorted_members(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [sorted_members(item) for item in value]
    return value
