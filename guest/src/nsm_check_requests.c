// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nsm-check: forms of requests: legal ones that no library sends, malformed ones, and such as cannot be fulfilled.
 *
 * Nothing here changes anything. Legal forms are mostly tried with DescribePCR, and with requests that lock or
 * extend a register that is locked: those are understood when the answer is ReadOnlyIndex.
 */
#include <string.h>

#include "nsm_check.h"

#define GET_RANDOM "6947657452616e646f6d"

/* ---- legal forms ---- */

static bool is_pcr(const struct check *check)
{
	struct pcr expected, got;
	struct answer answer;

	if (!describe_pcr(check->index, &expected) || !ask_notation(check->request, &answer) ||
	    !read_pcr(&answer, &got))
		return false;
	if (got.locked != expected.locked || memcmp(got.value, expected.value, PCR_SIZE) != 0)
		return BAD("expected PCR%u (%s), got %s", check->index, show_bytes(expected.value, PCR_SIZE),
			   show_bytes(got.value, PCR_SIZE));
	return true;
}

static bool is_description(const struct check *check)
{
	struct description expected, got;
	struct answer answer;

	if (!describe_module(&expected) || !ask_notation(check->request, &answer) || !read_description(&answer, &got))
		return false;
	if (strcmp(got.module_id, expected.module_id) != 0 || got.locked != expected.locked)
		return BAD("expected the module %s, got %s", expected.module_id, got.module_id);
	return true;
}

static bool is_random(const struct check *check)
{
	struct field fields[] = { { .name = "random", .kind = KIND_BYTES } };
	struct answer answer;

	if (!ask_notation(check->request, &answer) || !answer_fields(&answer, "GetRandom", fields, 1))
		return false;
	if (fields[0].value.string.size != 256)
		return BAD("expected 256 random bytes, got %zu", fields[0].value.string.size);
	return true;
}

/* Registers 0 to 2 have values of their own, and 31 is free: the answer tells which one was understood. */
#define PCR(text, number, ask) \
	{ .name = "encoding/" text, .run = is_pcr, .index = number, .request = ask, .choice = true }
#define READ_ONLY(text, ask) \
	{ .name = "encoding/" text, .run = is_error, .request = ask, .expected = "ReadOnlyIndex", .choice = true }
#define BARE(text, check, ask) { .name = "encoding/" text, .run = check, .request = ask, .choice = true }

static const struct check encoding_checks[] = {
	/* These two are what libraries send. */
	{ .name = "encoding/plain", .run = is_pcr, .index = 0,
	  .request = "a16b4465736372696265504352a165696e64657800" },
	{ .name = "encoding/plain-in-1-byte", .run = is_pcr, .index = 31,
	  .request = "a16b4465736372696265504352a165696e646578181f" },
	PCR("0-in-1-byte", 0, "a1 6b'DescribePCR' a1 65'index' 1800"),
	PCR("31-in-2-bytes", 31, "a1 6b'DescribePCR' a1 65'index' 19001f"),
	PCR("1-in-4-bytes", 1, "a1 6b'DescribePCR' a1 65'index' 1a00000001"),
	PCR("31-in-8-bytes", 31, "a1 6b'DescribePCR' a1 65'index' 1b000000000000001f"),
	PCR("indefinite-maps", 0, "bf 6b'DescribePCR' bf 65'index' 00 ff ff"),
	PCR("indefinite-outer-map", 1, "bf 6b'DescribePCR' a1 65'index' 01 ff"),
	PCR("indefinite-inner-map", 2, "a1 6b'DescribePCR' bf 65'index' 02 ff"),
	PCR("names-in-chunks", 0, "a1 7f 68'Describe' 60 63'PCR' ff a1 7f 61'i' 64'ndex' ff 00"),
	PCR("lengths-in-1-byte", 1, "b801 780b'DescribePCR' b801 7805'index' 01"),
	PCR("lengths-in-2-bytes", 2, "b90001 79000b'DescribePCR' b90001 790005'index' 02"),
	PCR("lengths-in-4-bytes", 0, "ba00000001 7a0000000b'DescribePCR' ba00000001 7a00000005'index' 00"),
	PCR("lengths-in-8-bytes", 1,
	    "bb0000000000000001 7b000000000000000b'DescribePCR' bb0000000000000001 7b0000000000000005'index' 01"),
	PCR("unknown-field-after", 0, "a1 6b'DescribePCR' a2 65'index' 00 64'else' f6"),
	PCR("unknown-field-before", 1, "a1 6b'DescribePCR' a2 64'else' 83 20 f5 43 010203 65'index' 01"),
	PCR("unknown-field-with-everything", 2,
	    "a1 6b'DescribePCR' bf 64'else' 9f a1 61'a' 5f 41 00 ff fb3ff8000000000000 c1 1a00000001 "
	    "f93c00 3b00000000ffffffff f7 ff 65'index' 02 ff"),
	READ_ONLY("extend-data-first", "a1 69'ExtendPCR' a2 64'data' 43 010203 65'index' 00"),
	READ_ONLY("extend-with-text", "a1 69'ExtendPCR' a2 65'index' 00 64'data' 63'abc'"),
	READ_ONLY("extend-in-chunks", "a1 69'ExtendPCR' bf 65'index' 190000 64'data' 5f 42 0102 41 03 ff ff"),
	READ_ONLY("lock-in-2-bytes", "a1 67'LockPCR' a1 65'index' 190000"),
	READ_ONLY("lock-indefinite", "bf 67'LockPCR' bf 65'index' 0f ff ff"),
	BARE("name-in-1-byte", is_random, "7809'GetRandom'"),
	BARE("name-in-8-bytes", is_random, "7b0000000000000009'GetRandom'"),
	BARE("name-in-pieces", is_random, "7f 63'Get' 66'Random' ff"),
	BARE("description-name-in-2-bytes", is_description, "79000b'DescribeNSM'"),
	BARE("description-name-in-pieces", is_description, "7f 6b'DescribeNSM' ff"),
	/* The number of registers is taken in every width; none of these locks one. */
	{ .name = "encoding/range-in-4-bytes", .run = is_exact, .request = "a1 68'LockPCRs' a1 65'range' 1a00000000",
	  .expected = "684c6f636b50435273", .choice = true },
	{ .name = "encoding/range-of-locked-ones", .run = is_exact, .expected = "684c6f636b50435273", .choice = true,
	  .request = "bf 68'LockPCRs' bf 65'range' 190010 ff ff" },
	{ .name = "encoding/changes-nothing", .run = shows_locked, .locked = BOOT_LOCKED },
};
const struct part encoding_part = PART(encoding_checks);

