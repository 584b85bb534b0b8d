/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Requests to the Nitro Secure Module through /dev/nsm. */
#ifndef ENCLAVEDBG_NSM_H
#define ENCLAVEDBG_NSM_H

#include <stddef.h>
#include <stdint.h>

#define NSM_MAX_REQUEST 0x1000
#define NSM_MAX_RESPONSE 0x3000
#define PCR_SIZE 48 /* SHA-384 */

/* Bytes that may be absent (data is NULL then, which is not the same as empty). */
struct optional_bytes {
	const uint8_t *data;
	size_t size;
};

/* What a request came to: NSM_OK, or where it failed. The text is for people. */
enum nsm_result {
	NSM_OK,
	NSM_REFUSED, /* the module answered with an error, whose name is the text */
	NSM_FAILED,  /* the request did not get there, or the answer is not understood */
};

/* Open the device: a file descriptor, or -1 with errno. */
int nsm_open(void);

/* Read one platform configuration register. */
enum nsm_result nsm_describe_pcr(int fd, uint16_t index, uint8_t value[PCR_SIZE], char *text, size_t text_size);

/*
 * Ask for an attestation document. *document points into `response`, a buffer of the caller of NSM_MAX_RESPONSE
 * bytes.
 */
enum nsm_result nsm_attest(int fd, const struct optional_bytes *user_data, const struct optional_bytes *nonce,
			   const struct optional_bytes *public_key, uint8_t *response,
			   struct optional_bytes *document, char *text, size_t text_size);

#endif
