// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory as the software CPU's native library replaces it: code that changes, and page walks. See native.c. */
#include "native.h"

#include <string.h>

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
