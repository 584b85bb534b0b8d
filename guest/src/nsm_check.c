// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Checks a Nitro Secure Module: every request and every error, through /dev/nsm.
 *
 * Requests are bytes that are written out here, answers are compared with bytes where these are determined, else by
 * structure. It knows nothing of the device behind the driver, so it can judge any, the real one too. One line per
 * check, "NSM <check> ok" or "NSM <check> bad: expected ..., got ..."; at the end "NSM all ok (<n> cases)" and exit
 * status 0, or "NSM <k> of <n> bad" and 1; status 2 for an option that is none.
 *
 *	nsm-check [debug=1] [choices=0]
 *	nsm-check expect=REQUEST:ERROR|ok|cut ... slow=REQUEST:MILLISECONDS ...
 *
 * It must run in an enclave that has not used its module yet. It locks all registers, which lasts until the enclave
 * ends; so what changes state comes last, and a second run cannot succeed.
 *
 * debug=1: the enclave runs in debug mode, where the image's registers are zero. choices=0: leave out what is known
 * of emulators only, and take any error where only that there is one is known of the real device.
 *
 * With expect= and slow= only they run, in their order, for a device that was told to fail: each sends the request
 * in its plain form and expects exactly that error, the normal answer, one that is cut off, or the normal answer
 * after that time at the earliest. LockPCR takes another register each time, from 31 down.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "nsm_check.h"

struct options options = { .debug = false, .choices = true };
char problem[400];

/* The order matters: registers are zero until extend_part, and free until lock_part. */
static const struct part *const parts[] = {
	&ioctl_part,	   &module_part, &start_part,  &encoding_part,		 &malformed_part,  &refused_part,
	&attestation_part, &extend_part, &lock_part, &locked_attestation_part, &unchanged_part, &lock_range_part,
};

bool is_error(const struct check *check)
{
	struct bytes name;
	struct answer answer;

	if (!ask_notation(check->request, &answer))
		return false;
	name = error_name(&answer);
	if (!options.choices && name.data && is_error_name((const char *)name.data, name.size))
		return true;
	return answer_is_error(&answer, check->expected);
}

bool is_exact(const struct check *check)
{
	struct request expected = make_request(check->expected);
	struct answer answer;

	if (!ask_notation(check->request, &answer))
		return false;
	if (!same((struct bytes){ answer.data, answer.size }, expected.data, expected.size))
		return BAD("expected %s, got %s", show_bytes(expected.data, expected.size), show(&answer));
	return true;
}

bool report(const char *name, bool ok)
{
	if (ok)
		printf("NSM %s ok\n", name);
	else
		printf("NSM %s bad: %s\n", name, problem);
	return ok;
}

long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int run_checks(int *bad)
{
	int done = 0;

	for (size_t i = 0; i < COUNT(parts); i++)
		for (size_t j = 0; j < parts[i]->count; j++) {
			const struct check *check = &parts[i]->checks[j];

			if (check->choice && !options.choices)
				continue;
			done++;
			*bad += !report(check->name, check->run(check));
			/* Every further request would wait for two minutes too. */
			if (last_errno == ETIMEDOUT) {
				printf("NSM stopped: the device does not answer any more\n");
				return done;
			}
		}
	return done;
}

static bool take_option(const char *word)
{
	if (strncmp(word, "debug=", 6) == 0 && (word[6] == '0' || word[6] == '1') && !word[7])
		options.debug = word[6] == '1';
	else if (strncmp(word, "choices=", 8) == 0 && (word[8] == '0' || word[8] == '1') && !word[9])
		options.choices = word[8] == '1';
	else
		return take_fault(word);
	return true;
}

int main(int argc, char **argv)
{
	int bad = 0, done;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++)
		if (!take_option(argv[i])) {
			fprintf(stderr, "nsm-check: %s is no option (see nsm_check.c)\n", argv[i]);
			return 2;
		}
	nsm = open("/dev/nsm", O_RDWR | O_CLOEXEC);
	if (nsm < 0) {
		fprintf(stderr, "nsm-check: /dev/nsm: %s\n", strerror(errno));
		return 1;
	}
	done = faults_wanted() ? run_faults(&bad) : run_checks(&bad);
	close(nsm);
	if (bad) {
		printf("NSM %d of %d bad\n", bad, done);
		return 1;
	}
	printf("NSM all ok (%d cases)\n", done);
	return 0;
}
