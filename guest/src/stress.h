/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of the stress program. Each returns true, or false after BAD told what is wrong. */
#ifndef ENCLAVEDBG_STRESS_H
#define ENCLAVEDBG_STRESS_H

#include <stdbool.h>
#include <stdio.h>

/* How much of each part one round does. */
struct options {
	long rounds, spawns, threads, counts, code, pages, files;
	const char *module; /* a kernel module to load and unload, or NULL */
};

extern struct options options;
extern char problem[200];

#define PAGE 4096
#define BAD(...) (snprintf(problem, sizeof(problem), __VA_ARGS__), false)

/* stress_cpu.c: what one processor computes */
bool part_sha(void);
bool part_integers(void);
bool part_floating(void);
bool part_rounding(void);
bool part_strings(void);

/* stress_code.c: code that is written and run at once */
bool part_rewrite(void);
bool part_next(void);
bool part_alias(void);
bool part_protect(void);
bool part_exceptions(void);

/* stress_kernel.c: what the kernel and the processor do together */
bool part_spawn(void);
bool part_threads(void);
bool part_signals(void);
bool part_pipes(void);
bool part_memory(void);
bool part_files(void);
bool part_clock(void);
bool part_module(void);
int child_main(const char *number);

#endif
