// SPDX-License-Identifier: GPL-2.0-or-later
/* Stops at an exact place, which Unicorn has not: watchpoints, and those that a device asks for. See native.c. */
#include "native.h"

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
