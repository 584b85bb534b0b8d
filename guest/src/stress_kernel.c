// SPDX-License-Identifier: GPL-2.0-or-later
/* Stress: processes, threads, signals, pipes, memory, files, time and kernel modules. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "stress.h"

/* ---- processes ---- */

/* What a spawned copy of this program returns for its number. */
static int child_status(long number)
{
	uint32_t value = (uint32_t)number;

	for (int i = 0; i < 1000; i++)
		value = value * 1664525 + 1013904223;
	return (int)(value >> 25);
}

int child_main(const char *number)
{
	return child_status(atol(number));
}

/* Start this program again, with fork and exec or with posix_spawn, which is a clone that shares memory. */
static pid_t start_child(long index)
{
	char number[24];
	char *arguments[] = { "stress", "child", number, NULL }, *environment[] = { NULL };
	pid_t child = -1;

	snprintf(number, sizeof(number), "%ld", index);
	if (index % 2)
		return posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environment) ? -1 : child;
	child = fork();
	if (child == 0) {
		execve("/proc/self/exe", arguments, environment);
		_exit(255);
	}
	return child;
}

/* Up to eight processes at once. */
bool part_spawn(void)
{
	const int at_once = 8;
	pid_t children[8];

	for (long first = 0; first < options.spawns; first += at_once) {
		for (int i = 0; i < at_once; i++) {
			children[i] = start_child(first + i);
			if (children[i] < 0)
				return BAD("no process: %s", strerror(errno));
		}
		for (int i = 0; i < at_once; i++) {
			int status;

			if (waitpid(children[i], &status, 0) != children[i] || !WIFEXITED(status) ||
			    WEXITSTATUS(status) != child_status(first + i))
				return BAD("process %ld ended with %#x, not status %d", first + i, status,
					   child_status(first + i));
		}
	}
	return true;
}

/* ---- threads ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long plain, turn;
static atomic_long added, exchanged;
static _Thread_local long own;

static void *count(void *argument)
{
	long index = (long)(intptr_t)argument;

	for (long i = 0; i < options.counts; i++) {
		long old = atomic_load(&exchanged);

		atomic_fetch_add(&added, 1);
		while (!atomic_compare_exchange_weak(&exchanged, &old, old + 1))
			;
		pthread_mutex_lock(&mutex);
		plain++;
		pthread_mutex_unlock(&mutex);
		own++;
	}
	/* Then each in its turn, a hundred times. */
	for (long i = 0; i < 100; i++) {
		pthread_mutex_lock(&mutex);
		while (turn % options.threads != index)
			pthread_cond_wait(&turned, &mutex);
		turn++;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&mutex);
	}
	return own == options.counts ? NULL : argument;
}

bool part_threads(void)
{
	pthread_t *threads = calloc((size_t)options.threads, sizeof(*threads));
	long expected = options.threads * options.counts, bad = 0;

	plain = turn = 0;
	added = exchanged = 0;
	for (long i = 0; i < options.threads; i++)
		if (!threads || pthread_create(&threads[i], NULL, count, (void *)(intptr_t)i))
			return BAD("no thread");
	for (long i = 0; i < options.threads; i++) {
		void *result;

		pthread_join(threads[i], &result);
		bad += result != NULL;
	}
	free(threads);
	return (plain == expected && added == expected && exchanged == expected && bad == 0) ||
	       BAD("counted %ld, %ld and %ld, not %ld", plain, (long)added, (long)exchanged, expected);
}

/* ---- signals ---- */

static volatile sig_atomic_t alarms, users;

static void on_alarm(int number)
{
	volatile double x = 1.0;

	(void)number;
	/* Spoil floating point registers: the kernel must give them back to the code that was interrupted. */
	for (int i = 1; i < 20; i++)
		x = x * 1.5 + 1.0 / i;
	alarms++;
}

static void on_user(int number)
{
	(void)number;
	users++;
}

