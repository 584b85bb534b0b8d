// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The program in the demo image.
 *
 * It prints the image's measurements as its own secure module tells them, then serves on vsock: an echo (port
 * 5000), attestation documents (5001), and a control port (5002) on which it can be told to end in each of the
 * ways in which an enclave ends. guest/README.md describes the protocols. One process, one thread, one poll loop:
 * what a debugger shows of it is easy to follow.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "nsm.h"

#define MAX_CONNECTIONS 32
#define MAX_FIELD 4096			    /* of an attestation request; the module's own limits are smaller */
#define ABSENT 0xFFFFFFFFu		    /* length of a field that is not there */
#define REQUEST_SIZE (3 * (4 + MAX_FIELD))  /* the longest attestation request */
#define REPLY_SIZE (5 + NSM_MAX_RESPONSE)   /* the longest answer of any service */
#define MAX_LINE 128			    /* of the control port */
#define PCR_COUNT 3

enum attestation_status { ATTESTATION_OK = 0, ATTESTATION_REFUSED = 1, ATTESTATION_FAILED = 2 };

struct connection;

/* A service takes what it can from `in`, puts its answer to `out`, and returns false to close after that. */
struct service {
	const char *name;
	unsigned port;
	bool (*handle)(struct connection *c);
};

struct connection {
	int fd;
	const struct service *service;
	bool ending; /* close when everything is sent */
	size_t in_size, out_size, out_sent;
	uint8_t in[REQUEST_SIZE];
	uint8_t out[REPLY_SIZE];
};

static struct connection *connections[MAX_CONNECTIONS];
static int nsm;
static char pcr_text[PCR_COUNT * (PCR_SIZE * 2 + 16)];

