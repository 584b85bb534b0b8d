"""How programs, interpreters and libraries are looked for."""

from __future__ import annotations

import gzip

import pytest

from enclavedbg.eif.cpio import CpioEntry
from tests.eif.lint.images import LINKER, application, bootstrap, findings, ids, image, link, plain, program, ramdisk

Files = dict[str, CpioEntry | bytes | None]
RUN = "rootfs/app/run"
MUSL = "/lib/ld-musl-x86_64.so.1"


def library(**needs: object) -> bytes:
    return program(kind=3, **needs)  # type: ignore[arg-type]


def test_a_command_without_a_slash_is_looked_for_as_init_does() -> None:
    app: Files = {"rootfs/usr/local": None, "rootfs/usr/local/bin": None, "rootfs/usr/local/bin/node": program()}
    found = findings(image(app={"cmd": b"node\n", **app}))["command-not-found"]
    assert "init looks in /sbin:/usr/sbin:/bin:/usr/bin" in found.evidence
    assert found.cure == "write the whole path as the command: /usr/local/bin/node"
    assert ids(image(app={"cmd": b"sh\n"})) == []
    assert ids(image(app={"cmd": b"sh\r\n"})) == ["application-carriage-return", "command-not-found"]
    assert ids(image(app={"cmd": b"\n/app/run\n"})) == ["application-blank-line", "command-not-found"]
    assert ids(image(app={"cmd": b"sh\n", "rootfs/usr/bin/sh": plain(program())})) == ["command-not-executable"]


def test_scripts_need_their_interpreters() -> None:
    assert ids(image(app={RUN: b"#!/bin/sh -e\n"})) == []
    assert ids(image(app={RUN: b"#! /bin/sh\n"})) == []
    found = findings(image(app={RUN: b"#!/bin/bash\n"}))["command-interpreter"]
    assert "/bin/bash, the interpreter of /app/run (#!/bin/bash), is not there" in found.message
    found = findings(image(app={RUN: b"#!/bin/sh\r\necho\n"}))["command-interpreter"]
    assert "carriage returns" in found.cure
    assert ids(image(app={RUN: b"#!/bin/a\n", "rootfs/usr/bin/a": b"#!/bin/b\n", "rootfs/usr/bin/b": program()})) == []
    assert ids(image(app={RUN: b"#!/app/run\n"})) == ["command-interpreter"]
    assert ids(image(app={RUN: b"#!/bin/sh", "rootfs/usr/bin/sh": program(machine=183)})) == ["command-architecture"]


def test_env_finds_interpreters_in_the_path_of_env() -> None:
    app: Files = {RUN: b"#!/usr/bin/env python3\n", "rootfs/usr/bin/env": program()}
    found = findings(image(app=app))["command-interpreter"]
    assert "python3" in found.message and found.evidence.startswith("PATH=/usr/local/bin:/bin\n")
    assert ids(image(app=app | {"rootfs/usr/bin/python3": program()})) == []


@pytest.mark.parametrize("packed", [False, True])
def test_libraries_by_way_of_others(packed: bool) -> None:
    """liba by $ORIGIN, libb by LD_LIBRARY_PATH, libc by the usual folders; also out of compressed ramdisks."""
    files = application()
    del files["rootfs/opt/lib/libb.so.2"]
    app = ramdisk(files)
    made = image(ramdisks=[ramdisk(bootstrap()), gzip.compress(app) if packed else app])
    found = findings(made)["command-library"]
    assert "libb.so.2, needed by /app/lib/liba.so.1" in found.evidence and "libc" not in found.evidence


def test_a_library_for_another_processor_is_passed_over() -> None:
    wrong = program(kind=3, machine=183)
    assert ids(image(app={"rootfs/opt/lib/libc.so.6": wrong, "rootfs/app/lib/libc.so.6": b"no ELF"})) == []
    found = findings(image(app={"rootfs/usr/lib64/libc.so.6": wrong}))["command-library"]
    assert "/usr/lib64/libc.so.6 is for aarch64, 64 bits" in found.evidence


def test_where_glibc_looks() -> None:
    app: Files = {RUN: program(interpreter=LINKER, needed=["libx.so.1"]), "rootfs/x": None, "rootfs/etc": None}
    app["rootfs/x/libx.so.1"] = library()
    found = findings(image(app=app))["command-library"]
    assert "/x/libx.so.1 is in no folder that is searched" in found.evidence and "ldconfig" in found.cure
    cached = app | {"rootfs/etc/ld.so.cache": b"glibc-ld.so.cache1.1\0libx.so.1\0/x/libx.so.1\0"}
    assert ids(image(app=cached)) == []
    assert ids(image(app=app | {"env": b"PATH=/\nLD_LIBRARY_PATH=/y;/x\n"})) == []
    for folders in ("/x", "$ORIGIN/../x", "${ORIGIN}/../../x", "/y:/x"):
        assert ids(image(app=app | {RUN: program(interpreter=LINKER, needed=["libx.so.1"], rpath=folders)})) == []
        assert ids(image(app=app | {RUN: program(interpreter=LINKER, needed=["libx.so.1"], runpath=folders)})) == []
    assert ids(image(app=app | {RUN: program(interpreter=LINKER, needed=["/x/libx.so.1"])})) == []
    triplet: Files = {"rootfs/usr/lib/x86_64-linux-gnu": None, "rootfs/usr/lib/x86_64-linux-gnu/libx.so.1": library()}
    assert ids(image(app={RUN: app[RUN], **triplet})) == []


def test_a_program_s_rpath_is_for_its_libraries_too_but_its_runpath_is_not() -> None:
    app: Files = {"rootfs/x": None, "rootfs/x/libx.so.1": library(needed=["liby.so.1"])}
    app["rootfs/x/liby.so.1"] = library()
    assert ids(image(app=app | {RUN: program(interpreter=LINKER, needed=["libx.so.1"], rpath="/x")})) == []
    made = image(app=app | {RUN: program(interpreter=LINKER, needed=["libx.so.1"], runpath="/x")})
    assert "liby.so.1, needed by /x/libx.so.1" in findings(made)["command-library"].evidence


def test_where_musl_looks() -> None:
    run = program(interpreter=MUSL, needed=["libc.musl-x86_64.so.1", "libx.so.1"])
    app: Files = {RUN: run, "rootfs/usr/lib/ld-musl-x86_64.so.1": library(), "rootfs/etc": None, "rootfs/x": None}
    assert ids(image(app=app)) == ["command-library"]
    assert ids(image(app=app | {"rootfs/usr/lib/libx.so.1": library()})) == []
    there = app | {"rootfs/x/libx.so.1": library()}
    assert ids(image(app=there)) == ["command-library"]
    assert ids(image(app=there | {"rootfs/etc/ld-musl-x86_64.path": b"/y\n/x\n"})) == []


def test_libraries_that_need_each_other_end() -> None:
    app: Files = {
        "rootfs/app/lib/liba.so.1": library(needed=["libb.so.2"]),
        "rootfs/opt/lib/libb.so.2": library(needed=["liba.so.1"]),
    }
    assert ids(image(app=app)) == []


def test_programs_of_32_bits_need_a_kernel_that_runs_them() -> None:
    assert ids(image(app={RUN: program(machine=3, bits=32)})) == []
    found = findings(image(app={RUN: program(machine=40, bits=32)}))["command-architecture"]
    assert "for arm, the image is for x86_64" in found.message


def test_a_linker_that_is_a_dangling_link() -> None:
    found = findings(image(app={f"rootfs/usr{LINKER}": link("/none")}))["command-interpreter"]
    assert LINKER in found.message and "glibc" in found.cure
