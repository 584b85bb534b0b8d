// SPDX-License-Identifier: GPL-2.0-or-later
/* nsm-check: making requests byte by byte, sending them, and reading the answers that other checks build on. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "nsm_check.h"

#define SHOWN 24 /* bytes of an answer that a line of the console has */

int nsm = -1;
int last_errno;

/* ---- requests ---- */

static void put(struct request *request, uint8_t byte)
{
	if (request->size == sizeof(request->data)) {
		fprintf(stderr, "nsm-check: a request of this program is too long\n");
		exit(EXIT_FAILURE);
	}
	request->data[request->size++] = byte;
}

static uint8_t take_hex(const char **next)
{
	const char *digits = *next;
	char pair[3] = { digits[0], digits[0] ? digits[1] : 0, 0 };

	if (!isxdigit((unsigned char)pair[0]) || !isxdigit((unsigned char)pair[1])) {
		fprintf(stderr, "nsm-check: no hex digits in a request of this program: %s\n", digits);
		exit(EXIT_FAILURE);
	}
	*next += 2;
	return (uint8_t)strtoul(pair, NULL, 16);
}

void add(struct request *request, const char *notation)
{
	while (*notation) {
		if (*notation == ' ') {
			notation++;
		} else if (*notation == '\'') {
			for (notation++; *notation && *notation != '\''; notation++)
				put(request, (uint8_t)*notation);
			notation += *notation == '\'';
		} else if (*notation == '(') {
			char *end;
			uint8_t byte;
			unsigned long count;

			notation++;
			byte = take_hex(&notation);
			count = strtoul(notation + (*notation == '*'), &end, 10);
			for (; count > 0; count--)
				put(request, byte);
			notation = end + (*end == ')');
		} else {
			put(request, take_hex(&notation));
		}
	}
}

void add_number(struct request *request, unsigned number)
{
	if (number >= 0x100) {
		put(request, 0x19);
		put(request, (uint8_t)(number >> 8));
	} else if (number >= 24) {
		put(request, 0x18);
	}
	put(request, (uint8_t)number);
}

struct request make_request(const char *notation)
{
	struct request request = { .size = 0 };

	add(&request, notation);
	return request;
}

/* ---- exchanges ---- */

bool ask(const struct request *request, struct answer *answer)
{
	struct nsm_raw raw = {
		.request_address = (uintptr_t)request->data,
		.request_size = request->size,
		.response_address = (uintptr_t)answer->data,
		.response_size = sizeof(answer->data),
	};

	answer->size = 0;
	if (ioctl(nsm, NSM_IOCTL_RAW, &raw) < 0) {
		last_errno = errno;
		return BAD("expected an answer, got %s from the driver", strerror(errno));
	}
	if (raw.response_size > sizeof(answer->data))
		return BAD("expected an answer of at most %zu bytes, got length %llu", sizeof(answer->data),
			   (unsigned long long)raw.response_size);
	answer->size = (size_t)raw.response_size;
	return true;
}

bool ask_notation(const char *notation, struct answer *answer)
{
	struct request request = make_request(notation);

	return ask(&request, answer);
}

/* ---- answers ---- */

bool same(struct bytes bytes, const void *data, size_t size)
{
	return bytes.size == size && (size == 0 || memcmp(bytes.data, data, size) == 0);
}

bool is_error_name(const char *name, size_t size)
{
	static const char *const names[] = {
		"InvalidArgument", "InvalidIndex",   "InvalidResponse", "ReadOnlyIndex",
		"InvalidOperation", "BufferTooSmall", "InputTooLarge",	 "InternalError",
	};

	for (size_t i = 0; i < COUNT(names); i++)
		if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0)
			return true;
	return false;
}

struct bytes error_name(const struct answer *answer)
{
	static const uint8_t start[] = { 0xA1, 0x65, 'E', 'r', 'r', 'o', 'r' };
	struct bytes none = { NULL, 0 };
	struct cbor name;

	if (answer->size <= sizeof(start) || memcmp(answer->data, start, sizeof(start)) != 0)
		return none;
	if (!cbor_read((struct bytes){ answer->data + sizeof(start), answer->size - sizeof(start) }, KIND_TEXT, &name))
		return none;
	return name.string;
}

