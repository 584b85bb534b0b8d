// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Work that shows whether a processor and its kernel compute what they should.
 *
 * Every part does something that an emulator can get wrong, and compares the result with one that is known or was
 * computed another way. One line per part, "STRESS <part> ok" or "STRESS <part> bad: <what>"; at the end "STRESS
 * all ok" and exit status 0, or "STRESS <n> bad" and 1.
 *
 *	stress [name=value ...]
 *
 * Names: rounds (how often everything is done), only (one part's name), spawns, threads, counts, code, pages, files,
 * module (path of a kernel module to load and unload).
 */
#include "stress.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct options options = {
	.rounds = 1, .spawns = 100, .threads = 8, .counts = 20000, .code = 500, .pages = 256, .files = 50,
};
char problem[200];

static const struct {
	const char *name;
	bool (*run)(void);
} parts[] = {
	{ "sha", part_sha },
	{ "integers", part_integers },
	{ "floating", part_floating },
	{ "rounding", part_rounding },
	{ "strings", part_strings },
	{ "rewrite", part_rewrite },
	{ "next", part_next },
	{ "alias", part_alias },
	{ "protect", part_protect },
	{ "exceptions", part_exceptions },
	{ "spawn", part_spawn },
	{ "threads", part_threads },
	{ "signals", part_signals },
	{ "pipes", part_pipes },
	{ "memory", part_memory },
	{ "files", part_files },
	{ "clock", part_clock },
	{ "module", part_module },
};

static const struct {
	const char *name;
	long *value;
} numbers[] = {
	{ "rounds", &options.rounds }, { "spawns", &options.spawns }, { "threads", &options.threads },
	{ "counts", &options.counts }, { "code", &options.code },     { "pages", &options.pages },
	{ "files", &options.files },
};

static const char *only;

/* Take one name=value; false if there is no such name. */
static bool take_option(const char *word)
{
	const char *value = strchr(word, '=');

	if (!value++)
		return false;
	if (strncmp(word, "module=", 7) == 0)
		options.module = value;
	else if (strncmp(word, "only=", 5) == 0)
		only = value;
	else {
		for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
			if (strncmp(word, numbers[i].name, (size_t)(value - 1 - word)) == 0 &&
			    strlen(numbers[i].name) == (size_t)(value - 1 - word)) {
				*numbers[i].value = atol(value);
				return *numbers[i].value > 0;
			}
		return false;
	}
	return true;
}

static long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	int bad = 0, done = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && strcmp(argv[1], "child") == 0)
		return child_main(argv[2]);
	for (int i = 1; i < argc; i++)
		if (!take_option(argv[i])) {
			fprintf(stderr, "stress: %s is no option (see stress.c)\n", argv[i]);
			return 2;
		}
	for (long round = 1; round <= options.rounds; round++)
		for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
			long start = milliseconds();

			if (only && strcmp(only, parts[i].name) != 0)
				continue;
			if (parts[i].run == part_module && !options.module)
				continue;
			done++;
			if (parts[i].run()) {
				printf("STRESS %s ok (round %ld, %ld ms)\n", parts[i].name, round, milliseconds() - start);
			} else {
				printf("STRESS %s bad: %s (round %ld)\n", parts[i].name, problem, round);
				bad++;
			}
		}
	if (bad || !done) {
		printf("STRESS %d bad\n", bad);
		return 1;
	}
	printf("STRESS all ok\n");
	return 0;
}
