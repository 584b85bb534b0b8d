// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests to the Nitro Secure Module: just enough CBOR (RFC 8949) to ask and to understand the answer.
 *
 * A request is the variant's name in a map of one entry, {"DescribePCR": {"index": 0}}; the answer has the same
 * form, or is {"Error": "InvalidIndex"}. The writer below stops writing at the end of its buffer and remembers it,
 * the reader never reads beyond the end of what the device returned.
 */
#include "nsm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* linux/nsm.h, which Debian 12's own headers (6.1) do not have yet. */
struct nsm_message {
	uint64_t address, size;
};
struct nsm_raw {
	struct nsm_message request, response;
};
#define NSM_IOCTL_RAW _IOWR(0x0A, 0, struct nsm_raw)

/* Major types of CBOR: the three top bits of an item's first byte. */
enum { CBOR_UINT = 0, CBOR_BYTES = 2, CBOR_TEXT = 3, CBOR_ARRAY = 4, CBOR_MAP = 5, CBOR_TAG = 6, CBOR_SIMPLE = 7 };
#define CBOR_NULL 0xF6
#define MAX_NESTING 8

struct writer {
	uint8_t *next, *end;
	bool full;
};

static void put(struct writer *w, const void *data, size_t size)
{
	if ((size_t)(w->end - w->next) < size) {
		w->full = true;
		return;
	}
	memcpy(w->next, data, size);
	w->next += size;
}

static void put_head(struct writer *w, unsigned major, uint32_t value)
{
	uint8_t head[5] = { (uint8_t)(major << 5) };

	if (value < 24) {
		head[0] |= (uint8_t)value;
		put(w, head, 1);
	} else if (value < 0x100) {
		head[0] |= 24;
		head[1] = (uint8_t)value;
		put(w, head, 2);
	} else if (value < 0x10000) {
		head[0] |= 25;
		head[1] = (uint8_t)(value >> 8);
		head[2] = (uint8_t)value;
		put(w, head, 3);
	} else {
		head[0] |= 26;
		for (int i = 0; i < 4; i++)
			head[1 + i] = (uint8_t)(value >> (24 - 8 * i));
		put(w, head, 5);
	}
}

static void put_text(struct writer *w, const char *text)
{
	put_head(w, CBOR_TEXT, (uint32_t)strlen(text));
	put(w, text, strlen(text));
}

static void put_optional(struct writer *w, const char *key, const struct optional_bytes *value)
{
	static const uint8_t null = CBOR_NULL;

	put_text(w, key);
	if (!value->data) {
		put(w, &null, 1);
		return;
	}
	put_head(w, CBOR_BYTES, (uint32_t)value->size);
	put(w, value->data, value->size);
}

struct reader {
	const uint8_t *next, *end;
};

/* Take an item's first byte and its number; false at the end of data or for an indefinite length. */
static bool take_head(struct reader *r, unsigned *major, uint64_t *value)
{
	unsigned info, extra;

	if (r->next == r->end)
		return false;
	*major = *r->next >> 5;
	info = *r->next++ & 31;
	if (info < 24) {
		*value = info;
		return true;
	}
	if (info > 27)
		return false;
	extra = 1u << (info - 24);
	if ((size_t)(r->end - r->next) < extra)
		return false;
	for (*value = 0; extra > 0; extra--)
		*value = *value << 8 | *r->next++;
	return true;
}

/* Take a byte or text string. */
static bool take_string(struct reader *r, unsigned wanted, struct optional_bytes *string)
{
	unsigned major;
	uint64_t size;

	if (!take_head(r, &major, &size) || major != wanted || size > (size_t)(r->end - r->next))
		return false;
	string->data = r->next;
	string->size = (size_t)size;
	r->next += size;
	return true;
}

static bool skip_item(struct reader *r, int nesting)
{
	unsigned major;
	uint64_t value;

	if (nesting > MAX_NESTING || !take_head(r, &major, &value))
		return false;
	switch (major) {
	case CBOR_BYTES:
	case CBOR_TEXT:
		if (value > (size_t)(r->end - r->next))
			return false;
		r->next += value;
		return true;
	case CBOR_MAP:
		if (value > (size_t)(r->end - r->next))
			return false;
		value *= 2;
		/* fall through */
	case CBOR_ARRAY:
		for (; value > 0; value--)
			if (!skip_item(r, nesting + 1))
				return false;
		return true;
	case CBOR_TAG:
		return skip_item(r, nesting + 1);
	default:
		return true;
	}
}

static bool equals(const struct optional_bytes *string, const char *text)
{
	return string->size == strlen(text) && memcmp(string->data, text, string->size) == 0;
}

