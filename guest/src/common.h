/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What init, demo and stress share: names of the vsock ports, and writing that does not give up half way. */
#ifndef ENCLAVEDBG_COMMON_H
#define ENCLAVEDBG_COMMON_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * What these programs need of linux/vm_sockets.h, written out: whatever kernel headers the compiling machine has, debug
 * information describes them too, and so other headers would make other programs.
 */
#define VMADDR_CID_ANY UINT32_MAX

struct sockaddr_vm {
	sa_family_t svm_family;
	uint16_t svm_reserved1;
	uint32_t svm_port;
	uint32_t svm_cid;
	uint8_t svm_flags;
	uint8_t svm_zero[3];
};

#define PARENT_CID 3 /* the EC2 instance, seen from an enclave */
#define HEARTBEAT_PORT 9000
#define HEARTBEAT_BYTE 0xB7

#define ECHO_PORT 5000
#define ATTESTATION_PORT 5001
#define CONTROL_PORT 5002

/* Write all of it; 0, or -1 with errno. */
static inline int write_all(int fd, const void *data, size_t size)
{
	const uint8_t *next = data;

	while (size > 0) {
		ssize_t done = write(fd, next, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -1;
		next += done;
		size -= (size_t)done;
	}
	return 0;
}

#endif
