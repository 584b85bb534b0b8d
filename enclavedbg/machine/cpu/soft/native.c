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
 * Here are binding, exceptions and system calls; native_memory.c has memory, native_stops.c what stops the guest.
 * Structure offsets come from the Python side (layout.py), which checks them at start-up.
 */
#define _GNU_SOURCE
#include "native.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

struct engine *engines[MAX_ENGINES];
struct originals real;

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
