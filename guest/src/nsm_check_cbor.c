// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nsm-check: a reader of CBOR (RFC 8949) that never reads beyond the end of what it was given.
 *
 * Answers and documents are read in every form that a device may choose, definite or not: which one it takes is not
 * fixed, and real documents have changed it.
 */
#include <string.h>

#include "nsm_check.h"

#define MAX_NESTING 16 /* documents have 3 */
#define BREAK 0xFF
#define FALSE 0xF4
#define TRUE 0xF5
#define NULL_ITEM 0xF6

struct head {
	unsigned major;
	bool indefinite;
	uint64_t value;
};

static void advance(struct bytes *data, size_t size)
{
	data->data += size;
	data->size -= size;
}

static bool take_break(struct bytes *data)
{
	if (data->size == 0 || *data->data != BREAK)
		return false;
	advance(data, 1);
	return true;
}

static enum cbor_state take_head(struct bytes *data, struct head *head)
{
	unsigned info;
	size_t extra;

	if (data->size == 0)
		return CBOR_CUT;
	head->major = *data->data >> 5;
	info = *data->data & 31;
	head->indefinite = info == 31;
	head->value = info;
	advance(data, 1);
	if (info < 24)
		return CBOR_WHOLE;
	if (info == 31)
		return head->major >= CBOR_BYTES && head->major <= CBOR_MAP ? CBOR_WHOLE : CBOR_BROKEN;
	if (info > 27)
		return CBOR_BROKEN;
	extra = (size_t)1 << (info - 24);
	if (data->size < extra)
		return CBOR_CUT;
	head->value = 0;
	for (size_t i = 0; i < extra; i++)
		head->value = head->value << 8 | data->data[i];
	advance(data, extra);
	return CBOR_WHOLE;
}

static enum cbor_state skip_content(struct bytes *data, uint64_t size)
{
	if (size > data->size)
		return CBOR_CUT;
	advance(data, (size_t)size);
	return CBOR_WHOLE;
}

static enum cbor_state skip_chunks(struct bytes *data, unsigned major)
{
	while (!take_break(data)) {
		struct head chunk;
		enum cbor_state state = take_head(data, &chunk);

		if (state == CBOR_WHOLE && (chunk.major != major || chunk.indefinite))
			state = CBOR_BROKEN;
		if (state == CBOR_WHOLE)
			state = skip_content(data, chunk.value);
		if (state != CBOR_WHOLE)
			return state;
	}
	return CBOR_WHOLE;
}

static enum cbor_state skip_item(struct bytes *data, int nesting);

static enum cbor_state skip_members(struct bytes *data, const struct head *head, int nesting)
{
	unsigned each = head->major == CBOR_MAP ? 2 : 1;
	enum cbor_state state;

	/* A member has at least one byte, so a greater number is cut off for certain and the product is small. */
	if (!head->indefinite && head->value > data->size)
		return CBOR_CUT;
	for (uint64_t i = 0; head->indefinite || i < head->value * each; i++) {
		/* A break may stand only where a key may. */
		if (head->indefinite && i % each == 0 && take_break(data))
			break;
		state = skip_item(data, nesting + 1);
		if (state != CBOR_WHOLE)
			return state;
	}
	return CBOR_WHOLE;
}

static enum cbor_state skip_item(struct bytes *data, int nesting)
{
	struct head head;
	enum cbor_state state = take_head(data, &head);

	if (state != CBOR_WHOLE)
		return state;
	if (nesting > MAX_NESTING)
		return CBOR_BROKEN;
	switch (head.major) {
	case CBOR_BYTES:
	case CBOR_TEXT:
		return head.indefinite ? skip_chunks(data, head.major) : skip_content(data, head.value);
	case CBOR_ARRAY:
	case CBOR_MAP:
		return skip_members(data, &head, nesting);
	case CBOR_TAG:
		return skip_item(data, nesting + 1);
	default:
		return CBOR_WHOLE;
	}
}

enum cbor_state cbor_state(struct bytes data)
{
	enum cbor_state state = skip_item(&data, 0);

	return state == CBOR_WHOLE && data.size > 0 ? CBOR_TRAILING : state;
}

const char *cbor_state_name(enum cbor_state state)
{
	static const char *const names[] = {
		[CBOR_WHOLE] = "whole CBOR",
		[CBOR_CUT] = "CBOR that is cut off",
		[CBOR_TRAILING] = "CBOR with bytes after it",
		[CBOR_BROKEN] = "no CBOR",
	};

	return names[state];
}

