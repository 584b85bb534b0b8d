"""The kernel: its form, and whether it has what an enclave and the image's init need.

What it has is read from an embedded configuration (CONFIG_IKCONFIG); without one, drivers are known by strings that
a built-in one cannot lack. Sources: Linux drivers/virtio/virtio_mmio.c, drivers/misc/nsm.c,
net/vmw_vsock/virtio_transport.c; Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.eif.lint.files import contents
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note, some, warning
from enclavedbg.eif.lint.modules import modules_at_boot, nsm_at_top
from enclavedbg.eif.lint.subject import Subject

OTHER_KERNEL = "take another kernel, such as the one in aws-nitro-enclaves-sdk-bootstrap"
TEXT_OFFSET = 0x20_0000
"""What the bootstrap repository's build writes into an arm64 Image."""

FORMAT = error(
    "kernel-format",
    "The kernel is no bzImage (x86_64) or uncompressed Image (aarch64) that a loader can start.",
    "put a bzImage, or an arm64 Image, into the image",
)
PACKED = note(
    "kernel-not-unpacked",
    "The kernel is compressed with lzo, which is not unpacked here: its drivers were not examined.",
    "look at its configuration yourself",
)
TEXT = warning(
    "kernel-text-offset",
    "The arm64 Image has text_offset 0 or no multiple of 2 MiB: where it is loaded is then the loader's choice.",
    "write 0x200000 into its 8 bytes at offset 8, as aws-nitro-enclaves-sdk-bootstrap does",
)
ENDIAN = error("kernel-big-endian", "The arm64 kernel is big-endian.", OTHER_KERNEL)
UNKNOWN = note(
    "kernel-no-config",
    "The kernel carries no configuration; drivers are known by strings, much else was not examined.",
    "build it with CONFIG_IKCONFIG=y for a closer look",
)
MMIO_CMDLINE = warning(
    "kernel-no-mmio-cmdline",
    "The kernel cannot be told of its virtio devices on the command line, as real enclaves do it on x86_64.",
    "build it with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y (enclavedbg describes the devices by ACPI too)",
)
OPTION = error(
    "kernel-option",
    "The kernel lacks something without which init, or any program, cannot start.",
    "build it with the option, or " + OTHER_KERNEL,
)
SERIAL = warning(
    "kernel-no-serial-console",
    "The kernel has no console on a 8250 serial port, the only one that an enclave has: nothing is printed, and "
    "init may fail to open /dev/console.",
    "build it with CONFIG_SERIAL_8250_CONSOLE=y",
)

# Options that init of nitro-cli's images, and the packaged one, cannot do without; where a string says it, the string.
_NEEDED = {
    "BLK_DEV_INITRD": "unpacks no ramdisk",
    "BINFMT_ELF": "runs no programs",
    "DEVTMPFS": "init cannot mount /dev",
    "TMPFS": "init cannot mount /run and /tmp",
    "PROC_FS": "init cannot mount /proc",
    "SYSFS": "init cannot mount /sys",
    "UNIX98_PTYS": "init cannot mount /dev/pts",
}


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: its option, a string that a kernel with it built in has, its module's name, what is lost without."""

    check: Check
    title: str
    option: str
    telltale: bytes
    module: str


DRIVERS = (
    Driver(
        error(
            "kernel-no-vsock",
            "The kernel has no virtio vsock: init cannot tell the parent that it runs, and nothing can be sent.",
            "build it with CONFIG_VIRTIO_VSOCKETS=y, or put the modules into the first ramdisk and load them in init",
        ),
        "virtio vsock",
        "VIRTIO_VSOCKETS",
        b"vmw_vsock_virtio_transport\0",
        "vmw_vsock_virtio_transport",
    ),
    Driver(
        error(
            "kernel-no-virtio-mmio",
            "The kernel has no virtio-mmio, the bus of an enclave's devices: no vsock, no NSM.",
            "build it with CONFIG_VIRTIO_MMIO=y, or put the module into the first ramdisk and load it in init",
        ),
        "virtio-mmio",
        "VIRTIO_MMIO",
        b"virtio-mmio\0",
        "virtio_mmio",
    ),
    Driver(
        warning(
            "kernel-no-nsm",
            "There is no driver for the Nitro Secure Module: no /dev/nsm, so no attestation.",
            "build the kernel with CONFIG_NSM, or put nsm.ko into the first ramdisk as /nsm.ko",
        ),
        "the NSM",
        "NSM",
        b"nsm-hwrng\0",
        "nsm",
    ),
)


