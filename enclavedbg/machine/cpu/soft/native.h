// SPDX-License-Identifier: GPL-2.0-or-later
/* What the parts of the software CPU's native library share: see native.c. */
#ifndef ENCLAVEDBG_NATIVE_H
#define ENCLAVEDBG_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 4096ULL
#define PAGE_MASK (~(PAGE_SIZE - 1))

#define MAX_ENGINES 8
#define MAX_REGIONS 4
#define MAX_WATCHPOINTS 64

/* QEMU 5.0: cpu-all.h and hw/core/cpu.h, target/i386/cpu.h */
#define EXCP_HLT 0x10001
#define EXCP_DEBUG 0x10002
#define CPU_INTERRUPT_DEBUG 0x80
#define CPU_INTERRUPT_VIRQ 0x100
#define CF_COUNT_MASK 0x7fff
#define BP_MEM_READ 1
#define BP_MEM_WRITE 2
#define EXCP06_ILLOP 6
#define EFER_SCE 1
#define HF_LMA 0x4000
#define HF_CS64 0x8000
#define HF_CPL 3
#define EFLAGS_RF 0x10000
/* Arithmetic flags and the direction flag, which QEMU keeps apart from env->eflags. */
#define EFLAGS_LAZY 0xcd5
#define SEGMENT_CODE64 0x00af9b00
#define SEGMENT_DATA 0x00cf9300
#define R_CS 1
#define R_SS 2
#define R_RCX 1
#define R_R11 11

struct segment_cache {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags;
};

/* Mirrors `NativeLayout` in native.py. */
struct layout {
    uint32_t uc_stop_request;
    uint32_t uc_invalid_error;
    uint32_t uc_tcg_context;
    uint32_t cpu_exit_request;
    uint32_t cpu_exception_index;
    uint32_t cpu_interrupt_request;
    uint32_t cpu_icount_decr;
    uint32_t cpu_cflags_next_tb;
    uint32_t cpu_singlestep;
    uint32_t cpu_mem_io_pc;
    uint32_t cpu_halted;
    uint32_t tb_cflags;
    uint32_t env_eip;
    uint32_t env_eflags;
    uint32_t env_hflags;
    uint32_t env_segs;
    uint32_t env_efer;
    uint32_t env_star;
    uint32_t env_lstar;
    uint32_t env_cstar;
    uint32_t env_fmask;
    uint32_t env_exception_is_int;
};

struct region {
    uint64_t gpa, size, host, ram_addr;
};

struct watchpoint {
    uint64_t address, length;
    uint32_t access;
};

/* Mirrors `NativeEngine` in native.py: what Python sets and reads. */
struct engine {
    void *uc, *cpu, *env;
    struct layout at;
    uint32_t regions;
    struct region region[MAX_REGIONS];
    uint8_t *has_code[MAX_REGIONS];
    uint32_t watchpoints;
    struct watchpoint watchpoint[MAX_WATCHPOINTS];
    uint32_t watch_hit;          /* 1: the access is being done again, alone; 2: done, stop */
    uint32_t watch_index;
    uint64_t watch_address;
    uint32_t exact_stops;        /* writes to devices are done in blocks of their own */
    uint32_t debug_stop;         /* a breakpoint, a finished step or a watchpoint ended the run */
    uint32_t triple_fault;
    uint32_t no_task_state;      /* a stack was to be taken from a task register that holds nothing */
    uint32_t interrupt_held;     /* the pending interrupt was taken back so that a stop gets through */
    uint64_t instruction;        /* of the last exception */
};

/* The engines under care; those of others pass through. In native.c. */
extern struct engine *engines[MAX_ENGINES] __attribute__((visibility("hidden")));

/* The originals of all that is replaced or called. */
struct originals {
    void (*syscall)(void *env, int addend);
    void (*set_dirty)(void *cpu, uint64_t va);
    void (*protect_code)(void *uc, uint64_t ram_addr);
    void (*reset_dirty_by_vaddr)(void *cpu, uint64_t va, uint64_t length);
    int (*watch_matches)(void *cpu, uint64_t address, uint64_t length);
    void (*check_watch)(void *cpu, uint64_t address, uint64_t length, uint32_t attrs, int flags, uintptr_t ra);
    void (*reset_dirty)(void *cpu, uint64_t host, uint64_t length);
    uint64_t (*debug_translate)(void *cpu, uint64_t va, void *attrs);
    void (*invalidate)(void *uc, uint64_t start, uint64_t end);
    uint64_t (*ram_addr)(void *uc, void *host);
    void (*do_interrupt)(void *cpu);
    void (*update_hflags)(void *env);
    uint64_t (*read_eflags)(void *env);
    void (*write_eflags)(void *env, uint64_t flags, uint32_t mask);
    bool (*restore_state)(void *cpu, uintptr_t pc, bool will_exit);
    void (*loop_exit_noexc)(void *cpu);
    void (*loop_exit)(void *cpu);
    void (*abort)(void *cpu, const char *format, ...);
    void (*raise)(void *env, int vector, int error_code, uintptr_t ra);
    void (*set_page)(void *cpu, uint64_t va, uint64_t gpa, uint32_t attrs, int prot, int mmu, uint64_t size);
    uint64_t (*load64)(void *uc, void *space, uint64_t gpa, uint32_t attrs, uint32_t *result);
    void (*store32)(void *uc, void *space, uint64_t gpa, uint32_t value, uint32_t attrs, uint32_t *result);
    uint32_t (*device_write)(void *uc, void *region, uint64_t at, uint64_t data, int op, uint32_t attrs);
    void *(*block_of)(void *context, uintptr_t pc);
    void (*do_alone)(void *cpu, uintptr_t pc);
};
extern struct originals real __attribute__((visibility("hidden")));

#define FIELD(type, base, offset) (*(type *)((uint8_t *)(base) + (offset)))

static inline struct engine *by_env(const void *env)
{
    for (int i = 0; i < MAX_ENGINES; i++)
        if (engines[i] && engines[i]->env == env)
            return engines[i];
    return NULL;
}

static inline struct engine *by_cpu(const void *cpu)
{
    for (int i = 0; i < MAX_ENGINES; i++)
        if (engines[i] && engines[i]->cpu == cpu)
            return engines[i];
    return NULL;
}

static inline struct engine *by_uc(const void *uc)
{
    for (int i = 0; i < MAX_ENGINES; i++)
        if (engines[i] && engines[i]->uc == uc)
            return engines[i];
    return NULL;
}

#endif
