// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nsm-check: attestation documents, taken apart as far as that goes without cryptography.
 *
 * Signature and certificates are looked at from outside only: whether they hold is for a verifier to say.
 */
#include <string.h>

#include "nsm_check.h"

#define SIGNATURE_SIZE 96
#define MAX_CERTIFICATE 1024
#define EARLIEST UINT64_C(1500000000000) /* 2017, in milliseconds: a time in seconds is less */

enum { MODULE_ID, DIGEST, TIMESTAMP, PCRS, CERTIFICATE, CABUNDLE, PUBLIC_KEY, USER_DATA, NONCE, FIELD_COUNT };

static bool certificate_ok(struct bytes der)
{
	/* SEQUENCE with a length in two bytes, which is the rest. */
	if (der.size < 5 || der.size > MAX_CERTIFICATE || der.data[0] != 0x30 || der.data[1] != 0x82 ||
	    (size_t)(der.data[2] << 8 | der.data[3]) + 4 != der.size)
		return BAD("expected a DER certificate of at most %d bytes, got %s", MAX_CERTIFICATE,
			   show_bytes(der.data, der.size));
	return true;
}

static bool bundle_ok(struct bytes array)
{
	struct bytes item;
	struct walk walk;
	struct cbor der;
	size_t count = 0;

	if (!walk_open(&walk, array))
		return BAD("expected an array as cabundle, got %s", show_bytes(array.data, array.size));
	for (; walk_next(&walk, &item); count++) {
		if (!cbor_read(item, KIND_BYTES, &der))
			return BAD("expected bytes in cabundle, got %s", show_bytes(item.data, item.size));
		if (!certificate_ok(der.string))
			return false;
	}
	return count > 0 ? true : BAD("expected a certificate in cabundle, got none");
}

/* Exactly the locked registers, with the values that DescribePCR tells. */
static bool registers_ok(struct bytes map)
{
	bool seen[PCR_COUNT] = { false };
	struct bytes key, item;
	struct walk walk;

	if (!walk_open(&walk, map))
		return BAD("expected a map as pcrs, got %s", show_bytes(map.data, map.size));
	while (walk_next(&walk, &key) && walk_next(&walk, &item)) {
		struct cbor index, value;
		struct pcr pcr;

		if (!cbor_read(key, KIND_U16, &index) || index.number >= PCR_COUNT || seen[index.number])
			return BAD("expected each register once in pcrs, got %s", show_bytes(key.data, key.size));
		seen[index.number] = true;
		if (!cbor_read(item, KIND_BYTES, &value))
			return BAD("expected bytes in pcrs, got %s", show_bytes(item.data, item.size));
		if (!describe_pcr((unsigned)index.number, &pcr))
			return false;
		if (!pcr.locked || !same(value.string, pcr.value, PCR_SIZE))
			return BAD("expected PCR%u (%s, %s) in pcrs, got %s", (unsigned)index.number,
				   pcr.locked ? "locked" : "free", show_bytes(pcr.value, PCR_SIZE),
				   show_bytes(value.string.data, value.string.size));
	}
	for (unsigned index = 0; index < PCR_COUNT; index++) {
		struct pcr pcr;

		if (!describe_pcr(index, &pcr))
			return false;
		if (pcr.locked != seen[index])
			return BAD("expected %s PCR%u in pcrs, got %s", pcr.locked ? "the locked" : "no free", index,
				   pcr.locked ? "none" : "one");
	}
	return true;
}

static bool optional_ok(const struct field *field, const char *notation)
{
	struct request expected = { .size = 0 };

	if (!notation) {
		if (field->value.string.data)
			return BAD("expected null as %s, got %s", field->name,
				   show_bytes(field->value.raw.data, field->value.raw.size));
		return true;
	}
	add(&expected, notation);
	if (!field->value.string.data || !same(field->value.string, expected.data, expected.size))
		return BAD("expected %s as %s, got %s", show_bytes(expected.data, expected.size), field->name,
			   show_bytes(field->value.raw.data, field->value.raw.size));
	return true;
}