/* ---- malformed ---- */

/*
 * A request of no bytes at all is not here: it cannot be told from a driver's mistake, QEMU's device wants to be reset
 * after it, and the driver then waits for two minutes and finds the device dead.
 */
#define MALFORMED(text, ask) \
	{ .name = "malformed/" text, .run = is_error, .request = ask, .expected = "InvalidOperation", .choice = true }

static const struct check malformed_checks[] = {
	/* not CBOR */
	MALFORMED("cut-name", "6947657452616e646f"),
	MALFORMED("cut-map", "a1 6b'DescribePCR'"),
	MALFORMED("cut-inner-map", "a1 6b'DescribePCR' a1 65'index'"),
	MALFORMED("cut-number", "a1 6b'DescribePCR' a1 65'index' 18"),
	MALFORMED("cut-data", "a1 69'ExtendPCR' a2 65'index' 10 64'data' 44 010203"),
	MALFORMED("cut-indefinite-map", "a1 6b'DescribePCR' bf 65'index' 00"),
	MALFORMED("trailing-byte", GET_RANDOM "00"),
	MALFORMED("trailing-request", GET_RANDOM GET_RANDOM),
	MALFORMED("break-alone", "ff"),
	MALFORMED("break-for-a-value", "bf 6b'DescribePCR' bf 65'index' ff ff"),
	MALFORMED("reserved-length", "7c'GetRandom'"),
	MALFORMED("chunk-of-other-type", "a1 69'ExtendPCR' a2 65'index' 10 64'data' 5f 63 010203 ff"),
	MALFORMED("text-of-2-exabytes", "7b1fffffffffffffff 'GetRandom'"),
	MALFORMED("map-of-all-there-is", "bbffffffffffffffff 6b'DescribePCR' a1 65'index' 00"),
	MALFORMED("array-of-all-there-is", "9bffffffffffffffff"),
	MALFORMED("zeros", "(00*4096)"),
	MALFORMED("ones", "(ff*4096)"),
	MALFORMED("nested-1000-deep", "(81*1000) 00"),
	MALFORMED("nested-1000-deep-in-a-field", "a1 6b'DescribePCR' a2 65'index' 00 64'else' (81*1000) 00"),
	MALFORMED("maps-without-end", "(bf*4096)"),
	/* CBOR, but no request */
	MALFORMED("number", "00"),
	MALFORMED("null", "f6"),
	MALFORMED("empty-text", "60"),
	MALFORMED("empty-bytes", "40"),
	MALFORMED("empty-array", "80"),
	MALFORMED("empty-map", "a0"),
	MALFORMED("name-as-bytes", "49'GetRandom'"),
	MALFORMED("name-in-an-array", "81 69'GetRandom'"),
	MALFORMED("request-in-an-array", "81 a1 6b'DescribePCR' a1 65'index' 00"),
	MALFORMED("unknown-name", "68'Nonsense'"),
	MALFORMED("unknown-name-with-fields", "a1 68'Nonsense' a1 65'index' 00"),
	MALFORMED("name-in-lower-case", "69'getrandom'"),
	MALFORMED("name-in-other-case", "a1 6b'DescribePcr' a1 65'index' 00"),
	MALFORMED("name-with-a-zero-byte", "6a'GetRandom' 00"),
	MALFORMED("name-not-utf8", "69 ff'etRandom'"),
	MALFORMED("error-as-request", "a1 65'Error' 6c'InvalidIndex'"),
	MALFORMED("two-requests-in-a-map", "a2 6b'DescribePCR' a1 65'index' 00 67'LockPCR' a1 65'index' 10"),
	MALFORMED("one-request-twice", "a2 67'LockPCR' a1 65'index' 10 67'LockPCR' a1 65'index' 11"),
	MALFORMED("number-as-name", "a1 01 a1 65'index' 00"),
	/* fields */
	MALFORMED("fields-missing", "6b'DescribePCR'"),
	MALFORMED("fields-null", "a1 6b'DescribePCR' f6"),
	MALFORMED("fields-as-number", "a1 6b'DescribePCR' 00"),
	MALFORMED("fields-as-array", "a1 6b'DescribePCR' 82 65'index' 00"),
	MALFORMED("attestation-fields-null", "a1 6b'Attestation' f6"),
	MALFORMED("attestation-without-fields", "6b'Attestation'"),
	MALFORMED("index-missing", "a1 6b'DescribePCR' a0"),
	MALFORMED("index-in-other-case", "a1 6b'DescribePCR' a1 65'Index' 00"),
	MALFORMED("index-name-as-bytes", "a1 6b'DescribePCR' a1 45'index' 00"),
	MALFORMED("index-twice", "a1 6b'DescribePCR' a2 65'index' 00 65'index' 01"),
	MALFORMED("index-65536", "a1 6b'DescribePCR' a1 65'index' 1a00010000"),
	MALFORMED("index-of-64-bits", "a1 6b'DescribePCR' a1 65'index' 1bffffffffffffffff"),
	MALFORMED("index-negative", "a1 6b'DescribePCR' a1 65'index' 20"),
	MALFORMED("index-null", "a1 6b'DescribePCR' a1 65'index' f6"),
	MALFORMED("index-true", "a1 6b'DescribePCR' a1 65'index' f5"),
	MALFORMED("index-float", "a1 6b'DescribePCR' a1 65'index' f90000"),
	MALFORMED("index-text", "a1 6b'DescribePCR' a1 65'index' 61'0'"),
	MALFORMED("index-bytes", "a1 6b'DescribePCR' a1 65'index' 41 00"),
	MALFORMED("index-array", "a1 6b'DescribePCR' a1 65'index' 81 00"),
	MALFORMED("extend-without-data", "a1 69'ExtendPCR' a1 65'index' 10"),
	MALFORMED("extend-without-index", "a1 69'ExtendPCR' a1 64'data' 43 010203"),
	MALFORMED("extend-data-null", "a1 69'ExtendPCR' a2 65'index' 10 64'data' f6"),
	MALFORMED("extend-data-number", "a1 69'ExtendPCR' a2 65'index' 10 64'data' 01"),
	MALFORMED("extend-data-map", "a1 69'ExtendPCR' a2 65'index' 10 64'data' a0"),
	MALFORMED("extend-data-twice", "a1 69'ExtendPCR' a3 65'index' 10 64'data' 41 01 64'data' 41 02"),
	MALFORMED("extend-text-not-utf8", "a1 69'ExtendPCR' a2 65'index' 10 64'data' 62 c328"),
	MALFORMED("extend-index-65552", "a1 69'ExtendPCR' a2 65'index' 1a00010010 64'data' 43 010203"),
	MALFORMED("lock-index-65552", "a1 67'LockPCR' a1 65'index' 1a00010010"),
	MALFORMED("lock-index-negative", "a1 67'LockPCR' a1 65'index' 30"),
	MALFORMED("lock-with-range", "a1 67'LockPCR' a1 65'range' 10"),
	MALFORMED("range-65568", "a1 68'LockPCRs' a1 65'range' 1a00010020"),
	MALFORMED("range-negative", "a1 68'LockPCRs' a1 65'range' 381f"),
	MALFORMED("range-with-index", "a1 68'LockPCRs' a1 65'index' 11"),
	MALFORMED("nonce-number", "a1 6b'Attestation' a1 65'nonce' 01"),
	MALFORMED("nonce-array", "a1 6b'Attestation' a1 65'nonce' 82 01 02"),
	MALFORMED("nonce-true", "a1 6b'Attestation' a1 65'nonce' f5"),
	MALFORMED("user-data-map", "a1 6b'Attestation' a1 69'user_data' a0"),
	MALFORMED("public-key-float", "a1 6b'Attestation' a1 6a'public_key' f93c00"),
};
const struct part malformed_part = PART(malformed_checks);

