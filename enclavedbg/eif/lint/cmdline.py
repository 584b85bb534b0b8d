"""The kernel's command line.

Sources: Linux Documentation/admin-guide/kernel-parameters.rst, kernel/params.c, init/main.c, init/do_mounts.c; the
command lines of aws-nitro-enclaves-sdk-bootstrap; a real enclave's, to which two `virtio_mmio.device=` are appended.
"""

from __future__ import annotations

from collections.abc import Iterator

from enclavedbg.eif.lint.finding import Check, Finding, Group, Severity, error, note, warning
from enclavedbg.eif.lint.subject import Subject

APPENDED = " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
"""What the hypervisor is known to append on x86_64."""
DEFAULT_CMDLINE_SIZE = 2047
SHOWN = 400

EMPTY = warning(
    "cmdline-empty", "There is no word in the command line.", "use nitro-cli's: reboot=k panic=30 console=ttyS0"
)
NO_CONSOLE = warning(
    "cmdline-no-console",
    "Without console=ttyS0 the kernel may choose another console or none: no output, and init may fail to open "
    "/dev/console.",
    "add console=ttyS0",
)
OTHER_CONSOLE = warning(
    "cmdline-other-console",
    "The last console= becomes /dev/console; an enclave has ttyS0 only, so that init and program print nothing.",
    "make console=ttyS0 the last console=",
)
NO_PANIC = warning(
    "cmdline-no-panic",
    "After a panic the kernel waits forever: the enclave stays, hangs, and has to be terminated.",
    "add panic=30 (seconds), or panic=-1 for a restart at once",
)
NO_REBOOT = note(
    "cmdline-no-reboot",
    "Without reboot=k the kernel tries other ways to end first, which an enclave does not have.",
    "add reboot=k",
)
ROOT = note(
    "cmdline-root",
    "root= is not mounted when the ramdisk has an init; all it does is to make the first root file system a ramfs, "
    "which may fill all memory, instead of a tmpfs of half of it.",
    "leave root= out, or write root=/dev/ram0 as nitro-cli does when that is meant",
)
NOMODULE = error(
    "cmdline-nomodule", "nomodule forbids to load modules, and this image loads them.", "take nomodule out"
)
INITRD = error(
    "cmdline-initrd",
    "initrd= and initrdmem= tell the kernel another place of its ramdisk than the loader put it at.",
    "take the option out",
)
DEVICES = warning(
    "cmdline-virtio-mmio",
    "virtio_mmio.device= is appended by whoever starts the image; one that is there already adds a device that "
    "does not exist, or the same one twice.",
    "take virtio_mmio.device= out",
)
DASHES = error(
    "cmdline-double-dash",
    "What follows -- goes to init; also virtio_mmio.device=, which is appended, so that the kernel finds no vsock.",
    "take -- and what follows it out",
)
QUOTE = error(
    "cmdline-quote",
    "A quotation mark is not closed: what is appended becomes part of the last parameter.",
    "close it",
)
NUL = error("cmdline-nul", "The kernel reads the command line up to its first NUL only.", "take the NUL out")
CHARACTERS = warning(
    "cmdline-characters",
    "There are characters that are not printable ASCII; the kernel takes bytes and knows no encoding.",
    "write the command line in ASCII",
)
SPACE = note(
    "cmdline-space",
    "It begins or ends with white space (a line end of the file it came from?); nitro-cli strips it, so that the "
    "same text measures otherwise there.",
    "strip it before the image is built",
)
LONG = error(
    "cmdline-too-long",
    "With what the hypervisor appends it is longer than the kernel takes: the end is cut off, devices are lost.",
    "shorten it",
)

# Parameters that nobody expects in an enclave: severity, what comes of it.
_SURPRISING = {
    "mem": (Severity.WARNING, "limits the memory that the kernel uses, whatever the enclave is given"),
    "memmap": (Severity.WARNING, "changes the kernel's map of the memory"),
    "nosmp": (Severity.WARNING, "leaves all CPUs but one unused"),
    "maxcpus": (Severity.WARNING, "limits the CPUs that are used"),
    "nr_cpus": (Severity.WARNING, "limits the CPUs that are used"),
    "noapic": (Severity.WARNING, "takes away the interrupts of virtio devices"),
    "nolapic": (Severity.WARNING, "takes away all CPUs but one, and their timers"),
    "noinitrd": (Severity.WARNING, "says that the ramdisk is not wanted"),
    "module.sig_enforce": (Severity.WARNING, "lets signed modules load only; nsm.ko is not"),
    "rootfstype": (Severity.NOTE, "chooses what the first root file system is: tmpfs holds half of the memory only"),
    "kgdboc": (Severity.WARNING, "gives the console to a debugger"),
    "kgdbwait": (Severity.ERROR, "stops the boot until a debugger comes, which never happens"),
    "boot_delay": (Severity.WARNING, "delays the boot, and the heartbeat with it"),
    "initcall_blacklist": (Severity.NOTE, "leaves parts of the kernel out"),
    "module_blacklist": (Severity.NOTE, "keeps modules from loading"),
    "init": (Severity.NOTE, "has no effect, since the ramdisk's own program is started (rdinit= names another)"),
    "rdinit": (Severity.NOTE, "names the ramdisk's first program instead of /init"),
    "quiet": (Severity.NOTE, "hides the kernel's messages: a failed boot tells little"),
    "slub_debug": (Severity.NOTE, "makes the kernel slow"),
    "retain_initrd": (Severity.NOTE, "keeps the packed ramdisk in memory"),
}
_CHECKS_BY_SEVERITY = {
    Severity.ERROR: error(
        "cmdline-fatal-option", "An option keeps the enclave from starting (kgdbwait).", "take it out"
    ),
    Severity.WARNING: warning(
        "cmdline-surprising-option",
        "An option takes something away that an enclave needs (mem=, maxcpus=, noapic ...).",
        "take it out, unless it is meant",
    ),
    Severity.NOTE: note(
        "cmdline-option", "An option changes what people expect of an enclave (quiet, rdinit= ...).", "know about it"
    ),
}