/* A sum whose terms are all exact, so that any lost register shows, while a timer interrupts it. */
bool part_signals(void)
{
	struct itimerval every = { { 0, 10000 }, { 0, 10000 } }, never = { { 0, 0 }, { 0, 0 } };
	long sent = options.code;

	alarms = users = 0;
	signal(SIGALRM, on_alarm);
	signal(SIGUSR1, on_user);
	setitimer(ITIMER_REAL, &every, NULL);
	for (int again = 0; again < 100000 && alarms < 5; again++) {
		double a = 0, b = 0, c = 0, d = 0;

		for (int i = 0; i < 20000; i++)
			a += 0.5, b += 0.25, c += 2.0, d -= 1.0;
		if (a != 10000 || b != 5000 || c != 40000 || d != -20000)
			return BAD("sums %g %g %g %g after %d alarms", a, b, c, d, (int)alarms);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	for (long i = 0; i < sent; i++)
		raise(SIGUSR1);
	signal(SIGALRM, SIG_DFL);
	signal(SIGUSR1, SIG_DFL);
	return (users == sent && alarms >= 5) ||
	       BAD("%d of %ld signals, %d alarms", (int)users, sent, (int)alarms);
}

/* ---- pipes and sockets ---- */

/* Read what the parent sends, add one to each byte, send it back. */
static int answer_plus_one(int in, int out)
{
	uint8_t data[777];
	ssize_t done;

	while ((done = read(in, data, sizeof(data))) > 0) {
		for (ssize_t i = 0; i < done; i++)
			data[i]++;
		if (write_all(out, data, (size_t)done) < 0)
			return 1;
	}
	return 0;
}

static bool exchange_with_child(const int to_child[2], const int from_child[2])
{
	uint8_t data[1000], got[1000];

	for (long i = 0; i < options.code; i++) {
		for (size_t j = 0; j < sizeof(data); j++)
			data[j] = (uint8_t)(i + (long)j);
		if (write_all(to_child[1], data, sizeof(data)) < 0)
			return BAD("write: %s", strerror(errno));
		for (size_t size = 0; size < sizeof(got);) {
			ssize_t done = read(from_child[0], got + size, sizeof(got) - size);

			if (done <= 0)
				return BAD("read ended after %zu bytes", size);
			size += (size_t)done;
		}
		for (size_t j = 0; j < sizeof(data); j++)
			if (got[j] != (uint8_t)(data[j] + 1))
				return BAD("byte %zu of exchange %ld", j, i);
	}
	return true;
}

bool part_pipes(void)
{
	for (int sockets = 0; sockets < 2; sockets++) {
		int there[2], back[2], status;
		bool good;
		pid_t child;

		if (sockets ? socketpair(AF_UNIX, SOCK_STREAM, 0, there) || socketpair(AF_UNIX, SOCK_STREAM, 0, back)
			    : pipe(there) || pipe(back))
			return BAD("pipe: %s", strerror(errno));
		child = fork();
		if (child == 0) {
			close(there[1]);
			close(back[0]);
			_exit(answer_plus_one(there[0], back[1]));
		}
		close(there[0]);
		close(back[1]);
		good = child > 0 && exchange_with_child(there, back);
		close(there[1]);
		close(back[0]);
		if (child > 0 && (waitpid(child, &status, 0) != child || status != 0) && good)
			return BAD("the child ended with %#x", status);
		if (!good)
			return false;
	}
	return true;
}

/* ---- memory ---- */

static void mark(uint64_t *words, long pages, uint64_t seed)
{
	for (long i = 0; i < pages; i++)
		words[i * (PAGE / 8) + i % 512] = seed + (uint64_t)i;
}

static long wrong_marks(const uint64_t *words, long pages, uint64_t seed)
{
	long bad = 0;

	for (long i = 0; i < pages; i++)
		bad += words[i * (PAGE / 8) + i % 512] != seed + (uint64_t)i;
	return bad;
}

/* Map, fill, move, split and unmap; copy on write between a process and its child. */
bool part_memory(void)
{
	size_t size = (size_t)options.pages * PAGE;

	for (int round = 0; round < 20; round++) {
		uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		uint64_t seed = 0x1234567800000000u * (uint64_t)(round + 1);
		int status;
		pid_t child;

		if (words == MAP_FAILED)
			return BAD("mmap");
		mark(words, options.pages, seed);
		words = mremap(words, size, 2 * size, MREMAP_MAYMOVE);
		if (words == MAP_FAILED || wrong_marks(words, options.pages, seed))
			return BAD("contents after mremap");
		child = fork();
		if (child == 0) {
			mark(words, options.pages, ~seed);
			_exit(wrong_marks(words, options.pages, ~seed) != 0);
		}
		if (waitpid(child, &status, 0) != child || status)
			return BAD("the child's copy: %#x", status);
		if (wrong_marks(words, options.pages, seed))
			return BAD("the child wrote into its parent's memory");
		if (munmap((uint8_t *)words + size, size) < 0 || madvise(words, size, MADV_DONTNEED) < 0 ||
		    words[0] != 0 || munmap(words, size) < 0)
			return BAD("unmapping");
	}
	return true;
}

/* ---- files ---- */

bool part_files(void)
{
	for (long i = 0; i < options.files; i++) {
		char name[40], other[40];
		long words[512], got[512];
		int fd;

		snprintf(name, sizeof(name), "/tmp/stress-%ld", i);
		snprintf(other, sizeof(other), "/tmp/stress-%ld-moved", i);
		for (int j = 0; j < 512; j++)
			words[j] = i * 1000 + j;
		fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (fd < 0 || write_all(fd, words, sizeof(words)) < 0 || rename(name, other) < 0)
			return BAD("%s: %s", name, strerror(errno));
		if (pread(fd, got, sizeof(got), 0) != sizeof(got) || memcmp(words, got, sizeof(got)))
			return BAD("contents of %s", other);
		close(fd);
		if (unlink(other) < 0 || access(other, F_OK) == 0)
			return BAD("unlink %s", other);
	}
	return true;
}

/* ---- time ---- */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Time never goes back, and a sleep is never shorter than asked for. */
bool part_clock(void)
{
	int64_t before = now_ns();

	for (long i = 0; i < options.counts; i++) {
		int64_t now = now_ns();

		if (now < before)
			return BAD("the clock went back by %ld ns", (long)(before - now));
		before = now;
	}
	for (int i = 0; i < 5; i++) {
		struct timespec wish = { 0, 3000000 };
		int64_t start = now_ns();

		nanosleep(&wish, NULL);
		if (now_ns() - start < 3000000)
			return BAD("a sleep of 3 ms took %ld ns", (long)(now_ns() - start));
	}
	return true;
}

/* ---- kernel modules ---- */

/* Load and unload: the kernel links code into its own space and patches it there. */
bool part_module(void)
{
	const char *slash = strrchr(options.module, '/');
	char name[64];

	snprintf(name, sizeof(name), "%s", slash ? slash + 1 : options.module);
	name[strcspn(name, ".")] = 0;
	for (long i = 0; i < 20; i++) {
		int fd = open(options.module, O_RDONLY | O_CLOEXEC);
		long result = fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", 0);

		if (result < 0)
			return BAD("loading %s: %s", options.module, strerror(errno));
		close(fd);
		if (syscall(SYS_delete_module, name, O_NONBLOCK) < 0)
			return BAD("unloading %s: %s", name, strerror(errno));
	}
	return true;
}