/* ---- understood, but not to be fulfilled ---- */

#define REFUSED(text, ask, error) { .name = "refused/" text, .run = is_error, .request = ask, .expected = error }

static const struct check refused_checks[] = {
	REFUSED("describe-32", "a1 6b'DescribePCR' a1 65'index' 1820", "InvalidIndex"),
	REFUSED("describe-255", "a1 6b'DescribePCR' a1 65'index' 18ff", "InvalidIndex"),
	REFUSED("describe-65535", "a1 6b'DescribePCR' a1 65'index' 19ffff", "InvalidIndex"),
	REFUSED("extend-32", "a1 69'ExtendPCR' a2 65'index' 1820 64'data' 43 010203", "InvalidIndex"),
	REFUSED("extend-65535", "a1 69'ExtendPCR' a2 65'index' 19ffff 64'data' 43 010203", "InvalidIndex"),
	REFUSED("extend-locked-0", "a1 69'ExtendPCR' a2 65'index' 00 64'data' 43 010203", "ReadOnlyIndex"),
	REFUSED("extend-locked-15", "a1 69'ExtendPCR' a2 65'index' 0f 64'data' 43 010203", "ReadOnlyIndex"),
	REFUSED("lock-32", "a1 67'LockPCR' a1 65'index' 1820", "InvalidIndex"),
	REFUSED("lock-65535", "a1 67'LockPCR' a1 65'index' 19ffff", "InvalidIndex"),
	REFUSED("lock-locked-0", "a1 67'LockPCR' a1 65'index' 00", "ReadOnlyIndex"),
	REFUSED("lock-locked-15", "a1 67'LockPCR' a1 65'index' 0f", "ReadOnlyIndex"),
	REFUSED("lock-range-33", "a1684c6f636b50435273a16572616e67651821", "InvalidIndex"),
	REFUSED("lock-range-65535", "a1 68'LockPCRs' a1 65'range' 19ffff", "InvalidIndex"),
};
const struct part refused_part = PART(refused_checks);