def form(subject: Subject) -> Iterator[Finding]:
    """It can be loaded."""
    kernel = subject.kernel
    if kernel is None:
        if subject.kernel_error is not None:
            yield FORMAT.found("the kernel cannot be loaded", evidence=str(subject.kernel_error))
        return
    if kernel.code is None:
        yield PACKED.found(f"the kernel is compressed with {kernel.compression}")
    elif kernel.config is None:
        yield UNKNOWN.found("the kernel carries no configuration", evidence=f"release {kernel.release or 'unknown'}")
    if kernel.text_offset is not None and (kernel.text_offset == 0 or kernel.text_offset % TEXT_OFFSET):
        yield TEXT.found(f"the Image has text_offset {kernel.text_offset:#x}", evidence="8 bytes at offset 8 of it")
    if kernel.big_endian:
        yield ENDIAN.found("the Image is big-endian", evidence="bit 0 of the flags at offset 24 of it")


def drivers(subject: Subject) -> Iterator[Finding]:
    """vsock, virtio-mmio and NSM are built in, or there as modules that init can load."""
    if subject.filesystem is None and subject.filesystem_error is not None:
        # Modules may be in what could not be read.
        return
    for driver in DRIVERS:
        state = _state(subject, driver)
        if state is None:
            continue
        modules = [path for path, name in modules_at_boot(subject) if name == driver.module]
        if modules:
            continue
        late = f"; {driver.module}.ko in /rootfs comes too late" if _in_rootfs(subject, driver.module) else ""
        yield driver.check.found(f"the kernel has no {driver.title}{late}", evidence=state)


def _state(subject: Subject, driver: Driver) -> str | None:
    """Why a driver is not built in; None when it is, or nothing can be said."""
    kernel = subject.kernel
    if kernel is None or kernel.code is None:
        return None
    option = kernel.option(driver.option)
    if option == "m":
        return f"CONFIG_{driver.option}=m, and there is no {driver.module}.ko outside /rootfs"
    if option == "n" and not kernel.contains(driver.telltale):
        return f"CONFIG_{driver.option} is not set, and there is no {driver.module}.ko outside /rootfs"
    if option is None and not kernel.contains(driver.telltale):
        text = driver.telltale.strip(b"\0").decode()
        return f"no text {text!r} in the kernel, and no {driver.module}.ko outside /rootfs"
    return None


def _in_rootfs(subject: Subject, module: str) -> bool:
    return any(name == module for _, name in modules_at_boot(subject, late=True))


def devices(subject: Subject) -> Iterator[Finding]:
    """virtio-mmio takes devices from the command line."""
    kernel = subject.kernel
    if kernel is None or kernel.code is None or kernel.architecture != "x86_64":
        return
    evidence = "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set"
    has = kernel.option("VIRTIO_MMIO_CMDLINE_DEVICES")
    if has is None:
        found = kernel.contains(b"virtio_mmio.device\0")
        if not found and subject.filesystem is not None:
            evidence = "the driver has no parameter `device`"
            paths = [path for path, name in modules_at_boot(subject) if name == "virtio_mmio"]
            nodes = [node for path in paths if (node := subject.node(path)) is not None]
            if not nodes:
                # Reported as kernel-no-virtio-mmio, or built in without the parameter.
                found = not kernel.contains(b"virtio-mmio\0")
            found = found or any(
                b"parm=device:" in bytes(data) or b"parmtype=device:" in bytes(data)
                for _, data in contents(subject.filesystem, nodes)
            )
        has = "y" if found else "n"
    if has == "n" and kernel.option("VIRTIO_MMIO") != "n":
        yield MMIO_CMDLINE.found("virtio devices cannot be described on the command line", evidence=evidence)


def options(subject: Subject) -> Iterator[Finding]:
    """What its configuration must have."""
    kernel = subject.kernel
    if kernel is None or kernel.config is None:
        return
    missing = [f"CONFIG_{name} is not set: {effect}" for name, effect in _NEEDED.items() if kernel.option(name) == "n"]
    if kernel.option("CGROUPS") == "n" and _init_mounts_cgroups(subject):
        missing.append("CONFIG_CGROUPS is not set: this init reads /proc/cgroups and gives up without it")
    if kernel.option("MODULES") == "n" and nsm_at_top(subject) is not None:
        missing.append("CONFIG_MODULES is not set: init cannot load /nsm.ko and gives up")
    if missing:
        yield OPTION.found(missing[0].replace("is not set", "is not set in the kernel", 1), evidence=some(missing))
    if kernel.option("SERIAL_8250_CONSOLE") == "n":
        yield SERIAL.found("the kernel has no serial console", evidence="CONFIG_SERIAL_8250_CONSOLE is not set")


def _init_mounts_cgroups(subject: Subject) -> bool:
    node = subject.node(subject.first_program)
    if node is None or subject.filesystem is None:
        return False
    return any(b"/proc/cgroups" in bytes(data) for _, data in contents(subject.filesystem, [node]))


CHECKS: tuple[Check, ...] = (
    FORMAT,
    PACKED,
    UNKNOWN,
    TEXT,
    ENDIAN,
    *(driver.check for driver in DRIVERS),
    MMIO_CMDLINE,
    OPTION,
    SERIAL,
)
GROUP = Group("The kernel", CHECKS, (form, drivers, devices, options))
