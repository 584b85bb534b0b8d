"""What nitro-cli takes from a docker image besides its files: the command, the environment, and the metadata.

The DockerInfo of the metadata is what `docker inspect` says of the image, as far as the image itself knows it. Its
members: Id, RepoTags, RepoDigests (empty), Parent (empty), Comment, Created, DockerVersion, Author, Config (the
configuration's `config` as it is), Architecture, Variant (if there is one), Os, RootFS {Type, Layers}. What only a
docker daemon knows is left out: GraphDriver, Size, VirtualSize, Metadata, Container, ContainerConfig.
"""

from __future__ import annotations

import json
from datetime import datetime

from enclavedbg.eif.build.command import parse_environment
from enclavedbg.eif.build.container import Container
from enclavedbg.eif.build.image import TIME_MAX, parse_build_time
from enclavedbg.errors import EifError

_TEXTS = {"Comment": "comment", "Created": "created", "DockerVersion": "docker_version", "Author": "author"}
_ROOT_USERS = ("", "0", "root", "0:0", "root:root")


def run_command(container: Container) -> list[str]:
    """The words that nitro-cli runs: Cmd if there is one, else Entrypoint; never both. Raises EifError for neither."""
    words = container.run_strings("Cmd") or container.run_strings("Entrypoint")
    if not words:
        raise EifError(f"{container.source} has neither Cmd nor Entrypoint; name a command with --command")
    return words


def run_environment(container: Container) -> dict[str, str]:
    """The variables of the image's configuration, in its order. Raises EifError."""
    return parse_environment(container.run_strings("Env"))


def run_notes(container: Container, *, own_command: bool = False) -> list[str]:
    """Sentences on what docker would do and an enclave does not; `own_command`: the user named one."""
    notes = []
    config = container.run_config
    command, entrypoint = container.run_strings("Cmd"), container.run_strings("Entrypoint")
    if command and entrypoint and not own_command:
        both = json.dumps(entrypoint + command, ensure_ascii=False)
        notes.append(
            f"the image has an Entrypoint and a Cmd: as with nitro-cli only Cmd runs, {json.dumps(command)}; "
            f"docker would run {both}, name that with --command if it is meant"
        )
    directory = config.get("WorkingDir")
    if directory not in (None, "", "/"):
        notes.append(f"the image's WorkingDir {directory!r} does not count in an enclave: the command starts in /")
    user = config.get("User")
    if user not in (None, *_ROOT_USERS):
        notes.append(f"the image's User {user!r} does not count in an enclave: the command runs as root")
    return [note.replace("\n", " ") for note in notes]


def docker_info(container: Container) -> dict[str, object]:
    """The metadata's DockerInfo (its shape is in this module's description)."""
    config = container.config
    info: dict[str, object] = {
        "Id": f"sha256:{container.image_id}",
        "RepoTags": repo_tags(container),
        "RepoDigests": [],
        "Parent": "",
        "Config": dict(container.run_config),
        "Architecture": config.get("architecture"),
        "Os": config.get("os"),
        "RootFS": {"Type": "layers", "Layers": list(container.diff_ids)},
    }
    for name, source in _TEXTS.items():
        value = config.get(source)
        info[name] = value if isinstance(value, str) else ""
    if isinstance(config.get("variant"), str):
        info["Variant"] = config["variant"]
    return info


def repo_tags(container: Container) -> list[str]:
    """The image's names as docker shows them, `NAME:TAG`; a tag alone is no name."""
    full = [name.removeprefix("docker.io/").removeprefix("library/") for name in container.names if ":" in name]
    return list(dict.fromkeys(full))


def image_name(container: Container) -> str | None:
    """nitro-cli's ImageName: the first name up to its first colon; None for an image without a name."""
    tags = repo_tags(container)
    return tags[0].partition(":")[0] if tags else None


def created(container: Container) -> datetime | None:
    """When the image says that it was made, if it says so in a way that metadata can say too."""
    text = container.config.get("created")
    if not isinstance(text, str):
        return None
    try:
        value = parse_build_time(text)
    except EifError:
        return None
    return value if 0 <= value.timestamp() <= TIME_MAX else None