/* Take the payload out of COSE_Sign1, whose form is fixed but for the two lengths. */
static bool open_document(struct bytes document, struct bytes *payload)
{
	static const uint8_t start[] = { 0x84, 0x44, 0xA1, 0x01, 0x38, 0x22, 0xA0, 0x59 };
	struct bytes items[4];
	struct walk walk;
	struct cbor value;
	enum cbor_state state = cbor_state(document);
	bool zero = true;

	if (state != CBOR_WHOLE)
		return BAD("expected a document, got %s: %s", cbor_state_name(state),
			   show_bytes(document.data, document.size));
	if (document.size < sizeof(start) || memcmp(document.data, start, sizeof(start)) != 0)
		return BAD("expected a document with %s first, got %s", show_bytes(start, sizeof(start)),
			   show_bytes(document.data, document.size));
	/* The first byte says that there are four. */
	if (!walk_open(&walk, document))
		return BAD("expected an array as document");
	for (size_t i = 0; i < COUNT(items); i++)
		if (!walk_next(&walk, &items[i]))
			return BAD("expected four items in the document, got %zu", i);
	if (!cbor_read(items[3], KIND_BYTES, &value) || value.string.size != SIGNATURE_SIZE)
		return BAD("expected a signature of %d bytes, got %s", SIGNATURE_SIZE,
			   show_bytes(items[3].data, items[3].size));
	for (size_t i = 0; i < SIGNATURE_SIZE; i++)
		zero = zero && value.string.data[i] == 0;
	if (zero)
		return BAD("expected a signature, got %d zero bytes", SIGNATURE_SIZE);
	if (!cbor_read(items[2], KIND_BYTES, &value))
		return BAD("expected bytes as payload, got %s", show_bytes(items[2].data, items[2].size));
	*payload = value.string;
	return true;
}

/* The document of an answer as the fields of its payload, which point into the answer. */
static bool read_document(const struct answer *answer, struct field fields[FIELD_COUNT])
{
	static const struct field expected[FIELD_COUNT] = {
		[MODULE_ID] = { .name = "module_id", .kind = KIND_TEXT },
		[DIGEST] = { .name = "digest", .kind = KIND_TEXT },
		[TIMESTAMP] = { .name = "timestamp", .kind = KIND_UINT },
		[PCRS] = { .name = "pcrs", .kind = KIND_MAP },
		[CERTIFICATE] = { .name = "certificate", .kind = KIND_BYTES },
		[CABUNDLE] = { .name = "cabundle", .kind = KIND_ARRAY },
		[PUBLIC_KEY] = { .name = "public_key", .kind = KIND_BYTES_OR_NULL },
		[USER_DATA] = { .name = "user_data", .kind = KIND_BYTES_OR_NULL },
		[NONCE] = { .name = "nonce", .kind = KIND_BYTES_OR_NULL },
	};
	struct field document[] = { { .name = "document", .kind = KIND_BYTES } };
	struct bytes payload;

	memcpy(fields, expected, sizeof(expected));
	return answer_fields(answer, "Attestation", document, 1) && open_document(document[0].value.string, &payload) &&
	       cbor_fields(payload, fields, FIELD_COUNT);
}

bool is_document(const struct check *check)
{
	struct field fields[FIELD_COUNT];
	struct description module;
	struct answer answer;

	if (!ask_notation(check->request, &answer) || !read_document(&answer, fields) || !describe_module(&module))
		return false;
	if (!same(fields[MODULE_ID].value.string, module.module_id, strlen(module.module_id)))
		return BAD("expected module_id %s, got %.*s", module.module_id,
			   (int)(fields[MODULE_ID].value.string.size < 60 ? fields[MODULE_ID].value.string.size : 60),
			   (const char *)fields[MODULE_ID].value.string.data);
	if (!same(fields[DIGEST].value.string, "SHA384", 6))
		return BAD("expected digest SHA384, got %s",
			   show_bytes(fields[DIGEST].value.raw.data, fields[DIGEST].value.raw.size));
	if (fields[TIMESTAMP].value.number < EARLIEST)
		return BAD("expected a timestamp in milliseconds, got %llu",
			   (unsigned long long)fields[TIMESTAMP].value.number);
	return certificate_ok(fields[CERTIFICATE].value.string) && bundle_ok(fields[CABUNDLE].value.raw) &&
	       registers_ok(fields[PCRS].value.raw) && optional_ok(&fields[USER_DATA], check->fields[0]) &&
	       optional_ok(&fields[NONCE], check->fields[1]) && optional_ok(&fields[PUBLIC_KEY], check->fields[2]);
}

/* Two documents: each has its own nonce, time does not go back, and the signature is another one. */
static bool two_nonces(const struct check *check)
{
	static const char *const nonces[2] = { "(11*32)", "(22*32)" };
	static struct answer answers[2];
	struct field fields[2][FIELD_COUNT];

	for (int i = 0; i < 2; i++) {
		struct request request = make_request(check->request);

		add(&request, nonces[i]);
		if (!ask(&request, &answers[i]) || !read_document(&answers[i], fields[i]) ||
		    !optional_ok(&fields[i][NONCE], nonces[i]))
			return false;
	}
	if (fields[1][TIMESTAMP].value.number < fields[0][TIMESTAMP].value.number)
		return BAD("expected a timestamp of at least %llu in the second document, got %llu",
			   (unsigned long long)fields[0][TIMESTAMP].value.number,
			   (unsigned long long)fields[1][TIMESTAMP].value.number);
	/* The signature ends the document, which ends the answer. */
	if (memcmp(answers[0].data + answers[0].size - SIGNATURE_SIZE,
		   answers[1].data + answers[1].size - SIGNATURE_SIZE, SIGNATURE_SIZE) == 0)
		return BAD("expected two signatures, got the same twice");
	return true;
}

