// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first program of the enclave, PID 1.
 *
 * It does what the init of an image built by nitro-cli does, in the same order: devices and console, kernel
 * modules, heartbeat to the parent, command and environment from the ramdisk, file systems, the program. Two
 * things differ, so that a person who reads the console knows more: every failure names what failed, and the
 * end of the program is told in one line before the enclave ends.
 *
 * A failure here is the end of PID 1, which the kernel answers with a panic. That is on purpose, and what
 * happens on real hardware too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "common.h"

#define SEARCH_PATH "PATH=/sbin:/usr/sbin:/bin:/usr/bin"
#define MAX_FILE (1 << 20)

/* Say what failed and end PID 1 with its errno. */
static void die(const char *format, ...)
{
	int error = errno ? errno : EIO;
	va_list args;

	fprintf(stderr, "init: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(error));
	tcdrain(STDERR_FILENO);
	_exit(error);
}

static void mount_or_die(const char *source, const char *target, const char *type, unsigned long flags,
			 const char *data)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		die("mkdir %s", target);
	/* EBUSY: the kernel was configured to mount its devtmpfs by itself. */
	if (mount(source, target, type, flags, data) < 0 && errno != EBUSY)
		die("mount %s on %s", type, target);
}

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	if (fd < 0)
		die("/dev/console");
	for (int std = STDIN_FILENO; std <= STDERR_FILENO; std++)
		if (dup2(fd, std) < 0)
			die("dup2");
	if (fd > STDERR_FILENO)
		close(fd);
	setvbuf(stdout, NULL, _IOLBF, 0);
}

/* The whole file with a zero byte after it, or NULL if it does not exist. */
static char *read_file(const char *path)
{
	char *text = NULL;
	size_t size = 0;
	ssize_t done;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT)
		return NULL;
	if (fd < 0)
		die("%s", path);
	do {
		text = realloc(text, size + 4096 + 1);
		if (!text || size > MAX_FILE)
			die("%s is too large", path);
		done = read(fd, text + size, 4096);
		if (done < 0)
			die("read %s", path);
		size += (size_t)done;
	} while (done > 0);
	close(fd);
	text[size] = 0;
	return text;
}

/* Cut a text into its lines, without empty ones: a NULL-terminated array into the text. */
static char **lines_of(char *text)
{
	size_t count = 0;
	char **lines = calloc(1, sizeof(*lines)), *rest = text, *line;

	while (lines && rest && (line = strsep(&rest, "\n")))
		if (*line) {
			lines[count++] = line;
			lines = realloc(lines, (count + 1) * sizeof(*lines));
			if (lines)
				lines[count] = NULL;
		}
	if (!lines)
		die("out of memory");
	return lines;
}

static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("%s", path);
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
		die("loading %s", path);
	close(fd);
	unlink(path);
}

/*
 * Modules: nsm.ko at the top of the ramdisk, as nitro-cli puts it, and before it those that the file /modules
 * lists, one path per line in load order. A kernel with all drivers built in has neither.
 */
static void load_modules(void)
{
	char *list = read_file("/modules");

	if (list) {
		char **paths = lines_of(list);
		size_t count = 0;

		for (; paths[count]; count++)
			load_module(paths[count]);
		printf("init: loaded %zu kernel modules\n", count);
		free(paths);
		free(list);
		unlink("/modules");
	}
	if (access("/nsm.ko", F_OK) == 0)
		load_module("/nsm.ko");
}

/* Tell the parent that the enclave is up: one byte there, the same byte back. */
static void heartbeat(void)
{
	struct sockaddr_vm parent = {
		.svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = HEARTBEAT_PORT,
	};
	uint8_t byte = HEARTBEAT_BYTE;
	ssize_t done;
	int fd;

	printf("init: heartbeat to vsock %u:%u\n", PARENT_CID, HEARTBEAT_PORT);
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("heartbeat: socket");
	if (connect(fd, (struct sockaddr *)&parent, sizeof(parent)) < 0)
		die("heartbeat: connect to vsock %u:%u", PARENT_CID, HEARTBEAT_PORT);
	if (write_all(fd, &byte, 1) < 0)
		die("heartbeat: write");
	byte = 0;
	done = read(fd, &byte, 1);
	if (done < 0)
		die("heartbeat: read");
	if (done == 0 || byte != HEARTBEAT_BYTE) {
		errno = EPROTO;
		die("heartbeat: the parent answered %s0x%02x, not 0x%02x", done ? "" : "nothing, ", byte,
		    HEARTBEAT_BYTE);
	}
	close(fd);
	printf("init: heartbeat answered\n");
}

/* Make /rootfs the root directory, if the ramdisk has one. */
static void enter_rootfs(void)
{
	if (access("/rootfs", F_OK) < 0)
		return;
	if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) < 0)
		die("bind /rootfs");
	if (chdir("/rootfs") < 0)
		die("chdir /rootfs");
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0)
		die("move /rootfs to /");
	if (chroot(".") < 0 || chdir("/") < 0)
		die("chroot");
	mount_or_die("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
}

static void mount_file_systems(void)
{
	static const char *const links[][2] = {
		{ "/proc/self/fd", "/dev/fd" },
		{ "/proc/self/fd/0", "/dev/stdin" },
		{ "/proc/self/fd/1", "/dev/stdout" },
		{ "/proc/self/fd/2", "/dev/stderr" },
	};

	mount_or_die("proc", "/proc", "proc", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			die("symlink %s", links[i][1]);
	mount_or_die("tmpfs", "/run", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, "mode=0755");
	mount_or_die("tmpfs", "/tmp", "tmpfs", MS_NODEV | MS_NOSUID, NULL);
	mount_or_die("shm", "/dev/shm", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
	mount_or_die("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL);
	mount_or_die("sysfs", "/sys", "sysfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
}

/* Start the program in a session of its own, with all signals let through. */
static pid_t start(char **command, char **environment, const sigset_t *unblocked)
{
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (child > 0)
		return child;
	sigprocmask(SIG_SETMASK, unblocked, NULL);
	setsid();
	/* The search goes through AWS's path; the program sees exactly the environment of the image. */
	putenv(SEARCH_PATH);
	execvpe(command[0], command, environment);
	die("exec %s", command[0]);
	return -1;
}

/* Wait for everything that ends; return the status of the program itself. */
static int reap_until(pid_t program)
{
	for (;;) {
		int status;
		pid_t ended = wait(&status);

		if (ended == program)
			return status;
		if (ended < 0 && errno != EINTR)
			die("wait");
	}
}

static void report(const char *name, int status)
{
	if (WIFSIGNALED(status))
		printf("init: %s killed by signal %d (%s)\n", name, WTERMSIG(status),
		       strsignal(WTERMSIG(status)));
	else
		printf("init: %s exited with status %d\n", name, WEXITSTATUS(status));
	/* The kernel resets the machine without asking whether the port has sent everything. */
	tcdrain(STDOUT_FILENO);
}

int main(void)
{
	static char *default_command[] = { "sh", NULL }, *default_environment[] = { SEARCH_PATH, NULL };
	char **command, **environment;
	sigset_t all, before;
	int status;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	mount_or_die("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
	open_console();
	load_modules();
	heartbeat();

	environment = lines_of(read_file("/env"));
	command = lines_of(read_file("/cmd"));
	unlink("/env");
	unlink("/cmd");
	if (!*command)
		command = default_command;
	if (!*environment)
		environment = default_environment;

	enter_rootfs();
	mount_file_systems();
	status = reap_until(start(command, environment, &before));
	report(command[0], status);
	reboot(RB_AUTOBOOT);
	die("reboot");
}
