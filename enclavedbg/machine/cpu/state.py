"""The complete state of one x86-64 CPU as plain data, common to every engine.

Names follow the Intel SDM volume 3 and Linux's `struct kvm_regs` / `kvm_sregs`; a state taken from one
engine can be loaded into another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GENERAL_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""In the order of GDB's amd64 layout."""

SEGMENT_REGISTERS = ("cs", "ss", "ds", "es", "fs", "gs")

RFLAGS_IF = 1 << 9
CR0_PE = 1 << 0
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LME = 1 << 8
EFER_LMA = 1 << 10


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part.

    `attributes` are the descriptor's bits 40..55 shifted to 0: type and S (0-4), DPL (5-6), P (7), AVL (12),
    L (13), D/B (14), G (15) (SDM volume 3, 3.4.5; the layout of VMX access rights).
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0

    @property
    def long_mode_code(self) -> bool:
        """Whether code in this segment is 64-bit (the L bit)."""
        return bool(self.attributes & 0x2000)


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR: linear base and limit."""

    base: int = 0
    limit: int = 0


@dataclass(slots=True)
class FpuState:
    """x87 and SSE registers in FXSAVE's terms: `st` eight 10-byte values from ST(0), `xmm` sixteen of 16 bytes."""

    fcw: int = 0x37F
    fsw: int = 0
    ftw: int = 0xFFFF
    """Full 16-bit tag word, two bits a register, 11 = empty."""
    fop: int = 0
    fip: int = 0
    fdp: int = 0
    mxcsr: int = 0x1F80
    st: list[bytes] = field(default_factory=lambda: [bytes(10)] * 8)
    xmm: list[bytes] = field(default_factory=lambda: [bytes(16)] * 16)


@dataclass(slots=True)
class ModelRegisters:
    """Model-specific registers that Linux uses (SDM volume 4); names without the IA32_ prefix."""

    star: int = 0
    lstar: int = 0
    cstar: int = 0
    sfmask: int = 0
    kernel_gs_base: int = 0
    sysenter_cs: int = 0
    sysenter_esp: int = 0
    sysenter_eip: int = 0
    pat: int = 0x0007_0406_0007_0406
    apic_base: int = 0
    tsc: int = 0


@dataclass(slots=True)
class CpuState:
    """Everything that one vCPU is: general, segment, control, debug and model registers, x87 and SSE.

    `fs`/`gs` bases are in `segments`; `halted` means that the CPU waits in HLT.
    """

    regs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GENERAL_REGISTERS, 0))
    rip: int = 0
    rflags: int = 2
    segments: dict[str, Segment] = field(default_factory=lambda: {n: Segment() for n in SEGMENT_REGISTERS})
    ldtr: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    gdtr: DescriptorTable = field(default_factory=DescriptorTable)
    idtr: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0x10
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    dr: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    """dr0..dr3, two unused, dr6, dr7."""
    msrs: ModelRegisters = field(default_factory=ModelRegisters)
    fpu: FpuState = field(default_factory=FpuState)
    halted: bool = False

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 (kernel) to 3 (user)."""
        return self.segments["cs"].selector & 3

    @property
    def paging(self) -> bool:
        return bool(self.cr0 & CR0_PG)
