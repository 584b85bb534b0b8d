// SPDX-License-Identifier: GPL-2.0-or-later
/* nsm-check: what the driver does around an exchange, what the module says of itself, and random numbers. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nsm_check.h"

#define NOWHERE 8 /* an address in the first page, which no process has */
#define UNTOUCHED 0xA5

#define DESCRIBE "6b44657363726962654e534d"

/* ---- the ioctl ---- */

/* errno of a call of the device with these arguments, 0 for success. */
static int call(unsigned long command, void *argument)
{
	return ioctl(nsm, command, argument) < 0 ? errno : 0;
}

static bool fails_with(int got, int expected)
{
	if (got != expected)
		return BAD("expected %s, got %s", strerror(expected), got ? strerror(got) : "success");
	return true;
}

static struct nsm_raw raw_of(const struct request *request, struct answer *answer)
{
	return (struct nsm_raw){
		.request_address = (uintptr_t)request->data,
		.request_size = request->size,
		.response_address = (uintptr_t)answer->data,
		.response_size = sizeof(answer->data),
	};
}

/* Another number, and the right one with another size. */
static bool other_command(const struct check *check)
{
	const unsigned long commands[] = { _IOWR(0x0A, 1, struct nsm_raw), _IOWR(0x0A, 0, uint64_t) };
	struct request request = make_request(check->request);
	struct answer answer;

	for (size_t i = 0; i < COUNT(commands); i++) {
		struct nsm_raw raw = raw_of(&request, &answer);
		int got = call(commands[i], &raw);

		if (got != EINVAL && got != ENOTTY)
			return BAD("expected EINVAL or ENOTTY for command %#lx, got %s", commands[i],
				   got ? strerror(got) : "success");
	}
	return true;
}

static bool request_too_long(const struct check *check)
{
	struct request request = make_request(check->request);
	struct answer answer;
	struct nsm_raw raw = raw_of(&request, &answer);

	return fails_with(call(NSM_IOCTL_RAW, &raw), EMSGSIZE);
}

static bool bad_request_address(const struct check *check)
{
	struct request request = make_request(check->request);
	struct answer answer;
	struct nsm_raw raw = raw_of(&request, &answer);

	raw.request_address = NOWHERE;
	return fails_with(call(NSM_IOCTL_RAW, &raw), EFAULT);
}

static bool bad_response_address(const struct check *check)
{
	struct request request = make_request(check->request);
	struct answer answer;
	struct nsm_raw raw = raw_of(&request, &answer);

	raw.response_address = NOWHERE;
	return fails_with(call(NSM_IOCTL_RAW, &raw), EFAULT);
}

/*
 * The argument itself cannot be written. Not one that cannot be read either: there the driver of AWS's 6.6 kernel
 * releases a lock that it did not take, and the kernel's own random numbers may be the ones that hold it.
 */
