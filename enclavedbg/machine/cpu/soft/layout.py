"""Where Unicorn 2.1.4 keeps what the engine needs: structure offsets on 64-bit systems.

Read off the release's own headers (include/uc_priv.h, qemu/include/hw/core/cpu.h, qemu/target/i386/cpu.h).
`CPUState` holds a `sigjmp_buf` in its middle, so what lies behind moves with the platform's C library;
`cpu.calibrate` checks every offset that matters at start-up, whatever this table says.
"""

from __future__ import annotations

UNICORN_VERSION = "2.1.4"

# struct uc_struct
UC_STOP_INTERRUPT = 224
UC_CPU = 440
UC_TCG_CONTEXT = 768
UC_STOP_REQUEST = 1389
UC_INVALID_ERROR = 1424
UC_NO_EXIT_REQUEST = 2034

# CPUState
CPU_EXIT_REQUEST = 21
CPU_CFLAGS_NEXT_TB = 24
CPU_INTERRUPT_REQUEST = 28
CPU_SINGLESTEP = 32
CPU_ENV = 296
CPU_ICOUNT_DECR = 304
CPU_MEM_IO_PC = 33144
CPU_HALTED = 33176
CPU_EXCEPTION_INDEX = 33184

# TranslationBlock
TB_CFLAGS = 24

# CPUX86State
ENV_REGS = 0
ENV_EIP = 128
ENV_EFLAGS = 136
ENV_HFLAGS = 176
ENV_SEGS = 184
ENV_LDT = 328
ENV_TR = 352
ENV_GDT = 376
ENV_IDT = 400
ENV_CR = 424
ENV_EFER = 592
ENV_FPSTT = 604
ENV_FPUS = 608
ENV_FPUC = 610
ENV_FPTAGS = 612
ENV_FPREGS = 624
ENV_FPOP = 752
ENV_FPIP = 760
ENV_FPDP = 768
ENV_MXCSR = 816
ENV_XMM = 824
ENV_SYSENTER_CS = 4800
ENV_SYSENTER_ESP = 4808
ENV_SYSENTER_EIP = 4816
ENV_STAR = 4824
ENV_LSTAR = 4840
ENV_CSTAR = 4848
ENV_FMASK = 4856
ENV_KERNEL_GS_BASE = 4864
ENV_PAT = 5280
ENV_ERROR_CODE = 5384
ENV_EXCEPTION_IS_INT = 5388
ENV_DR = 5400
ENV_OLD_EXCEPTION = 5496
ENV_VM_VMCB = 5504
ENV_TSC_OFFSET = 5512
ENV_TPR = 5556

FPREG_SIZE = 16
XMM_SIZE = 64

REGISTER_ORDER = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""Order of CPUX86State.regs: the encoding's, not GDB's."""

SEGMENT_ORDER = ("es", "cs", "ss", "ds", "fs", "gs")

# exec/cpu-all.h, hw/core/cpu.h
EXCP_HLT = 0x10001
EXCP_DEBUG = 0x10002
INTERRUPT_VIRQ = 0x100
BP_GDB = 0x10
BP_MEM_READ = 1
BP_MEM_WRITE = 2
SSTEP_ENABLE = 1
SSTEP_NOIRQ = 2
VMCB_INT_VECTOR = 100
"""Offset of control.int_vector in an SVM control block (APM volume 2, appendix B)."""
