// SPDX-License-Identifier: GPL-2.0-or-later
/* nsm-check: requests to a device that was told to fail: expect=REQUEST:ERROR|ok|cut and slow=REQUEST:MS. */
#include <stdlib.h>
#include <string.h>

#include "nsm_check.h"

#define MAX_FAULTS 64
#define MAX_MILLISECONDS 1000000
#define FIRST_LOCKED 31 /* LockPCR takes this register first, then those below it: a lock is for ever */
#define EXTENDED 16

struct plain {
	const char *name;
	const char *request; /* without the register's number, which comes last where there is one */
	bool (*normal)(const struct answer *answer);
};

static bool normal_description(const struct answer *answer)
{
	struct description description;

	return read_description(answer, &description);
}

static bool normal_random(const struct answer *answer)
{
	struct field fields[] = { { .name = "random", .kind = KIND_BYTES } };

	return answer_fields(answer, "GetRandom", fields, COUNT(fields));
}

static bool normal_pcr(const struct answer *answer)
{
	struct pcr pcr;

	return read_pcr(answer, &pcr);
}

static bool normal_extension(const struct answer *answer)
{
	struct field fields[] = { { .name = "data", .kind = KIND_BYTES } };

	if (!answer_fields(answer, "ExtendPCR", fields, COUNT(fields)))
		return false;
	if (fields[0].value.string.size != PCR_SIZE)
		return BAD("expected a register of %d bytes, got %zu", PCR_SIZE, fields[0].value.string.size);
	return true;
}

static bool normal_lock(const struct answer *answer)
{
	if (!same((struct bytes){ answer->data, answer->size }, "\x67LockPCR", 8))
		return BAD("expected LockPCR, got %s", show(answer));
	return true;
}

static bool normal_range_lock(const struct answer *answer)
{
	if (!same((struct bytes){ answer->data, answer->size }, "\x68LockPCRs", 9))
		return BAD("expected LockPCRs, got %s", show(answer));
	return true;
}

static bool normal_document(const struct answer *answer)
{
	struct field fields[] = { { .name = "document", .kind = KIND_BYTES } };

	return answer_fields(answer, "Attestation", fields, COUNT(fields));
}

static const struct plain plains[] = {
	{ "DescribeNSM", "6b44657363726962654e534d", normal_description },
	{ "GetRandom", "6947657452616e646f6d", normal_random },
	{ "DescribePCR", "a16b4465736372696265504352a165696e64657800", normal_pcr },
	{ "ExtendPCR", "a169457874656e64504352a265696e64657810646461746143010203", normal_extension },
	{ "LockPCR", "a1674c6f636b504352a165696e646578", normal_lock },
	/* What is locked from the start. */
	{ "LockPCRs", "a1684c6f636b50435273a16572616e676510", normal_range_lock },
	{ "Attestation", "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6",
	  normal_document },
};

static struct fault {
	const char *word; /* as it was given: the line's name */
	const struct plain *plain;
	const char *expected; /* an error's name, "ok" or "cut" */
	long milliseconds;    /* 0 for expect= */
} faults[MAX_FAULTS];
static size_t fault_count;
static unsigned next_locked = FIRST_LOCKED;

bool take_fault(const char *word)
{
	struct fault fault = { .word = word, .expected = "ok" };
	bool slow = strncmp(word, "slow=", 5) == 0;
	const char *name, *colon;
	size_t size;

	if ((!slow && strncmp(word, "expect=", 7) != 0) || fault_count == MAX_FAULTS)
		return false;
	name = word + (slow ? 5 : 7);
	colon = strchr(name, ':');
	if (!colon)
		return false;
	size = (size_t)(colon - name);
	for (size_t i = 0; i < COUNT(plains); i++)
		if (strlen(plains[i].name) == size && memcmp(plains[i].name, name, size) == 0)
			fault.plain = &plains[i];
	if (!fault.plain)
		return false;
	if (slow) {
		char *end;

		/* strtol takes blanks and signs too. */
		if (colon[1] < '0' || colon[1] > '9')
			return false;
		fault.milliseconds = strtol(colon + 1, &end, 10);
		if (*end || fault.milliseconds <= 0 || fault.milliseconds > MAX_MILLISECONDS)
			return false;
	} else {
		fault.expected = colon + 1;
		if (strcmp(fault.expected, "ok") != 0 && strcmp(fault.expected, "cut") != 0 &&
		    !is_error_name(fault.expected, strlen(fault.expected)))
			return false;
	}
	faults[fault_count++] = fault;
	return true;
}

bool faults_wanted(void)
{
	return fault_count > 0;
}

static bool run_fault(const struct fault *fault)
{
	struct request request = make_request(fault->plain->request);
	struct answer answer;
	long start, taken;

	if (fault->plain->normal == normal_lock) {
		if (next_locked == EXTENDED)
			return BAD("expected at most %d times LockPCR, got more", FIRST_LOCKED - EXTENDED);
		add_number(&request, next_locked--);
	}
	start = milliseconds();
	if (!ask(&request, &answer))
		return false;
	taken = milliseconds() - start;
	if (strcmp(fault->expected, "cut") == 0) {
		enum cbor_state state = cbor_state((struct bytes){ answer.data, answer.size });

		return state == CBOR_CUT ? true : BAD("expected CBOR that is cut off, got %s: %s",
						      cbor_state_name(state), show(&answer));
	}
	if (strcmp(fault->expected, "ok") == 0) {
		if (taken < fault->milliseconds)
			return BAD("expected an answer after %ld ms, got it after %ld", fault->milliseconds, taken);
		return fault->plain->normal(&answer);
	}
	return answer_is_error(&answer, fault->expected);
}

int run_faults(int *bad)
{
	for (size_t i = 0; i < fault_count; i++)
		*bad += !report(faults[i].word, run_fault(&faults[i]));
	return (int)fault_count;
}