/* ---- an error changes nothing ---- */

struct state {
	struct description module;
	struct pcr registers[PCR_COUNT];
};

static bool take_state(struct state *state)
{
	memset(state, 0, sizeof(*state));
	if (!describe_module(&state->module))
		return false;
	for (unsigned index = 0; index < PCR_COUNT; index++)
		if (!describe_pcr(index, &state->registers[index]))
			return false;
	return true;
}

static bool all_fail(const struct part *part)
{
	struct answer answer;

	for (size_t i = 0; i < part->count; i++) {
		if (!ask_notation(part->checks[i].request, &answer))
			return false;
		if (!error_name(&answer).data)
			return BAD("expected an error for %s, got %s", part->checks[i].name, show(&answer));
	}
	return true;
}

static bool unchanged(const struct check *check)
{
	struct state before, after;

	(void)check;
	if (!take_state(&before) || (options.choices && !all_fail(&malformed_part)) || !all_fail(&refused_part) ||
	    !take_state(&after))
		return false;
	if (memcmp(&before.module, &after.module, sizeof(before.module)) != 0)
		return BAD("expected the same DescribeNSM after errors, got another one");
	for (unsigned index = 0; index < PCR_COUNT; index++)
		if (memcmp(&before.registers[index], &after.registers[index], sizeof(before.registers[index])) != 0)
			return BAD("expected PCR%u as before the errors, got %s with %s", index,
				   after.registers[index].locked ? "locked" : "free",
				   show_bytes(after.registers[index].value, PCR_SIZE));
	return true;
}

static const struct check unchanged_checks[] = {
	/* After extending and locking, so that there is something to lose. */
	{ .name = "errors/change-nothing", .run = unchanged },
};
const struct part unchanged_part = PART(unchanged_checks);