#define ALL_NULL "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6"
#define ATTEST(count) "a1 6b'Attestation' " count " "

#define DOCUMENT(text, ask, ...) \
	{ .name = "attestation/" text, .run = is_document, .request = ask, .fields = { __VA_ARGS__ } }
#define DOCUMENT_CHOICE(text, ask, ...) \
	{ .name = "attestation/" text, .run = is_document, .request = ask, .fields = { __VA_ARGS__ }, .choice = true }
/* Third parties say that the real device does not enforce a limit. */
#define TOO_LARGE(text, ask) \
	{ .name = "attestation/" text "-refused-by-emulators-choice", .run = is_error, .request = ask, \
	  .expected = "InputTooLarge", .choice = true }

static const struct check attestation_checks[] = {
	DOCUMENT("all-null", ALL_NULL, NULL),
	DOCUMENT("three-fields", ATTEST("a3") "69'user_data' 43'one' 65'nonce' 44'four' 6a'public_key' 45'three'",
		 "'one'", "'four'", "'three'"),
	DOCUMENT("user-data", ATTEST("a3") "69'user_data' 43'one' 65'nonce' f6 6a'public_key' f6", "'one'"),
	DOCUMENT("nonce", ATTEST("a3") "69'user_data' f6 65'nonce' 44'four' 6a'public_key' f6", NULL, "'four'"),
	DOCUMENT("public-key", ATTEST("a3") "69'user_data' f6 65'nonce' f6 6a'public_key' 45'three'", NULL, NULL,
		 "'three'"),
	DOCUMENT("1024-bytes-in-each",
		 ATTEST("a3") "69'user_data' 590400 (75*1024) 65'nonce' 590400 (6e*1024) "
		 "6a'public_key' 590400 (6b*1024)",
		 "(75*1024)", "(6e*1024)", "(6b*1024)"),
	{ .name = "attestation/two-nonces", .run = two_nonces,
	  .request = ATTEST("a3") "69'user_data' f6 6a'public_key' f6 65'nonce' 5820" },
	DOCUMENT_CHOICE("no-fields", ATTEST("a0"), NULL),
	DOCUMENT_CHOICE("no-fields-indefinite", "bf 6b'Attestation' bf ff ff", NULL),
	DOCUMENT_CHOICE("nonce-alone", ATTEST("a1") "65'nonce' 44'four'", NULL, "'four'"),
	DOCUMENT_CHOICE("other-order", ATTEST("a3") "6a'public_key' 43 010203 65'nonce' f6 69'user_data' 41 00", "00",
			NULL, "010203"),
	DOCUMENT_CHOICE("unknown-field", ATTEST("a2") "64'else' 01 65'nonce' 44'four'", NULL, "'four'"),
	DOCUMENT_CHOICE("text-for-bytes",
			ATTEST("a3") "69'user_data' 63'one' 65'nonce' 64'four' 6a'public_key' 65'three'",
			"'one'", "'four'", "'three'"),
	DOCUMENT_CHOICE("indefinite",
			"bf 6b'Attestation' bf 69'user_data' 5f 41'o' 40 42'ne' ff 65'nonce' 7f 62'fo' 62'ur' ff "
			"7f 66'public' 64'_key' ff f6 ff ff", "'one'", "'four'"),
	DOCUMENT_CHOICE("lengths-in-8-bytes", ATTEST("b90001") "7a00000005'nonce' 5b0000000000000004'four'", NULL,
			"'four'"),
	DOCUMENT_CHOICE("empty-fields", ATTEST("a3") "69'user_data' 40 65'nonce' 40 6a'public_key' 40", "", "", ""),
	TOO_LARGE("1025-bytes-of-user-data", ATTEST("a1") "69'user_data' 590401 (75*1025)"),
	TOO_LARGE("1025-bytes-of-nonce", ATTEST("a1") "65'nonce' 590401 (6e*1025)"),
	TOO_LARGE("1025-bytes-of-public-key", ATTEST("a1") "6a'public_key' 590401 (6b*1025)"),
};
const struct part attestation_part = PART(attestation_checks);

static const struct check locked_attestation_checks[] = {
	/* registers_ok() compares with what is locked: PCR16 has a value of the application by now. */
	DOCUMENT("registers-of-the-application", ALL_NULL, NULL),
};
const struct part locked_attestation_part = PART(locked_attestation_checks);