/* Find the byte string `key` in {variant: {key: bytes, ...}}; the module's error goes to `text`. */
static enum nsm_result find_bytes(struct reader *r, const char *variant, const char *key, struct optional_bytes *value,
				  char *text, size_t text_size)
{
	struct optional_bytes name;
	unsigned major;
	uint64_t entries;

	snprintf(text, text_size, "the module's answer to %s is not understood", variant);
	if (!take_head(r, &major, &entries) || major != CBOR_MAP || entries != 1 ||
	    !take_string(r, CBOR_TEXT, &name))
		return NSM_FAILED;
	if (equals(&name, "Error")) {
		if (!take_string(r, CBOR_TEXT, &name))
			return NSM_FAILED;
		snprintf(text, text_size, "%.*s", (int)name.size, (const char *)name.data);
		return NSM_REFUSED;
	}
	if (!equals(&name, variant) || !take_head(r, &major, &entries) || major != CBOR_MAP)
		return NSM_FAILED;
	for (; entries > 0; entries--) {
		if (!take_string(r, CBOR_TEXT, &name))
			return NSM_FAILED;
		if (equals(&name, key))
			return take_string(r, CBOR_BYTES, value) ? NSM_OK : NSM_FAILED;
		if (!skip_item(r, 0))
			return NSM_FAILED;
	}
	return NSM_FAILED;
}

/* One exchange; `response` has NSM_MAX_RESPONSE bytes. */
static enum nsm_result exchange(int fd, const struct writer *request, const uint8_t *start, uint8_t *response,
				struct reader *answer, char *text, size_t text_size)
{
	struct nsm_raw raw = {
		.request = { .address = (uintptr_t)start, .size = (size_t)(request->next - start) },
		.response = { .address = (uintptr_t)response, .size = NSM_MAX_RESPONSE },
	};

	if (request->full) {
		snprintf(text, text_size, "the request is longer than the module's %d bytes", NSM_MAX_REQUEST);
		return NSM_FAILED;
	}
	if (ioctl(fd, NSM_IOCTL_RAW, &raw) < 0) {
		snprintf(text, text_size, "/dev/nsm: %s", strerror(errno));
		return NSM_FAILED;
	}
	answer->next = response;
	answer->end = response + (raw.response.size < NSM_MAX_RESPONSE ? raw.response.size : NSM_MAX_RESPONSE);
	return NSM_OK;
}

int nsm_open(void)
{
	return open("/dev/nsm", O_RDWR | O_CLOEXEC);
}

enum nsm_result nsm_describe_pcr(int fd, uint16_t index, uint8_t value[PCR_SIZE], char *text, size_t text_size)
{
	uint8_t buffer[64], response[NSM_MAX_RESPONSE];
	struct writer request = { buffer, buffer + sizeof(buffer), false };
	struct optional_bytes data;
	struct reader answer;
	enum nsm_result result;

	put_head(&request, CBOR_MAP, 1);
	put_text(&request, "DescribePCR");
	put_head(&request, CBOR_MAP, 1);
	put_text(&request, "index");
	put_head(&request, CBOR_UINT, index);
	result = exchange(fd, &request, buffer, response, &answer, text, text_size);
	if (result == NSM_OK)
		result = find_bytes(&answer, "DescribePCR", "data", &data, text, text_size);
	if (result != NSM_OK)
		return result;
	if (data.size != PCR_SIZE) {
		snprintf(text, text_size, "PCR%u has %zu bytes, not %d", index, data.size, PCR_SIZE);
		return NSM_FAILED;
	}
	memcpy(value, data.data, PCR_SIZE);
	return NSM_OK;
}

enum nsm_result nsm_attest(int fd, const struct optional_bytes *user_data, const struct optional_bytes *nonce,
			   const struct optional_bytes *public_key, uint8_t *response,
			   struct optional_bytes *document, char *text, size_t text_size)
{
	uint8_t buffer[NSM_MAX_REQUEST];
	struct writer request = { buffer, buffer + sizeof(buffer), false };
	struct reader answer;
	enum nsm_result result;

	put_head(&request, CBOR_MAP, 1);
	put_text(&request, "Attestation");
	put_head(&request, CBOR_MAP, 3);
	put_optional(&request, "user_data", user_data);
	put_optional(&request, "nonce", nonce);
	put_optional(&request, "public_key", public_key);
	result = exchange(fd, &request, buffer, response, &answer, text, text_size);
	if (result != NSM_OK)
		return result;
	return find_bytes(&answer, "Attestation", "document", document, text, text_size);
}
