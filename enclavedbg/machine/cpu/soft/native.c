// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The software CPU's optional native part.
 *
 * This library is loaded with RTLD_GLOBAL before Unicorn's, whose calls between source files go through the
 * dynamic linker. So a function defined here takes the place of Unicorn's exported function of that name; each
 * one finds its original with dlsym and hands over whenever the engine is not one of ours. What is replaced,
 * and why, stands above each function. Without this library the package does the same work in Python
 * (delivery.py, engine.py): same behaviour, slower.
 *
 * Structure offsets come from the Python side (layout.py), which checks them at start-up.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
    uint64_t exceptions, syscalls, protected_pages, first_writes;
};

static struct engine *engines[MAX_ENGINES];

static struct {
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
} real;

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

/* ---- called from Python ---- */

/*
 * Find the originals in the loaded library: 0, or -1. Must come before Unicorn runs anything, as from its
 * loading on its calls end here.
 */
int enclavedbg_bind(const char *library)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (!handle)
        return -1;
    struct { void *where; const char *name; } wanted[] = {
        { &real.syscall, "helper_syscall_x86_64" },
        { &real.set_dirty, "tlb_set_dirty_x86_64" },
        { &real.protect_code, "tlb_protect_code_x86_64" },
        { &real.reset_dirty_by_vaddr, "tlb_reset_dirty_by_vaddr_x86_64" },
        { &real.watch_matches, "cpu_watchpoint_address_matches_x86_64" },
        { &real.check_watch, "cpu_check_watchpoint_x86_64" },
        { &real.reset_dirty, "tlb_reset_dirty_x86_64" },
        { &real.debug_translate, "x86_cpu_get_phys_page_attrs_debug_x86_64" },
        { &real.invalidate, "tb_invalidate_phys_page_range_x86_64" },
        { &real.ram_addr, "qemu_ram_addr_from_host_x86_64" },
        { &real.do_interrupt, "x86_cpu_do_interrupt_x86_64" },
        { &real.update_hflags, "x86_update_hflags_x86_64" },
        { &real.read_eflags, "helper_read_eflags_x86_64" },
        { &real.write_eflags, "helper_write_eflags_x86_64" },
        { &real.restore_state, "cpu_restore_state_x86_64" },
        { &real.loop_exit_noexc, "cpu_loop_exit_noexc_x86_64" },
        { &real.loop_exit, "cpu_loop_exit_x86_64" },
        { &real.abort, "cpu_abort_x86_64" },
        { &real.raise, "raise_exception_err_ra_x86_64" },
        { &real.set_page, "tlb_set_page_with_attrs_x86_64" },
        { &real.load64, "address_space_ldq_x86_64" },
        { &real.store32, "address_space_stl_notdirty_x86_64" },
        { &real.device_write, "memory_region_dispatch_write_x86_64" },
        { &real.block_of, "tcg_tb_lookup_x86_64" },
        { &real.do_alone, "cpu_io_recompile_x86_64" },
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *symbol = dlsym(handle, wanted[i].name);
        if (!symbol)
            return -1;
        memcpy(wanted[i].where, &symbol, sizeof symbol);
    }
    return 0;
}

/* How large this library thinks an engine is: a library from before a change must not be used. */
uint32_t enclavedbg_engine_size(void)
{
    return sizeof(struct engine);
}

/* Take an engine under this library's care: 0, or -1 when the table is full. */
int enclavedbg_attach(struct engine *engine)
{
    if (engine->regions > MAX_REGIONS)
        return -1;
    for (uint32_t i = 0; i < engine->regions; i++) {
        engine->region[i].ram_addr = real.ram_addr(engine->uc, (void *)engine->region[i].host);
        engine->has_code[i] = calloc(engine->region[i].size / PAGE_SIZE, 1);
        if (!engine->has_code[i])
            return -1;
    }
    for (int i = 0; i < MAX_ENGINES; i++)
        if (!engines[i]) {
            engines[i] = engine;
            return 0;
        }
    return -1;
}

void enclavedbg_detach(struct engine *engine)
{
    for (int i = 0; i < MAX_ENGINES; i++)
        if (engines[i] == engine)
            engines[i] = NULL;
    for (uint32_t i = 0; i < engine->regions; i++) {
        free(engine->has_code[i]);
        engine->has_code[i] = NULL;
    }
}

/*
 * Unicorn's UC_HOOK_INTR callback: deliver a fault or software interrupt through the guest's own IDT. A fault
 * inside the delivery longjmps back into Unicorn's loop with the double or triple fault that QEMU made of it,
 * which is safe here as no Python frame lies between.
 */
