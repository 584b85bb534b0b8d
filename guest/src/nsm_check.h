/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of nsm-check share: checks as rows of tables, exchanges with /dev/nsm, and a reader of CBOR. */
#ifndef ENCLAVEDBG_NSM_CHECK_H
#define ENCLAVEDBG_NSM_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define MAX_REQUEST 0x1000  /* what the driver takes */
#define MAX_RESPONSE 0x3000 /* what the driver has room for */
#define PCR_COUNT 32
#define PCR_SIZE 48 /* SHA-384 */
#define BOOT_LOCKED 0x0000FFFFu /* the platform locks registers 0 to 15 */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct bytes {
	const uint8_t *data;
	size_t size;
};

/* One byte more than is legal, to see that refused. */
struct request {
	size_t size;
	uint8_t data[MAX_REQUEST + 1];
};

struct answer {
	size_t size;
	uint8_t data[MAX_RESPONSE];
};

/* ---- checks (nsm_check.c) ---- */

/* One thing to check. What a row does not need stays out of it. */
struct check {
	const char *name;
	bool (*run)(const struct check *check); /* false after BAD */
	const char *request;			/* in the notation of add() */
	const char *expected;			/* an answer in the same notation, or an error's name */
	const char *fields[3];			/* user data, nonce, public key of a document; NULL is null */
	unsigned index;				/* of a register */
	uint32_t locked;			/* registers that are locked afterwards, one bit each */
	size_t capacity;			/* of the answer's buffer */
	bool choice;				/* emulators agree, of real hardware it is not known */
};

struct part {
	const struct check *checks;
	size_t count;
};
#define PART(checks) { checks, COUNT(checks) }

extern struct options {
	bool debug;   /* the enclave runs in debug mode */
	bool choices; /* check also what is only a choice of emulators */
} options;
extern char problem[400];

#define BAD(...) (snprintf(problem, sizeof(problem), __VA_ARGS__), false)

bool is_error(const struct check *check);
bool is_exact(const struct check *check);

extern const struct part ioctl_part, module_part; /* nsm_check_device.c */
extern const struct part start_part, extend_part, lock_part, lock_range_part; /* nsm_check_pcr.c */
extern const struct part encoding_part, malformed_part, refused_part, unchanged_part; /* nsm_check_requests.c */
extern const struct part attestation_part, locked_attestation_part; /* nsm_check_document.c */

/* Checks that use the tables of others. */
bool shows_locked(const struct check *check);
bool is_document(const struct check *check);

/* nsm_check_faults.c: take an expect= or slow= (false: it is none), tell whether there was one, run them. */
bool take_fault(const char *word);
bool faults_wanted(void);
int run_faults(int *bad);

/* Print one line; a failed check takes its reason from `problem`. */
bool report(const char *name, bool ok);
long milliseconds(void);

/* ---- exchanges (nsm_check_exchange.c) ---- */

/*
 * Append what the notation says: pairs of hex digits are bytes, '...' is text as it stands, (5a*1024) is a byte many
 * times, blanks mean nothing. A mistake in it is one of this program, which ends.
 */
void add(struct request *request, const char *notation);
/* Append an unsigned number in its shortest form. */
void add_number(struct request *request, unsigned number);
struct request make_request(const char *notation);

extern int nsm;	       /* the open device */
extern int last_errno; /* of the last exchange that failed */

/* struct nsm_raw of linux/nsm.h, which Debian 12's own headers (6.1) do not have. */
struct nsm_raw {
	uint64_t request_address, request_size, response_address, response_size;
};
#define NSM_IOCTL_RAW _IOWR(0x0A, 0, struct nsm_raw)

/* Send one request; false with BAD when the driver refuses it. */
bool ask(const struct request *request, struct answer *answer);
bool ask_notation(const char *notation, struct answer *answer);

/* An answer for people, shortened; valid until the fourth call after this one. */
const char *show(const struct answer *answer);
const char *show_bytes(const void *data, size_t size);
/* The name in {"Error": name}, or no data. */
struct bytes error_name(const struct answer *answer);
bool is_error_name(const char *name, size_t size);
/* Whether the answer is exactly that error, byte for byte; false with BAD. */
bool answer_is_error(const struct answer *answer, const char *name);
bool same(struct bytes bytes, const void *data, size_t size);

/* What two requests tell, for checks that need to know more than one answer. */
struct description {
	char module_id[100];
	uint32_t locked;
};
struct pcr {
	bool locked;
	uint8_t value[PCR_SIZE];
};
bool read_description(const struct answer *answer, struct description *description);
bool read_pcr(const struct answer *answer, struct pcr *pcr);
bool describe_module(struct description *description);
bool describe_pcr(unsigned index, struct pcr *pcr);

/* ---- CBOR (nsm_check_cbor.c) ---- */

enum cbor_state { CBOR_WHOLE, CBOR_CUT, CBOR_TRAILING, CBOR_BROKEN };
enum cbor_kind { KIND_U16, KIND_UINT, KIND_BOOL, KIND_TEXT, KIND_BYTES, KIND_BYTES_OR_NULL, KIND_ARRAY, KIND_MAP };

/* Major types: the three top bits of an item's first byte. */
enum { CBOR_UINT, CBOR_NEGATIVE, CBOR_BYTES, CBOR_TEXT, CBOR_ARRAY, CBOR_MAP, CBOR_TAG, CBOR_SIMPLE };

/* One item, not looked into. */
struct cbor {
	struct bytes raw;    /* the whole of it */
	struct bytes string; /* a string's content */
	uint64_t number;
};

struct field {
	const char *name;
	enum cbor_kind kind;
	struct cbor value; /* string.data is NULL for null */
};

/* Whether the bytes are one well-formed item. */
enum cbor_state cbor_state(struct bytes data);
const char *cbor_state_name(enum cbor_state state);
/* Take an item as a kind: integers of any width, containers of definite or indefinite length, definite strings. */
bool cbor_read(struct bytes item, enum cbor_kind kind, struct cbor *value);
/* Read a map of exactly these fields, in any order; false with BAD. */
bool cbor_fields(struct bytes map, struct field *fields, size_t count);
/* Read {variant: {fields}}; false with BAD. */
bool answer_fields(const struct answer *answer, const char *variant, struct field *fields, size_t count);

/* The items of an array, or keys and values of a map in turn. */
struct walk {
	struct bytes rest;
	uint64_t left;
	bool indefinite;
};
bool walk_open(struct walk *walk, struct bytes container);
bool walk_next(struct walk *walk, struct bytes *item);

#endif
