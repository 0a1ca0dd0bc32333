/*
 * userfaults COUNT [WORD...]: takes exactly COUNT userfaults, writing one byte to each page, served by one handler
 * thread. dev: the userfaultfd comes from /dev/userfaultfd. slow: each 5000th fault is served after 300 ms. wait: prints
 * a line, then waits for one before the first fault. move: the faulting thread goes to another CPU before each fault,
 * the handler before each answer. close: the last message is read, then the userfaultfd is closed instead.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 4096

static int uffd;
static long count;
static int use_dev, slow, hold, moving, closing;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* To the CPU after this one, of those that may be used. */
static void move(void)
{
	static cpu_set_t allowed;
	static int known;
	cpu_set_t one;
	int cpu = sched_getcpu();

	if (!known && sched_getaffinity(getpid(), sizeof(allowed), &allowed))
		die("sched_getaffinity");
	known = 1;
	do
		cpu = (cpu + 1) % CPU_SETSIZE;
	while (!CPU_ISSET(cpu, &allowed));
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("sched_setaffinity");
}

static void *serve(void *unused)
{
	static char content[PAGE] __attribute__((aligned(4096)));
	struct uffd_msg msg;
	struct uffdio_copy copy;
	long done;

	(void)unused;
	memset(content, 7, sizeof(content));
	for (done = 0; done < count; done++) {
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			die("read");
		if (slow && done % 5000 == 4999)
			usleep(300000);
		if (moving)
			move();
		if (closing && done == count - 1) {
			close(uffd);
			uffd = -1;
			return NULL;
		}
		copy.dst = msg.arg.pagefault.address & ~(PAGE - 1);
		copy.src = (unsigned long)content;
		copy.len = PAGE;
		copy.mode = 0;
		copy.copy = 0;
		if (ioctl(uffd, UFFDIO_COPY, &copy))
			die("UFFDIO_COPY");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t handler;
	char *memory;
	long i;
	int dev;

	count = argc > 1 ? atol(argv[1]) : 1009;
	for (i = 2; i < argc; i++) {
		use_dev |= !strcmp(argv[i], "dev");
		slow |= !strcmp(argv[i], "slow");
		hold |= !strcmp(argv[i], "wait");
		moving |= !strcmp(argv[i], "move");
		closing |= !strcmp(argv[i], "close");
	}
	if (moving)
		move();
	if (use_dev) {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		uffd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	} else {
		uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	}
	if (uffd < 0)
		die("userfaultfd");
	if (ioctl(uffd, UFFDIO_API, &api))
		die("UFFDIO_API");
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	reg.range.start = (unsigned long)memory;
	reg.range.len = PAGES * PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		die("UFFDIO_REGISTER");
	if (pthread_create(&handler, NULL, serve, NULL))
		die("pthread_create");
	if (hold) {
		usleep(50000);	/* the handler is in its read */
		puts("ready");
		fflush(stdout);
		getchar();
	}
	for (i = 0; i < count; i++) {
		if (moving)
			move();
		if (i && i % PAGES == 0 && madvise(memory, PAGES * PAGE, MADV_DONTNEED))
			die("madvise");
		memory[i % PAGES * PAGE] = 1;
	}
	pthread_join(handler, NULL);
	if (uffd >= 0)
		close(uffd);
	return 0;
}