void enclavedbg_deliver(void *uc, uint32_t vector, void *user)
{
    struct engine *engine = user;
    engine->exceptions++;
    /*
     * Set when the delivery of this same exception met what is no memory at all. No guest can get there, only a
     * debugger that makes up registers; Unicorn would try for ever.
     */
    if (FIELD(uint32_t, uc, engine->at.uc_invalid_error)) {
        FIELD(int32_t, engine->cpu, engine->at.cpu_exception_index) = EXCP_HLT;
        real.loop_exit(engine->cpu);
    }
    /* Unicorn has gone past an INT already; should its gate refuse, the fault is the INT's (SDM volume 3, 6.5). */
    if (FIELD(int32_t, engine->env, engine->at.env_exception_is_int))
        FIELD(uint64_t, engine->env, engine->at.env_eip) = engine->instruction;
    /*
     * An interrupt whose gate is bad, with a handler for that which leaves interrupts on, comes again before
     * Unicorn looks whether it should stop, and so for ever. The stop goes first.
     */
    if (FIELD(uint8_t, engine->cpu, engine->at.cpu_exit_request)) {
        uint32_t *request = &FIELD(uint32_t, engine->cpu, engine->at.cpu_interrupt_request);
        engine->interrupt_held |= *request & CPU_INTERRUPT_VIRQ;
        *request &= ~(uint32_t)CPU_INTERRUPT_VIRQ;
    }
    FIELD(int32_t, engine->cpu, engine->at.cpu_exception_index) = (int32_t)vector;
    real.do_interrupt(engine->cpu);
    FIELD(int32_t, engine->cpu, engine->at.cpu_exception_index) = -1;
    if (FIELD(uint32_t, engine->cpu, engine->at.cpu_singlestep)) {
        /* A step that faults ends at its handler's first instruction. */
        FIELD(uint8_t, uc, engine->at.uc_stop_request) = 1;
        FIELD(uint8_t, engine->cpu, engine->at.cpu_exit_request) = 1;
    }
}

/*
 * Stands in for uc_struct.stop_interrupt. Unicorn asks it of every exception: answering no for #UD sends it
 * down the same path as every other fault; and on a debug stop Unicorn's outer loop would spin for ever unless
 * a stop was requested. A triple fault arrives as a halt that halted nothing (QEMU's check_exception).
 */
bool enclavedbg_stop_interrupt(void *uc, int vector)
{
    struct engine *engine = by_uc(uc);
    if (!engine)
        return vector == EXCP06_ILLOP;
    engine->instruction = FIELD(uint64_t, engine->env, engine->at.env_eip);
    if (vector == EXCP_DEBUG) {
        engine->debug_stop = 1;
        FIELD(uint8_t, uc, engine->at.uc_stop_request) = 1;
    } else if (vector == EXCP_HLT && !FIELD(uint32_t, engine->cpu, engine->at.cpu_halted)) {
        engine->triple_fault = 1;
    }
    return false;
}

/* ---- instead of Unicorn's own ---- */

/* `syscall` is a stub in Unicorn; this is the instruction (SDM volume 2, SYSCALL). */
void helper_syscall_x86_64(void *env, int addend)
{
    struct engine *engine = by_env(env);
    if (!engine) {
        real.syscall(env, addend);
        return;
    }
    if (!(FIELD(uint64_t, env, engine->at.env_efer) & EFER_SCE)) {
        /* The address lies in the call of translated code: QEMU's GETPC. Does not return. */
        real.raise(env, EXCP06_ILLOP, 0, (uintptr_t)__builtin_return_address(0) - 2);
        return;
    }
    const struct layout *at = &engine->at;
    uint64_t *regs = env;
    struct segment_cache *segs = &FIELD(struct segment_cache, env, at->env_segs);
    uint32_t *hflags = &FIELD(uint32_t, env, at->env_hflags);
    bool code64 = *hflags & HF_CS64;
    uint32_t selector = (FIELD(uint64_t, env, at->env_star) >> 32) & 0xfffc;
    uint64_t flags = real.read_eflags(env) & ~(uint64_t)EFLAGS_RF;
    uint64_t masked = flags & ~FIELD(uint64_t, env, at->env_fmask);

    engine->syscalls++;
    regs[R_RCX] = FIELD(uint64_t, env, at->env_eip) + (uint64_t)addend;
    regs[R_R11] = flags;
    segs[R_CS] = (struct segment_cache){ selector, 0, 0xffffffff, SEGMENT_CODE64 };
    segs[R_SS] = (struct segment_cache){ selector + 8, 0, 0xffffffff, SEGMENT_DATA };
    *hflags &= ~(uint32_t)HF_CPL;
    FIELD(uint64_t, env, at->env_eflags) = (masked & ~(uint64_t)EFLAGS_LAZY) | 2;
    real.write_eflags(env, masked, 0);
    real.update_hflags(env);
    FIELD(uint64_t, env, at->env_eip) = FIELD(uint64_t, env, code64 ? at->env_lstar : at->env_cstar);
}

