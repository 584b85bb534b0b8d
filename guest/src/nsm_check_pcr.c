// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nsm-check: the registers at start, extending and locking them.
 *
 * A lock is for ever, and a register is zero once only: which check uses which register is written in the tables,
 * and their order is the order of what happens.
 */
#include <string.h>

#include "nsm_check.h"

#define BIT(index) (UINT32_C(1) << (index))

static bool is_zero(const struct pcr *pcr)
{
	static const uint8_t zero[PCR_SIZE];

	return memcmp(pcr->value, zero, PCR_SIZE) == 0;
}

/* ---- at start ---- */

/* DescribeNSM and every DescribePCR tell the same locks. */
bool shows_locked(const struct check *check)
{
	struct description description;
	struct pcr pcr;

	if (!describe_module(&description))
		return false;
	if (description.locked != check->locked)
		return BAD("expected locked registers %08x (one bit each), got %08x", (unsigned)check->locked,
			   (unsigned)description.locked);
	for (unsigned index = 0; index < PCR_COUNT; index++) {
		if (!describe_pcr(index, &pcr))
			return false;
		if (pcr.locked != !!(check->locked & BIT(index)))
			return BAD("expected PCR%u %s, got it %s", index, pcr.locked ? "free" : "locked",
				   pcr.locked ? "locked" : "free");
	}
	return true;
}

/* Kernel, bootstrap and application are measured, except in debug mode, where nothing is to be trusted. */
static bool image_registers(const struct check *check)
{
	struct pcr pcr;

	(void)check;
	for (unsigned index = 0; index < 3; index++) {
		if (!describe_pcr(index, &pcr))
			return false;
		if (is_zero(&pcr) != options.debug)
			return BAD("expected PCR%u %s, got %s", index, options.debug ? "zero" : "not zero",
				   show_bytes(pcr.value, PCR_SIZE));
	}
	return true;
}

/* 5 to 7 and 9 to 15 are reserved, 16 to 31 are the application's. 3, 4 and 8 depend on instance and image. */
static bool zero_registers(const struct check *check)
{
	struct pcr pcr;

	(void)check;
	for (unsigned index = 5; index < PCR_COUNT; index++) {
		if (!describe_pcr(index, &pcr))
			return false;
		if (index != 8 && !is_zero(&pcr))
			return BAD("expected PCR%u zero, got %s", index, show_bytes(pcr.value, PCR_SIZE));
	}
	return true;
}

static const struct check start_checks[] = {
	{ .name = "start/image-registers", .run = image_registers },
	{ .name = "start/zero-registers", .run = zero_registers },
};
const struct part start_part = PART(start_checks);

/* ---- extending ---- */

/* The answer is the new value and nothing else, and that is what the register holds, free as before. */
static bool is_extended(const struct check *check)
{
	struct request expected = make_request("a1 69'ExtendPCR' a1 64'data' 58 30");
	size_t head = expected.size;
	struct answer answer;
	struct pcr pcr;

	add(&expected, check->expected);
	if (!ask_notation(check->request, &answer))
		return false;
	if (!same((struct bytes){ answer.data, answer.size }, expected.data, expected.size))
		return BAD("expected %s, got %s", show_bytes(expected.data, expected.size), show(&answer));
	if (!describe_pcr(check->index, &pcr))
		return false;
	if (pcr.locked || memcmp(pcr.value, expected.data + head, PCR_SIZE) != 0)
		return BAD("expected PCR%u free with %s, got %s with %s", check->index,
			   show_bytes(expected.data + head, PCR_SIZE), pcr.locked ? "locked" : "free",
			   show_bytes(pcr.value, PCR_SIZE));
	return true;
}

/* SHA-384 of 48 zero bytes and 01 02 03; of that and 01 02 03; of the zeros alone; of them and 4069 times 5a. */
#define ONCE "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f199958add55d0c27f04826d27b44d949a650694e"
#define TWICE "65ecb1f7ff7536285cb0ef60bdab531a9cdcf41a2dd1ca5e3dea6445de2c937aab5a1e474c534210583289964acbdc45"
#define OF_NOTHING "8f0d145c0368ad6b70be22e41c400eea91b971d96ba220fec9fae25a58dffdaaf72dbe8f6783d55128c9df4efaf6f8a7"
#define OF_MOST "73334f01aab99858c2af11240e2765ce1d871be4fb50c9169ef1c93d2e9b939a570e42064d7f2629c1216f7978bd879d"

#define EXTEND(text, number, ask, value) \
	{ .name = "extend/" text, .run = is_extended, .index = number, .request = ask, .expected = value }
#define EXTEND_CHOICE(text, number, ask, value) \
	{ .name = "extend/" text, .run = is_extended, .index = number, .request = ask, .expected = value, \
	  .choice = true }

static const struct check extend_checks[] = {
	EXTEND("once", 16, "a169457874656e64504352a265696e64657810646461746143010203", ONCE),
	EXTEND("twice", 16, "a169457874656e64504352a265696e64657810646461746143010203", TWICE),
	EXTEND_CHOICE("with-no-data", 17, "a1 69'ExtendPCR' a2 65'index' 11 64'data' 40", OF_NOTHING),
	/* A request of 4096 bytes. */
	EXTEND_CHOICE("with-most-data", 18, "a1 69'ExtendPCR' a2 65'index' 12 64'data' 59 0fe5 (5a*4069)", OF_MOST),
	EXTEND_CHOICE("indefinite", 19, "bf 69'ExtendPCR' bf 65'index' 13 64'data' 5f 41 01 40 42 0203 ff ff ff", ONCE),
	EXTEND_CHOICE("in-8-bytes", 20,
		      "bb0000000000000001 7b0000000000000009'ExtendPCR' bb0000000000000002 "
		      "65'index' 1b0000000000000014 64'data' 5b0000000000000003 010203", ONCE),
	EXTEND_CHOICE("data-first", 21, "a1 69'ExtendPCR' a2 64'data' 43 010203 65'index' 15", ONCE),
	EXTEND_CHOICE("with-text", 22, "a1 69'ExtendPCR' a2 65'index' 16 64'data' 63 010203", ONCE),
	EXTEND_CHOICE("with-text-in-chunks", 23, "a1 69'ExtendPCR' a2 65'index' 17 64'data' 7f 62 0102 61 03 ff", ONCE),
	EXTEND_CHOICE("unknown-field", 24, "a1 69'ExtendPCR' a3 65'index' 1818 64'else' 82 01 f6 64'data' 43 010203",
		      ONCE),
	/* All that was extended is still free. */
	{ .name = "extend/locks-nothing", .run = shows_locked, .locked = BOOT_LOCKED },
};
const struct part extend_part = PART(extend_checks);

