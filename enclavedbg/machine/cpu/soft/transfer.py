"""Takes the complete CPU state out of Unicorn and puts one in."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft.core import SegmentCache, UnicornCore
from enclavedbg.machine.cpu.state import (
    EFER_LMA,
    EFER_LME,
    CpuState,
    DescriptorTable,
    FpuState,
    ModelRegisters,
    Segment,
)

_ATTRIBUTE_MASK = 0xF0FF
_ALL_FLAGS = 0xFFFF_FFFF
EFER_SVME = 1 << 12

_MSR_FIELDS = (
    ("star", c_uint64, at.ENV_STAR),
    ("lstar", c_uint64, at.ENV_LSTAR),
    ("cstar", c_uint64, at.ENV_CSTAR),
    ("sfmask", c_uint64, at.ENV_FMASK),
    ("kernel_gs_base", c_uint64, at.ENV_KERNEL_GS_BASE),
    ("sysenter_cs", c_uint32, at.ENV_SYSENTER_CS),
    ("sysenter_esp", c_uint64, at.ENV_SYSENTER_ESP),
    ("sysenter_eip", c_uint64, at.ENV_SYSENTER_EIP),
    ("pat", c_uint64, at.ENV_PAT),
)


def _segment(cache: SegmentCache) -> Segment:
    return Segment(cache.selector & 0xFFFF, cache.base, cache.limit, cache.flags >> 8 & _ATTRIBUTE_MASK)


def _fill(cache: SegmentCache, segment: Segment) -> None:
    cache.selector = segment.selector
    cache.base = segment.base
    cache.limit = segment.limit
    cache.flags = (segment.attributes & _ATTRIBUTE_MASK) << 8


def save(core: UnicornCore, tsc: int) -> CpuState:
    """The state as plain data; `tsc` is the guest's time-stamp counter now."""
    msrs = {name: core.field(kind, offset).value for name, kind, offset in _MSR_FIELDS}
    return CpuState(
        regs=dict(zip(at.REGISTER_ORDER, core.regs, strict=True)),
        rip=core.eip.value,
        rflags=core.lib.helper_read_eflags(core.env),
        segments={n: _segment(core.segments[i]) for i, n in enumerate(at.SEGMENT_ORDER)},
        ldtr=_segment(core.ldt),
        tr=_segment(core.tr),
        gdtr=DescriptorTable(core.gdt.base, core.gdt.limit),
        idtr=DescriptorTable(core.idt.base, core.idt.limit),
        cr0=core.cr[0],
        cr2=core.cr[2],
        cr3=core.cr[3],
        cr4=core.cr[4],
        cr8=core.field(c_uint8, at.ENV_TPR).value & 0xF,
        efer=core.field(c_uint64, at.ENV_EFER).value,
        dr=list(core.dr),
        msrs=ModelRegisters(**msrs, tsc=tsc),
        fpu=_save_fpu(core),
        halted=bool(core.halted.value),
    )


def load(core: UnicornCore, state: CpuState) -> None:
    """Replace the state. The caller sets the time-stamp counter, which runs on from `state.msrs.tsc`."""
    for i, name in enumerate(at.REGISTER_ORDER):
        core.regs[i] = state.regs[name]
    core.eip.value = state.rip
    for i, name in enumerate(at.SEGMENT_ORDER):
        _fill(core.segments[i], state.segments[name])
    _fill(core.ldt, state.ldtr)
    _fill(core.tr, state.tr)
    core.gdt.base, core.gdt.limit = state.gdtr.base, state.gdtr.limit
    core.idt.base, core.idt.limit = state.idtr.base, state.idtr.limit
    for i, value in ((0, state.cr0), (2, state.cr2), (3, state.cr3), (4, state.cr4)):
        core.cr[i] = value
    core.field(c_uint8, at.ENV_TPR).value = state.cr8
    core.field(c_uint64, at.ENV_EFER).value = _efer(state)
    for name, kind, offset in _MSR_FIELDS:
        core.field(kind, offset).value = getattr(state.msrs, name)
    # The debug registers' own breakpoints: away with those of before, then set the new ones.
    core.lib.cpu_x86_update_dr7(core.env, 0)
    for i in range(7):
        core.dr[i] = state.dr[i]
    core.lib.cpu_x86_update_dr7(core.env, state.dr[7] & 0xFFFF_FFFF)
    core.eflags.value = 2
    core.lib.helper_write_eflags(core.env, state.rflags, _ALL_FLAGS)
    core.lib.x86_update_hflags(core.env)
    _load_fpu(core, state.fpu)
    core.halted.value = int(state.halted)
    core.lib.tlb_flush(core.cpu)


def _efer(state: CpuState) -> int:
    """EFER as a processor would have it with the state's other registers."""
    # SVM is not offered, and QEMU's own use of its control block (core.py) must stay the only one.
    efer = state.efer & ~(EFER_SVME | EFER_LMA)
    # LMA is not set but follows (SDM volume 3, 9.8.5); without paging QEMU would leave physical memory behind.
    return efer | EFER_LMA if efer & EFER_LME and state.paging else efer


def _save_fpu(core: UnicornCore) -> FpuState:
    top = core.field(c_uint32, at.ENV_FPSTT).value & 7
    empty = (c_uint8 * 8).from_address(core.env + at.ENV_FPTAGS)
    registers = core.env + at.ENV_FPREGS
    fsw = core.field(c_uint16, at.ENV_FPUS).value & ~0x3800 | top << 11
    return FpuState(
        fcw=core.field(c_uint16, at.ENV_FPUC).value,
        fsw=fsw,
        ftw=sum((3 if empty[i] else 0) << (2 * i) for i in range(8)),
        fop=core.field(c_uint16, at.ENV_FPOP).value,
        fip=core.field(c_uint64, at.ENV_FPIP).value,
        fdp=core.field(c_uint64, at.ENV_FPDP).value,
        mxcsr=core.field(c_uint32, at.ENV_MXCSR).value,
        st=[ctypes.string_at(registers + ((top + i) & 7) * at.FPREG_SIZE, 10) for i in range(8)],
        xmm=[ctypes.string_at(core.env + at.ENV_XMM + i * at.XMM_SIZE, 16) for i in range(16)],
    )


def _load_fpu(core: UnicornCore, fpu: FpuState) -> None:
    top = fpu.fsw >> 11 & 7
    core.field(c_uint32, at.ENV_FPSTT).value = top
    core.field(c_uint16, at.ENV_FPUS).value = fpu.fsw & ~0x3800
    core.field(c_uint16, at.ENV_FPUC).value = fpu.fcw
    core.field(c_uint16, at.ENV_FPOP).value = fpu.fop
    core.field(c_uint64, at.ENV_FPIP).value = fpu.fip
    core.field(c_uint64, at.ENV_FPDP).value = fpu.fdp
    empty = (c_uint8 * 8).from_address(core.env + at.ENV_FPTAGS)
    for i in range(8):
        empty[i] = int(fpu.ftw >> (2 * i) & 3 == 3)
        ctypes.memmove(core.env + at.ENV_FPREGS + ((top + i) & 7) * at.FPREG_SIZE, fpu.st[i], 10)
    for i in range(16):
        ctypes.memmove(core.env + at.ENV_XMM + i * at.XMM_SIZE, fpu.xmm[i], 16)
    core.field(c_int32, at.ENV_MXCSR).value = fpu.mxcsr
    # The rounding modes that the translator uses are derived from the control words.
    core.lib.update_fp_status(core.env)
    core.lib.update_mxcsr_status(core.env)