/*
 * Unicorn ends the process when the stack of an inner ring is wanted and the task register holds nothing, which a
 * guest's kernel can bring about (`ltr` of 0). For the processor it is a fault that it cannot deliver either.
 */
void cpu_abort_x86_64(void *cpu, const char *format, ...)
{
    struct engine *engine = by_cpu(cpu);
    if (!engine) {
        real.abort(cpu, "%s", format);
        abort();
    }
    engine->triple_fault = 1;
    engine->no_task_state = 1;
    FIELD(int32_t, cpu, engine->at.cpu_exception_index) = EXCP_HLT;
    real.loop_exit(cpu);
}

static struct region *region_of_ram(struct engine *engine, uint64_t ram_addr, uint32_t *index)
{
    for (uint32_t i = 0; i < engine->regions; i++)
        if (ram_addr - engine->region[i].ram_addr < engine->region[i].size) {
            *index = i;
            return &engine->region[i];
        }
    return NULL;
}

static struct region *region_of_gpa(struct engine *engine, uint64_t gpa)
{
    for (uint32_t i = 0; i < engine->regions; i++)
        if (gpa - engine->region[i].gpa < engine->region[i].size)
            return &engine->region[i];
    return NULL;
}

/*
 * Unicorn keeps no dirty bits for pages, so a write through a second mapping of a page that holds translated
 * code went unnoticed. These three bring QEMU's rule back: when a page gets its first translation every TLB
 * entry that maps it is watched again, and the first write through any of them drops the page's translations.
 */
void tlb_protect_code_x86_64(void *uc, uint64_t ram_addr)
{
    struct engine *engine = by_uc(uc);
    uint32_t i;
    struct region *region = engine ? region_of_ram(engine, ram_addr, &i) : NULL;
    if (!region) {
        real.protect_code(uc, ram_addr);
        return;
    }
    uint64_t offset = (ram_addr - region->ram_addr) & PAGE_MASK;
    engine->protected_pages++;
    engine->has_code[i][offset / PAGE_SIZE] = 1;
    real.reset_dirty(engine->cpu, region->host + offset, PAGE_SIZE);
}

/* Scanned the whole TLB at each translation; the function above does its work. */
void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t va, uint64_t length)
{
    if (!by_cpu(cpu))
        real.reset_dirty_by_vaddr(cpu, va, length);
}

void tlb_set_dirty_x86_64(void *cpu, uint64_t va)
{
    struct engine *engine = by_cpu(cpu);
    if (engine) {
        uint32_t attrs[4];
        uint64_t gpa = real.debug_translate(cpu, va & PAGE_MASK, attrs);
        engine->first_writes++;
        for (uint32_t i = 0; i < engine->regions; i++) {
            struct region *region = &engine->region[i];
            uint64_t offset = gpa - region->gpa;
            if (offset >= region->size || !engine->has_code[i][offset / PAGE_SIZE])
                continue;
            uint64_t start = region->ram_addr + (offset & PAGE_MASK);
            real.invalidate(engine->uc, start, start + PAGE_SIZE);
            engine->has_code[i][offset / PAGE_SIZE] = 0;
        }
    }
    real.set_dirty(cpu, va);
}

/*
 * Unicorn watches every page that enters the TLB for its first write, and for ever when it may be executed, as
 * all of memory may during early boot. Watched is needed only what holds translated code: the rest may be
 * written at full speed at once. (PAGE_WRITE is 2; the entry of a watchpoint or a device is left alone, as its
 * other bits keep tlb_set_dirty from matching.)
 */
void tlb_set_page_with_attrs_x86_64(void *cpu, uint64_t va, uint64_t gpa, uint32_t attrs, int prot, int mmu,
                                    uint64_t size)
{
    struct engine *engine = by_cpu(cpu);
    real.set_page(cpu, va, gpa, attrs, prot, mmu, size);
    if (!engine || !(prot & 2))
        return;
    struct region *region = region_of_gpa(engine, gpa);
    if (region && !engine->has_code[region - engine->region][(gpa - region->gpa) / PAGE_SIZE])
        real.set_dirty(cpu, va & PAGE_MASK);
}