def console(subject: Subject) -> Iterator[Finding]:
    """console= is there, and ttyS0 the last."""
    if subject.cmdline is None:
        return
    evidence = _shown(subject)
    if not subject.bootline.parameters:
        yield EMPTY.found("the command line is empty", evidence=evidence)
        return
    consoles = subject.bootline.values("console")
    if not consoles:
        yield NO_CONSOLE.found("the command line has no console=", evidence=evidence)
    elif consoles[-1].partition(",")[0] != "ttyS0":
        yield OTHER_CONSOLE.found(f"the last console is {consoles[-1][:40]!r}, expected ttyS0", evidence=evidence)


def ending(subject: Subject) -> Iterator[Finding]:
    """panic= and reboot=."""
    line = subject.bootline
    if subject.cmdline is None or not line.parameters:
        return
    panic = line.last("panic")
    if panic is None:
        yield NO_PANIC.found("the command line has no panic=", evidence=_shown(subject))
    elif panic.strip().strip("0") == "":
        yield NO_PANIC.found(f"panic={panic[:20]} lets the kernel wait forever", evidence=_shown(subject))
    modes = ",".join(line.values("reboot")).split(",")
    if subject.architecture == "x86_64" and not any(mode.startswith("k") for mode in modes):
        given = f"reboot={line.last('reboot')}" if line.has("reboot") else "no reboot="
        yield NO_REBOOT.found(f"the command line has {given}, expected reboot=k", evidence=_shown(subject))


def options(subject: Subject) -> Iterator[Finding]:
    """Options that an enclave's command line does not have."""
    line = subject.bootline
    root = line.last("root")
    if root not in (None, "/dev/ram0"):
        yield ROOT.found(f"the command line has root={root}", evidence=_shown(subject))
    for name in ("initrd", "initrdmem"):
        if line.has(name):
            yield INITRD.found(f"the command line has {name}={line.last(name)}", evidence=_shown(subject))
    if line.has("virtio_mmio.device"):
        devices = [f"virtio_mmio.device={value}" for value in line.values("virtio_mmio.device")]
        yield DEVICES.found("the command line describes virtio devices itself", evidence=" ".join(devices)[:SHOWN])
    loads = [path for path in ("/nsm.ko", "/modules") if subject.node(path) is not None]
    if line.has("nomodule") and loads:
        yield NOMODULE.found(f"nomodule, and the ramdisk has {' and '.join(loads)}", evidence=_shown(subject))
    for name, (severity, effect) in _SURPRISING.items():
        if line.has(name):
            word = f"{name}={line.last(name)}" if line.last(name) else name
            yield _CHECKS_BY_SEVERITY[severity].found(f"{word} {effect}", evidence=_shown(subject))


def form(subject: Subject) -> Iterator[Finding]:
    """What the kernel's parser and the appended text make of it."""
    data = subject.cmdline
    if data is None:
        return
    if subject.bootline.for_init is not None:
        yield DASHES.found("the command line has --", evidence=_shown(subject))
    if subject.bootline.open_quote:
        yield QUOTE.found("the command line has a quotation mark that is not closed", evidence=_shown(subject))
    if 0 in data:
        yield NUL.found(f"the command line has a NUL at byte {data.index(0)}", evidence=_shown(subject))
    strange = [at for at, byte in enumerate(data.strip()) if not 0x20 <= byte < 0x7F and byte]
    if strange:
        yield CHARACTERS.found(
            f"{len(strange)} bytes of the command line are not printable ASCII",
            evidence=f"the first is {data.strip()[strange[0]]:#04x} at byte {strange[0]}: {_shown(subject)}",
        )
    if data.strip() != data:
        yield SPACE.found("the command line has white space at its ends", evidence=repr(data[:1] + b"..." + data[-8:]))


def length(subject: Subject) -> Iterator[Finding]:
    """Whether it fits, with the device descriptions behind it."""
    if subject.cmdline is None:
        return
    room = DEFAULT_CMDLINE_SIZE if subject.kernel is None else subject.kernel.cmdline_size
    appended = len(APPENDED) if subject.architecture == "x86_64" else 0
    size = len(subject.cmdline)
    if size + appended > room:
        extra = f", and {appended} are appended" if appended else ""
        yield LONG.found(f"the command line has {size} bytes{extra}, the kernel takes {room}", evidence=_shown(subject))


def _shown(subject: Subject) -> str:
    text = (subject.cmdline or b"").decode("ascii", "backslashreplace")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


CHECKS: tuple[Check, ...] = (
    EMPTY,
    NO_CONSOLE,
    OTHER_CONSOLE,
    NO_PANIC,
    NO_REBOOT,
    ROOT,
    NOMODULE,
    INITRD,
    DEVICES,
    DASHES,
    QUOTE,
    NUL,
    CHARACTERS,
    SPACE,
    LONG,
    *_CHECKS_BY_SEVERITY.values(),
)
GROUP = Group("The command line", CHECKS, (console, ending, options, form, length))