static void die(const char *what)
{
	fprintf(stderr, "demo: %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILURE);
}

static void consume(struct connection *c, size_t size)
{
	c->in_size -= size;
	memmove(c->in, c->in + size, c->in_size);
}

static void answer(struct connection *c, const void *data, size_t size)
{
	memcpy(c->out + c->out_size, data, size);
	c->out_size += size;
}

static void answer_text(struct connection *c, const char *text)
{
	answer(c, text, strlen(text));
}

static uint32_t get_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* ---- the echo service ---- */

static bool handle_echo(struct connection *c)
{
	size_t size = c->in_size < sizeof(c->out) ? c->in_size : sizeof(c->out);

	answer(c, c->in, size);
	consume(c, size);
	return true;
}

/* ---- the attestation service ---- */

static void answer_attestation(struct connection *c, enum attestation_status status, const void *body, size_t size)
{
	uint8_t head[5] = { status, (uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size };

	answer(c, head, sizeof(head));
	answer(c, body, size);
}

static void attest(struct connection *c, const struct optional_bytes fields[3])
{
	static uint8_t response[NSM_MAX_RESPONSE];
	struct optional_bytes document;
	char text[128];

	switch (nsm_attest(nsm, &fields[0], &fields[1], &fields[2], response, &document, text, sizeof(text))) {
	case NSM_OK:
		answer_attestation(c, ATTESTATION_OK, document.data, document.size);
		printf("demo: attestation document of %zu bytes\n", document.size);
		break;
	case NSM_REFUSED:
		answer_attestation(c, ATTESTATION_REFUSED, text, strlen(text));
		printf("demo: attestation refused: %s\n", text);
		break;
	case NSM_FAILED:
		answer_attestation(c, ATTESTATION_FAILED, text, strlen(text));
		printf("demo: attestation failed: %s\n", text);
		break;
	}
}

/* A request is user_data, nonce and public_key, each a big-endian length and that many bytes. */
static bool handle_attestation(struct connection *c)
{
	struct optional_bytes fields[3];
	size_t at = 0;

	for (int i = 0; i < 3; i++) {
		uint32_t size;

		if (c->in_size - at < 4)
			return true;
		size = get_be32(c->in + at);
		at += 4;
		fields[i] = (struct optional_bytes){ NULL, 0 };
		if (size == ABSENT)
			continue;
		if (size > MAX_FIELD) {
			static const char text[] = "a field is longer than 4096 bytes";

			answer_attestation(c, ATTESTATION_FAILED, text, sizeof(text) - 1);
			return false;
		}
		if (c->in_size - at < size)
			return true;
		fields[i] = (struct optional_bytes){ c->in + at, size };
		at += size;
	}
	attest(c, fields);
	consume(c, at);
	return true;
}

/* ---- the control port: ways to end ---- */

static void do_exit(const char *argument)
{
	exit(atoi(argument));
}

/* A store through a null pointer, which must be a real one in the machine code too. */
__attribute__((noinline)) static void do_crash(const char *argument)
{
	volatile int *volatile nowhere = NULL;

	(void)argument;
	*nowhere = 42;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write_all(fd, text, strlen(text)) < 0)
		fprintf(stderr, "demo: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void do_panic(const char *argument)
{
	(void)argument;
	write_file("/proc/sysrq-trigger", "c");
}

/* Take memory and touch it until the kernel's out-of-memory killer ends this process. */
static void do_oom(const char *argument)
{
	const size_t step = 4 << 20;

	(void)argument;
	for (;;) {
		char *memory = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			die("mmap");
		for (size_t i = 0; i < step; i += 4096)
			memory[i] = 1;
	}
}

/*
 * Let the kernel do something wrong by itself: its test module lkdtm has BUG, EXCEPTION, EXHAUST_STACK, SOFTLOCKUP,
 * HARDLOCKUP and many more.
 */
static void do_kernel(const char *argument)
{
	int fd = open("/lib/modules/lkdtm.ko", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
			perror("demo: loading lkdtm");
		close(fd);
	}
	if (mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL) < 0 && errno != EBUSY)
		perror("demo: debugfs");
	write_file("/sys/kernel/debug/provoke-crash/DIRECT", argument);
}

/* Alone: this program spins and serves nobody. `all`: no other program runs either. `kernel`: interrupts are off. */
static void do_hang(const char *argument)
{
	struct sched_param highest = { .sched_priority = sched_get_priority_max(SCHED_FIFO) };

	if (strcmp(argument, "kernel") == 0)
		do_kernel("HARDLOCKUP");
	if (strcmp(argument, "all") == 0) {
		write_file("/proc/sys/kernel/sched_rt_runtime_us", "-1");
		/* musl has no sched_setscheduler: POSIX's meaning of it is not Linux's. */
		if (syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &highest) < 0)
			perror("demo: sched_setscheduler");
	}
	for (;;)
		__asm__ volatile("" ::: "memory");
}

static void do_reboot(const char *argument)
{
	(void)argument;
	reboot(RB_AUTOBOOT);
}

static void do_poweroff(const char *argument)
{
	(void)argument;
	reboot(RB_POWER_OFF);
}

static void do_nothing(const char *argument)
{
	(void)argument;
}

struct command {
	const char *name;
	const char *argument; /* what may follow, for the list of commands; NULL: nothing */
	void (*act)(const char *argument);
};

static const struct command commands[] = {
	{ "exit", "STATUS", do_exit },
	{ "crash", NULL, do_crash },
	{ "panic", NULL, do_panic },
	{ "oom", NULL, do_oom },
	{ "hang", "[all|kernel]", do_hang },
	{ "kernel", "LKDTM-TEST", do_kernel },
	{ "reboot", NULL, do_reboot },
	{ "poweroff", NULL, do_poweroff },
	{ "pcrs", NULL, do_nothing },
	{ "help", NULL, do_nothing },
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void answer_help(struct connection *c)
{
	for (size_t i = 0; i < COMMAND_COUNT; i++) {
		answer_text(c, commands[i].name);
		answer_text(c, commands[i].argument ? " " : "");
		answer_text(c, commands[i].argument ? commands[i].argument : "");
		answer_text(c, "\n");
	}
}

/* Send what waits, and give the vsock driver's worker the time to hand it to the device. */
static void flush(struct connection *c)
{
	struct pollfd writable = { .fd = c->fd, .events = POLLOUT };

	while (c->out_sent < c->out_size && poll(&writable, 1, 1000) > 0) {
		ssize_t done = write(c->fd, c->out + c->out_sent, c->out_size - c->out_sent);

		if (done < 0)
			break;
		c->out_sent += (size_t)done;
	}
	c->out_size = c->out_sent = 0;
	usleep(20000);
}

static void execute(struct connection *c, char *line)
{
	char *name = strsep(&line, " ");
	const char *argument = line ? line : "";
	const struct command *command = NULL;

	for (size_t i = 0; i < COMMAND_COUNT; i++)
		if (strcmp(commands[i].name, name) == 0)
			command = &commands[i];
	if (!command) {
		answer_text(c, "error: no such command, try help\n");
		return;
	}
	if (*argument && !command->argument) {
		answer_text(c, "error: the command takes no argument\n");
		return;
	}
	answer_text(c, "ok\n");
	if (strcmp(name, "pcrs") == 0)
		answer_text(c, pcr_text);
	if (strcmp(name, "help") == 0)
		answer_help(c);
	if (command->act == do_nothing)
		return;
	printf("demo: control: %s %s\n", name, argument);
	flush(c);
	command->act(argument);
}

static bool handle_control(struct connection *c)
{
	char line[MAX_LINE + 1];
	uint8_t *end = memchr(c->in, '\n', c->in_size);
	size_t size;

	if (!end && c->in_size <= MAX_LINE)
		return true;
	size = end ? (size_t)(end - c->in) : c->in_size;
	if (size > MAX_LINE) {
		answer_text(c, "error: the line is too long\n");
		return false;
	}
	memcpy(line, c->in, size);
	line[size] = 0;
	if (size > 0 && line[size - 1] == '\r')
		line[size - 1] = 0;
	consume(c, size + 1);
	execute(c, line);
	return true;
}

/* ---- the server ---- */

static const struct service services[] = {
	{ "echo", ECHO_PORT, handle_echo },
	{ "attestation", ATTESTATION_PORT, handle_attestation },
	{ "control", CONTROL_PORT, handle_control },
};
#define SERVICE_COUNT (sizeof(services) / sizeof(services[0]))

static int listen_on(unsigned port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		die("vsock");
	return fd;
}

static void accept_connection(int listener, const struct service *service)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct connection *c;

	if (fd < 0)
		return; /* the caller has gone again */
	for (size_t i = 0; i < MAX_CONNECTIONS; i++)
		if (!connections[i] && (c = calloc(1, sizeof(*c)))) {
			c->fd = fd;
			c->service = service;
			connections[i] = c;
			return;
		}
	printf("demo: %s: more than %d connections, one is refused\n", service->name, MAX_CONNECTIONS);
	close(fd);
}

/* Read once, if there is room; false when the connection broke. */
static bool receive(struct connection *c)
{
	ssize_t done;

	if (c->ending || c->in_size == sizeof(c->in))
		return true;
	done = read(c->fd, c->in + c->in_size, sizeof(c->in) - c->in_size);
	if (done < 0)
		return errno == EAGAIN || errno == EINTR;
	if (done == 0)
		c->ending = true;
	c->in_size += (size_t)done;
	return true;
}

/* Write once, if there is something; false when the connection broke. */
static bool send_answer(struct connection *c)
{
	ssize_t done;

	if (c->out_sent == c->out_size)
		return true;
	done = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
	if (done < 0)
		return errno == EAGAIN || errno == EINTR;
	c->out_sent += (size_t)done;
	if (c->out_sent == c->out_size)
		c->out_sent = c->out_size = 0;
	return true;
}

/* Move one connection on: read, let the service work while it can, write. False: it is over. */
static bool progress(struct connection *c, short events)
{
	if ((events & (POLLIN | POLLHUP)) && !receive(c))
		return false;
	for (;;) {
		size_t before = c->in_size;

		if (!send_answer(c))
			return false;
		if (c->out_size > 0)
			return true; /* the next answer has room only when this one is gone */
		if (before > 0 && !c->service->handle(c)) {
			c->ending = true;
			c->in_size = 0;
		}
		if (c->out_size == 0 && c->in_size == before)
			return !c->ending; /* nothing to send, and more input is needed */
	}
}

static short wanted_events(const struct connection *c)
{
	if (c->out_size > 0)
		return POLLOUT;
	return c->ending ? 0 : POLLIN;
}

static void serve(const int listeners[SERVICE_COUNT])
{
	struct pollfd fds[SERVICE_COUNT + MAX_CONNECTIONS];

	for (;;) {
		for (size_t i = 0; i < SERVICE_COUNT; i++)
			fds[i] = (struct pollfd){ .fd = listeners[i], .events = POLLIN };
		for (size_t i = 0; i < MAX_CONNECTIONS; i++) {
			struct connection *c = connections[i];

			fds[SERVICE_COUNT + i] = (struct pollfd){
				.fd = c ? c->fd : -1, .events = c ? wanted_events(c) : 0,
			};
		}
		if (poll(fds, SERVICE_COUNT + MAX_CONNECTIONS, -1) < 0) {
			if (errno == EINTR)
				continue;
			die("poll");
		}
		for (size_t i = 0; i < MAX_CONNECTIONS; i++) {
			short events = fds[SERVICE_COUNT + i].revents;

			if (!connections[i] || !events || (!(events & POLLERR) && progress(connections[i], events)))
				continue;
			close(connections[i]->fd);
			free(connections[i]);
			connections[i] = NULL;
		}
		for (size_t i = 0; i < SERVICE_COUNT; i++)
			if (fds[i].revents)
				accept_connection(listeners[i], &services[i]);
	}
}

static void print_pcrs(void)
{
	char *next = pcr_text;

	for (unsigned i = 0; i < PCR_COUNT; i++) {
		uint8_t value[PCR_SIZE];
		char text[128];

		if (nsm_describe_pcr(nsm, (uint16_t)i, value, text, sizeof(text)) != NSM_OK) {
			fprintf(stderr, "demo: PCR%u: %s\n", i, text);
			exit(EXIT_FAILURE);
		}
		next += sprintf(next, "PCR%u: ", i);
		for (size_t j = 0; j < PCR_SIZE; j++)
			next += sprintf(next, "%02x", value[j]);
		next += sprintf(next, "\n");
	}
	fputs(pcr_text, stdout);
}

int main(void)
{
	int listeners[SERVICE_COUNT];

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	nsm = nsm_open();
	if (nsm < 0)
		die("/dev/nsm");
	print_pcrs();
	for (size_t i = 0; i < SERVICE_COUNT; i++)
		listeners[i] = listen_on(services[i].port);
	printf("demo: ready on vsock ports %d (echo), %d (attestation), %d (control)\n", ECHO_PORT,
	       ATTESTATION_PORT, CONTROL_PORT);
	serve(listeners);
}