/* ---- locking ---- */

/* Locked as in check->locked afterwards, and the value is kept. */
static bool keeps_value(const struct check *check)
{
	struct request expected = make_request(check->expected);
	struct pcr pcr;

	if (!describe_pcr(check->index, &pcr))
		return false;
	if (!pcr.locked || memcmp(pcr.value, expected.data, PCR_SIZE) != 0)
		return BAD("expected PCR%u locked with %s, got %s with %s", check->index,
			   show_bytes(expected.data, expected.size), pcr.locked ? "locked" : "free",
			   show_bytes(pcr.value, PCR_SIZE));
	return true;
}

#define LOCKED "674c6f636b504352"
#define RANGE_LOCKED "684c6f636b50435273"
/* Registers that the checks of this part lock one by one; 25 and 26 are locked only with choices. */
#define ONE_BY_ONE (BOOT_LOCKED | BIT(16))

static const struct check lock_checks[] = {
	{ .name = "lock/one", .run = is_exact, .request = "a1674c6f636b504352a165696e64657810", .expected = LOCKED },
	{ .name = "lock/one-shows", .run = shows_locked, .locked = ONE_BY_ONE },
	{ .name = "lock/twice", .run = is_error, .request = "a1674c6f636b504352a165696e64657810",
	  .expected = "ReadOnlyIndex" },
	{ .name = "lock/extend-after", .run = is_error, .expected = "ReadOnlyIndex",
	  .request = "a169457874656e64504352a265696e64657810646461746143010203" },
	{ .name = "lock/keeps-value", .run = keeps_value, .index = 16, .expected = TWICE },
	{ .name = "lock/indefinite", .run = is_exact, .request = "bf 67'LockPCR' bf 65'index' 1819 ff ff",
	  .expected = LOCKED, .choice = true },
	{ .name = "lock/in-2-bytes-with-unknown-field", .run = is_exact, .expected = LOCKED, .choice = true,
	  .request = "a1 67'LockPCR' a2 64'else' a1 01 02 65'index' 19001a" },
	{ .name = "lock/others-show", .run = shows_locked, .locked = ONE_BY_ONE | BIT(25) | BIT(26), .choice = true },
};
const struct part lock_part = PART(lock_checks);

/* LockPCRs does not mind what is locked already. Everything is locked at its end. */
static const struct check lock_range_checks[] = {
	{ .name = "lock-range/0", .run = is_exact, .request = "a1684c6f636b50435273a16572616e676500",
	  .expected = RANGE_LOCKED },
	{ .name = "lock-range/20", .run = is_exact, .request = "a1684c6f636b50435273a16572616e676514",
	  .expected = RANGE_LOCKED },
	{ .name = "lock-range/20-again", .run = is_exact, .request = "a1684c6f636b50435273a16572616e676514",
	  .expected = RANGE_LOCKED },
	{ .name = "lock-range/33", .run = is_error, .request = "a1684c6f636b50435273a16572616e67651821",
	  .expected = "InvalidIndex" },
	{ .name = "lock-range/20-extend-after", .run = is_error, .expected = "ReadOnlyIndex",
	  .request = "a1 69'ExtendPCR' a2 65'index' 13 64'data' 43 010203" },
	/* 20 is beyond the range, and 33 locked nothing. */
	{ .name = "lock-range/20-lock-next", .run = is_exact, .request = "a1674c6f636b504352a165696e64657814",
	  .expected = LOCKED },
	{ .name = "lock-range/indefinite", .run = is_exact, .request = "bf 68'LockPCRs' bf 65'range' 190016 ff ff",
	  .expected = RANGE_LOCKED, .choice = true },
	{ .name = "lock-range/22-shows", .run = shows_locked, .choice = true,
	  .locked = ONE_BY_ONE | (BIT(22) - 1) | BIT(25) | BIT(26) },
	{ .name = "lock-range/32", .run = is_exact, .request = "a1684c6f636b50435273a16572616e67651820",
	  .expected = RANGE_LOCKED },
	{ .name = "lock-range/32-shows", .run = shows_locked, .locked = UINT32_MAX },
	{ .name = "lock-range/32-again", .run = is_exact, .request = "a1684c6f636b50435273a16572616e67651820",
	  .expected = RANGE_LOCKED },
	{ .name = "lock-range/32-lock-after", .run = is_error, .request = "a1 67'LockPCR' a1 65'index' 181f",
	  .expected = "ReadOnlyIndex" },
	{ .name = "lock-range/32-extend-after", .run = is_error, .expected = "ReadOnlyIndex",
	  .request = "a1 69'ExtendPCR' a2 65'index' 181f 64'data' 40" },
	{ .name = "lock-range/32-document", .run = is_document,
	  .request = "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6" },
};
const struct part lock_range_part = PART(lock_range_checks);