bool cbor_read(struct bytes item, enum cbor_kind kind, struct cbor *value)
{
	struct bytes rest = item;
	struct head head;

	*value = (struct cbor){ .raw = item };
	if (item.size == 1 && *item.data == NULL_ITEM)
		return kind == KIND_BYTES_OR_NULL;
	if (kind == KIND_BOOL) {
		value->number = item.size == 1 && *item.data == TRUE;
		return item.size == 1 && (*item.data == TRUE || *item.data == FALSE);
	}
	if (cbor_state(item) != CBOR_WHOLE || take_head(&rest, &head) != CBOR_WHOLE)
		return false;
	value->number = head.value;
	switch (kind) {
	case KIND_U16:
		return head.major == CBOR_UINT && head.value <= UINT16_MAX;
	case KIND_UINT:
		return head.major == CBOR_UINT;
	case KIND_TEXT:
	case KIND_BYTES:
	case KIND_BYTES_OR_NULL:
		value->string = rest;
		return head.major == (kind == KIND_TEXT ? CBOR_TEXT : CBOR_BYTES) && !head.indefinite;
	case KIND_ARRAY:
		return head.major == CBOR_ARRAY;
	case KIND_MAP:
		return head.major == CBOR_MAP;
	default:
		return false;
	}
}

bool walk_open(struct walk *walk, struct bytes container)
{
	struct head head;

	if (cbor_state(container) != CBOR_WHOLE || take_head(&container, &head) != CBOR_WHOLE ||
	    (head.major != CBOR_ARRAY && head.major != CBOR_MAP))
		return false;
	walk->rest = container;
	walk->indefinite = head.indefinite;
	walk->left = head.major == CBOR_MAP ? head.value * 2 : head.value;
	return true;
}

bool walk_next(struct walk *walk, struct bytes *item)
{
	struct bytes rest = walk->rest;

	if (walk->indefinite ? take_break(&walk->rest) : walk->left == 0)
		return false;
	walk->left--;
	/* The container is known to be whole, so its members are. */
	if (skip_item(&rest, 0) != CBOR_WHOLE)
		return false;
	*item = (struct bytes){ walk->rest.data, walk->rest.size - rest.size };
	walk->rest = rest;
	return true;
}

bool cbor_fields(struct bytes map, struct field *fields, size_t count)
{
	struct bytes key, item;
	struct walk walk;
	struct cbor name;

	for (size_t i = 0; i < count; i++)
		fields[i].value.raw.data = NULL;
	if (map.size == 0 || *map.data >> 5 != CBOR_MAP || !walk_open(&walk, map))
		return BAD("expected a map of %zu fields, got %s", count, show_bytes(map.data, map.size));
	while (walk_next(&walk, &key) && walk_next(&walk, &item)) {
		struct field *field = NULL;

		if (!cbor_read(key, KIND_TEXT, &name))
			return BAD("expected text as a field's name, got %s", show_bytes(key.data, key.size));
		for (size_t i = 0; i < count; i++)
			if (same(name.string, fields[i].name, strlen(fields[i].name)))
				field = &fields[i];
		if (!field || field->value.raw.data)
			return BAD("expected known fields once each, got %s%.*s", field ? "a second " : "",
				   (int)(name.string.size < 32 ? name.string.size : 32),
				   (const char *)name.string.data);
		if (!cbor_read(item, field->kind, &field->value))
			return BAD("expected another type for the field %s, got %s", field->name,
				   show_bytes(item.data, item.size));
	}
	for (size_t i = 0; i < count; i++)
		if (!fields[i].value.raw.data)
			return BAD("expected the field %s, got none", fields[i].name);
	return true;
}

bool answer_fields(const struct answer *answer, const char *variant, struct field *fields, size_t count)
{
	struct bytes data = { answer->data, answer->size }, key, map, more;
	enum cbor_state state = cbor_state(data);
	struct walk walk;
	struct cbor name;

	if (state != CBOR_WHOLE)
		return BAD("expected an answer to %s, got %s: %s", variant, cbor_state_name(state), show(answer));
	if (*data.data >> 5 != CBOR_MAP || !walk_open(&walk, data) || !walk_next(&walk, &key) ||
	    !walk_next(&walk, &map) || walk_next(&walk, &more) || !cbor_read(key, KIND_TEXT, &name) ||
	    !same(name.string, variant, strlen(variant)))
		return BAD("expected an answer to %s, got %s", variant, show(answer));
	return cbor_fields(map, fields, count);
}