/* The page walk's reads, and its marking of entries as accessed: straight from RAM, where Unicorn searches. */
uint64_t address_space_ldq_x86_64(void *uc, void *space, uint64_t gpa, uint32_t attrs, uint32_t *result)
{
    struct engine *engine = by_uc(uc);
    struct region *region = engine ? region_of_gpa(engine, gpa) : NULL;
    uint64_t value;
    if (!region || gpa - region->gpa > region->size - sizeof value)
        return real.load64(uc, space, gpa, attrs, result);
    memcpy(&value, (void *)(region->host + (gpa - region->gpa)), sizeof value);
    if (result)
        *result = 0;
    return value;
}

void address_space_stl_notdirty_x86_64(void *uc, void *space, uint64_t gpa, uint32_t value, uint32_t attrs,
                                       uint32_t *result)
{
    struct engine *engine = by_uc(uc);
    struct region *region = engine ? region_of_gpa(engine, gpa) : NULL;
    if (!region || gpa - region->gpa > region->size - sizeof value) {
        if (engine)  /* a page walk is no instruction's access: see below */
            FIELD(uintptr_t, engine->cpu, engine->at.cpu_mem_io_pc) = 0;
        real.store32(uc, space, gpa, value, attrs, result);
        return;
    }
    memcpy((void *)(region->host + (gpa - region->gpa)), &value, sizeof value);
    if (result)
        *result = 0;
}

/* Unicorn dropped QEMU's watchpoints but kept the places that ask for them. */
int cpu_watchpoint_address_matches_x86_64(void *cpu, uint64_t address, uint64_t length)
{
    struct engine *engine = by_cpu(cpu);
    int access = 0;
    if (!engine)
        return real.watch_matches(cpu, address, length);
    for (uint32_t i = 0; i < engine->watchpoints; i++) {
        const struct watchpoint *w = &engine->watchpoint[i];
        if (address <= w->address + w->length - 1 && w->address <= address + length - 1)
            access |= (int)w->access;
    }
    return access;
}

/*
 * Called before the access. The first time, leave the block and do this one instruction again in a block of
 * its own; the second time let it through and stop behind it.
 */
void cpu_check_watchpoint_x86_64(void *cpu, uint64_t address, uint64_t length, uint32_t attrs, int flags,
                                 uintptr_t ra)
{
    struct engine *engine = by_cpu(cpu);
    if (!engine) {
        real.check_watch(cpu, address, length, attrs, flags, ra);
        return;
    }
    if (engine->watch_hit) {
        engine->watch_hit = 2;
        FIELD(uint32_t, cpu, engine->at.cpu_interrupt_request) |= CPU_INTERRUPT_DEBUG;
        FIELD(uint16_t *, cpu, engine->at.cpu_icount_decr)[1] = 0xffff;
        return;
    }
    for (uint32_t i = 0; i < engine->watchpoints; i++) {
        const struct watchpoint *w = &engine->watchpoint[i];
        if (!((int)w->access & flags) || address > w->address + w->length - 1 ||
            w->address > address + length - 1)
            continue;
        engine->watch_hit = 1;
        engine->watch_index = i;
        engine->watch_address = address > w->address ? address : w->address;
        FIELD(uint32_t, cpu, engine->at.cpu_cflags_next_tb) = 1;
        if (ra)
            real.restore_state(cpu, ra, true);
        real.loop_exit_noexc(cpu);
    }
}

/*
 * Every write to a device comes through here. Unicorn stops between blocks only, so a stop that the device asks for
 * would come some instructions late. Before the device hears of the write, the instruction is therefore sent back
 * to be done in a block of its own, with which QEMU's function for that leaves the block.
 */
uint32_t memory_region_dispatch_write_x86_64(void *uc, void *region, uint64_t at, uint64_t data, int op,
                                             uint32_t attrs)
{
    struct engine *engine = by_uc(uc);
    if (engine && engine->exact_stops) {
        uintptr_t pc = FIELD(uintptr_t, engine->cpu, engine->at.cpu_mem_io_pc);
        void *block = pc ? real.block_of(FIELD(void *, uc, engine->at.uc_tcg_context), pc) : NULL;
        if (block && (FIELD(uint32_t, block, engine->at.tb_cflags) & CF_COUNT_MASK) != 1)
            real.do_alone(engine->cpu, pc);
    }
    return real.device_write(uc, region, at, data, op, attrs);
}
