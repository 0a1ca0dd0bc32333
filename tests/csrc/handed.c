/*
 * handed COUNT keep|close: takes exactly COUNT userfaults, served by another process that got the userfaultfd over a Unix
 * socket (SCM_RIGHTS), as Firecracker does. keep: the faulting process keeps its own descriptor. Prints the ids of both
 * processes, then waits for a line before the first fault.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void transfer(int channel, int *fd, int sends)
{
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec one = { &byte, 1 };
	struct msghdr message = { .msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	if (sends) {
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), fd, sizeof(int));
		if (sendmsg(channel, &message, 0) != 1)
			die("sendmsg");
	} else {
		if (recvmsg(channel, &message, 0) != 1)
			die("recvmsg");
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	}
}

static void serve(int channel, long count)
{
	static char content[PAGE] __attribute__((aligned(4096)));
	struct uffd_msg msg;
	int uffd;

	transfer(channel, &uffd, 0);
	while (count--) {
		struct uffdio_copy copy = { .src = (unsigned long)content, .len = PAGE };

		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			die("read");
		copy.dst = msg.arg.pagefault.address & ~(PAGE - 1);
		if (ioctl(uffd, UFFDIO_COPY, &copy))
			die("copy");
	}
	exit(0);
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 100;
	int pair[2], uffd, i;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	volatile char *memory;
	pid_t handler;
	char line[16];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	handler = fork();
	if (!handler) {
		close(pair[0]);
		serve(pair[1], count);
	}
	close(pair[1]);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		die("userfaultfd");
	memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)memory;
	range.range.len = count * PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &range))
		die("register");
	transfer(pair[0], &uffd, 1);
	if (argc > 2 && !strcmp(argv[2], "close"))
		close(uffd);
	printf("%d %d\n", getpid(), handler);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	for (i = 0; i < count; i++)
		memory[i * PAGE] = 1;
	waitpid(handler, NULL, 0);
	return 0;
}