bool answer_is_error(const struct answer *answer, const char *name)
{
	struct request expected = make_request("a1 65'Error'");

	/* No error's name has more than 23 letters, so the length goes into the first byte. */
	put(&expected, (uint8_t)(CBOR_TEXT << 5 | strlen(name)));
	for (size_t i = 0; name[i]; i++)
		put(&expected, (uint8_t)name[i]);
	if (!same((struct bytes){ answer->data, answer->size }, expected.data, expected.size))
		return BAD("expected the error %s, got %s", name, show(answer));
	return true;
}

const char *show_bytes(const void *data, size_t size)
{
	static char texts[4][SHOWN * 2 + 40];
	static unsigned turn;
	char *text = texts[turn++ % 4], *next = text;

	if (size == 0)
		return "no bytes";
	for (size_t i = 0; i < size && i < SHOWN; i++)
		next += sprintf(next, "%02x", ((const uint8_t *)data)[i]);
	if (size > SHOWN)
		sprintf(next, "... (%zu bytes)", size);
	return text;
}

const char *show(const struct answer *answer)
{
	static char texts[2][100];
	static unsigned turn;
	struct bytes name = error_name(answer);
	char *text;

	if (!name.data)
		return show_bytes(answer->data, answer->size);
	text = texts[turn++ % 2];
	snprintf(text, sizeof(texts[0]), "the error %.*s", (int)(name.size < 40 ? name.size : 40),
		 (const char *)name.data);
	return text;
}

/* Registers in the array, as bits. They ascend. */
static bool read_locked(struct bytes array, uint32_t *locked)
{
	struct bytes item;
	struct walk walk;
	struct cbor index;
	int last = -1;

	*locked = 0;
	if (!walk_open(&walk, array))
		return BAD("expected an array of registers, got %s", show_bytes(array.data, array.size));
	while (walk_next(&walk, &item)) {
		if (!cbor_read(item, KIND_U16, &index) || index.number >= PCR_COUNT || (int)index.number <= last)
			return BAD("expected locked registers below %d that ascend, got %s", PCR_COUNT,
				   show_bytes(array.data, array.size));
		last = (int)index.number;
		*locked |= UINT32_C(1) << last;
	}
	return true;
}

bool read_description(const struct answer *answer, struct description *description)
{
	struct field fields[] = {
		{ .name = "version_major", .kind = KIND_U16 }, { .name = "version_minor", .kind = KIND_U16 },
		{ .name = "version_patch", .kind = KIND_U16 }, { .name = "module_id", .kind = KIND_TEXT },
		{ .name = "max_pcrs", .kind = KIND_U16 },      { .name = "locked_pcrs", .kind = KIND_ARRAY },
		{ .name = "digest", .kind = KIND_TEXT },
	};
	struct bytes id, digest;

	if (!answer_fields(answer, "DescribeNSM", fields, COUNT(fields)))
		return false;
	id = fields[3].value.string;
	digest = fields[6].value.string;
	if (id.size == 0 || id.size >= sizeof(description->module_id))
		return BAD("expected a module_id of 1 to 99 bytes, got %zu", id.size);
	memcpy(description->module_id, id.data, id.size);
	description->module_id[id.size] = 0;
	if (fields[4].value.number != PCR_COUNT)
		return BAD("expected max_pcrs %d, got %llu", PCR_COUNT, (unsigned long long)fields[4].value.number);
	if (!same(digest, "SHA384", 6))
		return BAD("expected digest SHA384, got %s", show_bytes(digest.data, digest.size));
	return read_locked(fields[5].value.raw, &description->locked);
}

bool read_pcr(const struct answer *answer, struct pcr *pcr)
{
	struct field fields[] = { { .name = "lock", .kind = KIND_BOOL }, { .name = "data", .kind = KIND_BYTES } };

	if (!answer_fields(answer, "DescribePCR", fields, COUNT(fields)))
		return false;
	if (fields[1].value.string.size != PCR_SIZE)
		return BAD("expected a register of %d bytes, got %zu", PCR_SIZE, fields[1].value.string.size);
	pcr->locked = fields[0].value.number;
	memcpy(pcr->value, fields[1].value.string.data, PCR_SIZE);
	return true;
}

bool describe_module(struct description *description)
{
	struct answer answer;

	return ask_notation("6b44657363726962654e534d", &answer) && read_description(&answer, description);
}

bool describe_pcr(unsigned index, struct pcr *pcr)
{
	struct request request = make_request("a16b4465736372696265504352a165696e646578");
	struct answer answer;

	add_number(&request, index);
	return ask(&request, &answer) && read_pcr(&answer, pcr);
}
