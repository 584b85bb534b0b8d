// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stress: code that is written and run at once, as just-in-time compilers do, and exceptions.
 *
 * x86 promises that a store is seen by the very next instruction fetched from there, whatever address it went through
 * on the same processor.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stress.h"

#define SLOTS 8
#define SLOT_SIZE 64

typedef int function(void);

/* mov eax, value; ret */
static void put_function(uint8_t *at, int value)
{
	at[0] = 0xB8;
	memcpy(at + 1, &value, sizeof(value));
	at[5] = 0xC3;
}

static int call(const uint8_t *code)
{
	function *f;

	memcpy(&f, &code, sizeof(f));
	return f();
}

/* Write `SLOTS` functions through one address of a page, run them through another; count the wrong results. */
static int write_and_run(uint8_t *writable, const uint8_t *executable, int value)
{
	int bad = 0;

	for (int i = 0; i < SLOTS; i++)
		put_function(writable + i * SLOT_SIZE, value + i);
	for (int i = 0; i < SLOTS; i++)
		bad += call(executable + i * SLOT_SIZE) != value + i;
	return bad;
}

/* One mapping that is writable and executable; a function also lies over the border of its two pages. */
bool part_rewrite(void)
{
	uint8_t *code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int bad = 0;

	if (code == MAP_FAILED)
		return BAD("mmap");
	for (int i = 0; i < options.code; i++) {
		bad += write_and_run(code, code, i * 100);
		put_function(code + PAGE - 3, i);
		bad += call(code + PAGE - 3) != i;
	}
	munmap(code, 2 * PAGE);
	return bad == 0 || BAD("%d of %ld calls", bad, options.code * (SLOTS + 1));
}

/* An instruction that rewrites the one right behind it. */
bool part_next(void)
{
	static const uint8_t program[] = {
		0x40, 0x88, 0x3D, 1, 0, 0, 0, /* mov [rip+1], dil */
		0xB8, 0, 0, 0, 0,	      /* mov eax, 0, whose 0 is the byte written */
		0xC3,
	};
	uint8_t *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int (*identity)(int), bad = 0;

	if (code == MAP_FAILED)
		return BAD("mmap");
	memcpy(code, program, sizeof(program));
	memcpy(&identity, &code, sizeof(identity));
	for (int i = 0; i < options.code; i++)
		bad += identity(i & 0x7F) != (i & 0x7F);
	munmap(code, PAGE);
	return bad == 0 || BAD("%d of %ld calls", bad, options.code);
}

/* Two mappings of the same memory, one to write and one to run. */
bool part_alias(void)
{
	const int pages = 4;
	int bad = 0, fd = memfd_create("code", MFD_CLOEXEC);
	uint8_t *writable, *executable;

	if (fd < 0 || ftruncate(fd, pages * PAGE) < 0)
		return BAD("memfd");
	writable = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	executable = mmap(NULL, pages * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	if (writable == MAP_FAILED || executable == MAP_FAILED)
		return BAD("mmap");
	for (int i = 0; i < options.code; i++)
		for (int page = 0; page < pages; page++)
			bad += write_and_run(writable + page * PAGE, executable + page * PAGE, i * 100 + page);
	munmap(writable, pages * PAGE);
	munmap(executable, pages * PAGE);
	return bad == 0 || BAD("%d of %ld calls", bad, options.code * pages * SLOTS);
}

/* One page that is writable or executable, never both. */
bool part_protect(void)
{
	uint8_t *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int bad = 0;

	if (code == MAP_FAILED)
		return BAD("mmap");
	for (int i = 0; i < options.code; i++) {
		if (mprotect(code, PAGE, PROT_READ | PROT_WRITE) < 0)
			return BAD("mprotect");
		for (int j = 0; j < SLOTS; j++)
			put_function(code + j * SLOT_SIZE, i * 100 + j);
		if (mprotect(code, PAGE, PROT_READ | PROT_EXEC) < 0)
			return BAD("mprotect");
		for (int j = 0; j < SLOTS; j++)
			bad += call(code + j * SLOT_SIZE) != i * 100 + j;
	}
	munmap(code, PAGE);
	return bad == 0 || BAD("%d of %ld calls", bad, options.code * SLOTS);
}

/* ---- exceptions: the kernel must be told the right one, with the right address ---- */

static sigjmp_buf back;
static volatile uintptr_t fault_address;
static uint8_t *guarded;
static volatile long repaired;

static void jump_back(int number, siginfo_t *info, void *context)
{
	(void)context;
	fault_address = (uintptr_t)info->si_addr;
	siglongjmp(back, number);
}

/* The page becomes accessible, and the instruction is done again. */
static void repair(int number, siginfo_t *info, void *context)
{
	uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1);

	(void)number;
	(void)context;
	if (page != (uintptr_t)guarded || mprotect(guarded, PAGE, PROT_READ | PROT_WRITE) < 0)
		_exit(99);
	repaired++;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(number, &action, NULL);
}

/* Run one bad instruction; the signal that came. */
static int signal_of(int kind)
{
	volatile int *nowhere = (volatile int *)0x10;
	int number = sigsetjmp(back, 1);

	if (number)
		return number;
	switch (kind) {
	case 0:
		/* Written out: a compiler makes a comparison of 1 / x. */
		__asm__ volatile("idivl %0" : : "r"(0), "a"(1), "d"(0) : "cc");
		break;
	case 1:
		*nowhere = 1;
		break;
	case 2:
		__asm__ volatile("ud2");
		break;
	case 3:
		__asm__ volatile("int3");
		break;
	case 4:
		__asm__ volatile("hlt"); /* privileged: general protection */
		break;
	}
	return 0;
}

static bool check_exceptions(void)
{
	static const int expected[] = { SIGFPE, SIGSEGV, SIGILL, SIGTRAP, SIGSEGV };

	for (long i = 0; i < options.code; i++) {
		int kind = (int)(i % 5), number = signal_of(kind);

		if (number != expected[kind])
			return BAD("exception %d came as signal %d", kind, number);
		if (kind == 1 && fault_address != 0x10)
			return BAD("fault at 0x10 told as %#lx", (long)fault_address);
	}
	handle(SIGSEGV, repair);
	guarded = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (guarded == MAP_FAILED)
		return BAD("mmap");
	repaired = 0;
	for (long i = 0; i < options.code; i++) {
		volatile uint32_t *word = (volatile uint32_t *)(guarded + 8);

		/* A read-modify-write that faults must be done once, not half or twice. */
		if (i % 2)
			__asm__ volatile("lock incl %0" : "+m"(*word) : : "cc");
		else
			*word += 1;
		if (*word != (uint32_t)i + 1)
			return BAD("counter %u after %ld faults", *word, i + 1);
		mprotect(guarded, PAGE, PROT_NONE);
	}
	munmap(guarded, PAGE);
	return repaired == options.code || BAD("%ld faults of %ld", repaired, options.code);
}

bool part_exceptions(void)
{
	static const int numbers[] = { SIGFPE, SIGSEGV, SIGILL, SIGTRAP };
	bool good;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		handle(numbers[i], jump_back);
	good = check_exceptions();
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		signal(numbers[i], SIG_DFL);
	return good;
}