static bool read_only_argument(const struct check *check)
{
	struct request request = make_request(check->request);
	struct answer answer;
	struct nsm_raw *raw = mmap(NULL, sizeof(*raw), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int got;

	if (raw == MAP_FAILED)
		return BAD("expected a page of memory, got %s", strerror(errno));
	*raw = raw_of(&request, &answer);
	got = mprotect(raw, sizeof(*raw), PROT_READ) < 0 ? errno : call(NSM_IOCTL_RAW, raw);
	munmap(raw, sizeof(*raw));
	return fails_with(got, EFAULT);
}

/* An answer longer than the buffer is cut off, without an error; nothing is written behind its end. */
static bool capacity(const struct check *check)
{
	static uint8_t data[MAX_RESPONSE + 0x1000];
	struct request request = make_request(check->request);
	struct answer whole;
	struct nsm_raw raw;
	size_t expected;
	int got;

	if (!ask(&request, &whole))
		return false;
	expected = check->capacity < whole.size ? check->capacity : whole.size;
	memset(data, UNTOUCHED, sizeof(data));
	raw = raw_of(&request, &whole);
	raw.response_address = (uintptr_t)data;
	raw.response_size = check->capacity;
	got = call(NSM_IOCTL_RAW, &raw);
	if (got)
		return BAD("expected %zu bytes of the answer, got %s", expected, strerror(got));
	if (raw.response_size != expected)
		return BAD("expected length %zu, got %llu", expected, (unsigned long long)raw.response_size);
	if (memcmp(data, whole.data, expected) != 0)
		return BAD("expected the answer's first bytes %s, got %s", show_bytes(whole.data, expected),
			   show_bytes(data, expected));
	for (size_t i = expected; i < sizeof(data); i++)
		if (data[i] != UNTOUCHED)
			return BAD("expected nothing behind byte %zu, got something at %zu", expected, i);
	return true;
}

/* Opening and closing mean nothing to the device. */
static bool two_descriptors(const struct check *check)
{
	int first = nsm, second = open("/dev/nsm", O_RDONLY | O_CLOEXEC);
	struct answer one, two, three;
	bool ok;

	if (second < 0)
		return BAD("expected a second descriptor, got %s", strerror(errno));
	ok = ask_notation(check->request, &one);
	nsm = second;
	ok = ok && ask_notation(check->request, &two);
	nsm = first;
	close(second);
	if (!ok || !ask_notation(check->request, &three))
		return false;
	if (!same((struct bytes){ one.data, one.size }, two.data, two.size) ||
	    !same((struct bytes){ one.data, one.size }, three.data, three.size))
		return BAD("expected %s from every descriptor, got %s and %s", show(&one),
			   show_bytes(two.data, two.size), show_bytes(three.data, three.size));
	return true;
}

static const struct check ioctl_checks[] = {
	{ .name = "ioctl/other-command", .run = other_command, .request = DESCRIBE },
	/* A locked register, so that nothing changes. */
	{ .name = "ioctl/request-of-4096-bytes", .run = is_error, .expected = "ReadOnlyIndex",
	  .request = "a1 69'ExtendPCR' a2 65'index' 00 64'data' 59 0fe5 (00*4069)" },
	{ .name = "ioctl/request-of-4097-bytes", .run = request_too_long,
	  .request = "a1 69'ExtendPCR' a2 65'index' 00 64'data' 59 0fe6 (00*4070)" },
	{ .name = "ioctl/bad-request-address", .run = bad_request_address, .request = DESCRIBE },
	{ .name = "ioctl/bad-response-address", .run = bad_response_address, .request = DESCRIBE },
	{ .name = "ioctl/read-only-argument", .run = read_only_argument, .request = DESCRIBE },
	{ .name = "ioctl/capacity-0", .run = capacity, .request = DESCRIBE, .capacity = 0 },
	{ .name = "ioctl/capacity-10", .run = capacity, .request = DESCRIBE, .capacity = 10 },
	{ .name = "ioctl/capacity-12288", .run = capacity, .request = DESCRIBE, .capacity = MAX_RESPONSE },
	{ .name = "ioctl/capacity-16384", .run = capacity, .request = DESCRIBE, .capacity = MAX_RESPONSE + 0x1000 },
	{ .name = "ioctl/two-descriptors", .run = two_descriptors, .request = DESCRIBE },
};
const struct part ioctl_part = PART(ioctl_checks);

/* ---- DescribeNSM ---- */

static bool described(const struct check *check)
{
	struct description description;
	struct answer answer;

	return ask_notation(check->request, &answer) && read_description(&answer, &description);
}

/* i-<17 hex digits>-enc<16 hex digits> */
static bool module_id(const struct check *check)
{
	static const char shape[] = "i-xxxxxxxxxxxxxxxxx-encxxxxxxxxxxxxxxxx";
	struct description description;

	(void)check;
	if (!describe_module(&description))
		return false;
	for (size_t i = 0; i < sizeof(shape); i++) {
		char c = description.module_id[i];

		if (shape[i] == 'x' ? !isxdigit((unsigned char)c) || isupper((unsigned char)c) : c != shape[i])
			return BAD("expected a module_id of the form %s, got %s", shape, description.module_id);
	}
	return true;
}

/* ---- random numbers ---- */

/* The kernel's driver compares the first 19 bytes, so the device has no choice of form. */
static bool random_form(const struct check *check)
{
	struct request start = make_request(check->expected);
	struct answer answer;

	if (!ask_notation(check->request, &answer))
		return false;
	if (answer.size != start.size + 256)
		return BAD("expected %zu bytes, got %zu: %s", start.size + 256, answer.size, show(&answer));
	if (memcmp(answer.data, start.data, start.size) != 0)
		return BAD("expected %s first, got %s", show_bytes(start.data, start.size), show(&answer));
	return true;
}

static bool random_differs(const struct check *check)
{
	struct field one[] = { { .name = "random", .kind = KIND_BYTES } };
	struct field two[] = { { .name = "random", .kind = KIND_BYTES } };
	struct answer first, second;

	if (!ask_notation(check->request, &first) || !ask_notation(check->request, &second) ||
	    !answer_fields(&first, "GetRandom", one, 1) || !answer_fields(&second, "GetRandom", two, 1))
		return false;
	if (same(one[0].value.string, two[0].value.string.data, two[0].value.string.size))
		return BAD("expected two answers that differ, got %s twice",
			   show_bytes(one[0].value.string.data, one[0].value.string.size));
	return true;
}

static bool read_all(int fd, uint8_t *data, size_t size)
{
	/* Less than was asked for is allowed. */
	while (size > 0) {
		ssize_t got = read(fd, data, size);

		if (got <= 0)
			return BAD("expected bytes of /dev/hwrng, got %s", got ? strerror(errno) : "its end");
		data += got;
		size -= (size_t)got;
	}
	return true;
}

static bool hardware_rng(const struct check *check)
{
	uint8_t one[64], two[64];
	int fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
	bool ok;

	(void)check;
	if (fd < 0)
		return BAD("expected /dev/hwrng, got %s", strerror(errno));
	ok = read_all(fd, one, sizeof(one)) && read_all(fd, two, sizeof(two));
	close(fd);
	if (ok && memcmp(one, two, sizeof(one)) == 0)
		return BAD("expected two reads that differ, got %s twice", show_bytes(one, sizeof(one)));
	return ok;
}

static const struct check module_checks[] = {
	{ .name = "module/fields", .run = described, .request = DESCRIBE },
	{ .name = "module/id", .run = module_id },
	{ .name = "module/locked-at-start", .run = shows_locked, .locked = BOOT_LOCKED },
	{ .name = "random/form", .run = random_form, .request = "6947657452616e646f6d",
	  .expected = "a16947657452616e646f6da16672616e646f6d 590100" },
	{ .name = "random/differs", .run = random_differs, .request = "6947657452616e646f6d" },
	{ .name = "random/hwrng", .run = hardware_rng },
};
const struct part module_part = PART(module_checks);
