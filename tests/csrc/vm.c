/*
 * vm MEMORY PAGES ACTION...: a real guest (long mode, CPL 3) whose memory is zapped on order, one action after the other.
 * MEMORY: anon, shared (memfd), huge (anon, aligned, MADV_HUGEPAGE), file:PATH. The first action line is printed when
 * all is set up; each action prints one line when done. FIRST and COUNT are pages.
 *   touch:FIRST:COUNT[:VCPU]   the guest writes one byte to each page; a vCPU is made when first named
 *   same:FIRST:COUNT           the host fills each page with the same bytes
 *   punch, dontneed, remove, protect, unmap, wp, pageout, collapse, mergeable :FIRST:COUNT
 *   sync                       msync of all memory
 *   wait                       read a line from stdin
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ull
#define HUGE (512 * PAGE)
#define CTL_GPA 0x100000ull
#define PML4_GPA (CTL_GPA + 0x1000)
#define PDPT_GPA (CTL_GPA + 0x2000)
#define PD_GPA (CTL_GPA + 0x3000)
#define DATA_GPA 0x40000000ull
#define EXIT_GPA 0xc0000000ull	/* no memslot there: ends the guest's turn */
#define FLAGS 0x67ull		/* present, writable, user, accessed, dirty */
#define VCPUS 8

/* r10 first address, rcx pages, r8 EXIT_GPA */
__asm__(".pushsection .rodata\n"
	"guest_code:\n"
	"1:	test %rcx, %rcx\n"
	"	jz 2f\n"
	"	movb $1, (%r10)\n"
	"	add $4096, %r10\n"
	"	dec %rcx\n"
	"	jmp 1b\n"
	"2:	mov %rcx, (%r8)\n"
	"	jmp 2b\n"
	"guest_code_end:\n"
	".popsection\n");
extern const char guest_code[], guest_code_end[];

struct vcpu {
	pthread_t thread;
	sem_t go, done;
	struct kvm_run *run;
	int fd;
	uint64_t first, count;
} vcpus[VCPUS];

static int kvm, vm, uffd = -1, file = -1;
static char *memory;
static uint64_t pages;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void *body(void *argument)
{
	struct vcpu *v = argument;
	struct kvm_regs regs;

	for (;;) {
		sem_wait(&v->go);
		memset(&regs, 0, sizeof(regs));
		regs.rflags = 2;
		regs.rip = CTL_GPA;
		regs.r8 = EXIT_GPA;
		regs.r10 = DATA_GPA + v->first * PAGE;
		regs.rcx = v->count;
		if (ioctl(v->fd, KVM_SET_REGS, &regs))
			die("KVM_SET_REGS");
		do {
			if (ioctl(v->fd, KVM_RUN, 0) && errno != EINTR)
				die("KVM_RUN");
		} while (v->run->exit_reason == KVM_EXIT_INTR);
		if (v->run->exit_reason != KVM_EXIT_MMIO || v->run->mmio.phys_addr != EXIT_GPA) {
			fprintf(stderr, "exit %u\n", v->run->exit_reason);
			exit(1);
		}
		v->run->immediate_exit = 1;	/* let the store be finished, so that new registers hold */
		ioctl(v->fd, KVM_RUN, 0);
		v->run->immediate_exit = 0;
		sem_post(&v->done);
	}
	return NULL;
}

static void make_vcpu(int index)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));
	struct vcpu *v = &vcpus[index];
	struct kvm_sregs sregs;

	v->fd = ioctl(vm, KVM_CREATE_VCPU, index);
	if (v->fd < 0)
		die("KVM_CREATE_VCPU");
	v->run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	cpuid->nent = 256;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(v->fd, KVM_SET_CPUID2, cpuid))
		die("KVM_SET_CPUID2");
	free(cpuid);
	if (ioctl(v->fd, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x80050033;
	sregs.cr3 = PML4_GPA;
	sregs.cr4 = 0x220;
	sregs.efer = 0x500;
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs))
		die("KVM_SET_SREGS");
	sem_init(&v->go, 0, 0);
	sem_init(&v->done, 0, 0);
	if (pthread_create(&v->thread, NULL, body, v))
		die("pthread_create");
}

static void *mapped(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void make_memory(const char *kind)
{
	uint64_t bytes = pages * PAGE, at;

	if (!strncmp(kind, "file:", 5))
		file = open(kind + 5, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	else if (!strcmp(kind, "shared"))
		file = memfd_create("guest", MFD_CLOEXEC);
	if (file >= 0 && ftruncate(file, bytes))
		die("ftruncate");
	/* aligned as huge pages are */
	memory = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	at = ((uint64_t)memory + HUGE - 1) & ~(HUGE - 1);
	memory = mmap((void *)at, bytes, PROT_READ | PROT_WRITE,
		      MAP_FIXED | (file >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), file, 0);
	if (memory == MAP_FAILED)
		die("mmap of the guest's memory");
	if (madvise(memory, bytes, strcmp(kind, "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE) && errno != EINVAL)
		die("madvise");
}

static void make_vm(void)
{
	struct kvm_userspace_memory_region slot = { 0, 0, CTL_GPA, 8 * PAGE, 0 };
	uint64_t *pd;
	char *ctl = mapped(8 * PAGE);
	int g, i;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		die("KVM_CREATE_VM");
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	memcpy(ctl, guest_code, guest_code_end - guest_code);
	*(uint64_t *)(ctl + PML4_GPA - CTL_GPA) = PDPT_GPA | FLAGS;
	for (g = 0; g < 4; g++) {
		((uint64_t *)(ctl + PDPT_GPA - CTL_GPA))[g] = (PD_GPA + g * PAGE) | FLAGS;
		pd = (uint64_t *)(ctl + PD_GPA - CTL_GPA + g * PAGE);
		for (i = 0; i < 512; i++)
			pd[i] = (uint64_t)g << 30 | (uint64_t)i << 21 | FLAGS | 0x80;
	}
	slot.userspace_addr = (uint64_t)ctl;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot))
		die("memslot 0");
	slot = (struct kvm_userspace_memory_region){ 1, 0, DATA_GPA, pages * PAGE, (uint64_t)memory };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot))
		die("memslot 1");
}

static void touch(uint64_t first, uint64_t count, int index)
{
	struct vcpu *v = &vcpus[index];

	if (!v->run)
		make_vcpu(index);
	v->first = first;
	v->count = count;
	sem_post(&v->go);
	sem_wait(&v->done);
}

static int write_protect(char *start, uint64_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { { (uint64_t)memory, pages * PAGE }, UFFDIO_REGISTER_MODE_WP, 0 };
	struct uffdio_writeprotect wp = { { (uint64_t)start, bytes }, UFFDIO_WRITEPROTECT_MODE_WP };

	if (uffd < 0) {
		uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
			return -1;
	}
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static int act(const char *name, uint64_t first, uint64_t count, int index)
{
	char *start = memory + first * PAGE, line[16];
	uint64_t bytes = count * PAGE, i;

	if (!strcmp(name, "touch"))
		return touch(first, count, index), 0;
	if (!strcmp(name, "same")) {
		for (i = 0; i < count; i++)
			memset(start + i * PAGE, 0x5a, PAGE);
		return 0;
	}
	if (!strcmp(name, "punch"))
		return fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE, bytes);
	if (!strcmp(name, "dontneed"))
		return madvise(start, bytes, MADV_DONTNEED);
	if (!strcmp(name, "remove"))
		return madvise(start, bytes, MADV_REMOVE);
	if (!strcmp(name, "pageout"))
		return madvise(start, bytes, MADV_PAGEOUT);
	if (!strcmp(name, "collapse"))
		return madvise(start, bytes, MADV_HUGEPAGE) || madvise(start, bytes, 25 /* MADV_COLLAPSE */);
	if (!strcmp(name, "mergeable"))
		return madvise(start, bytes, MADV_MERGEABLE);
	if (!strcmp(name, "protect"))
		return mprotect(start, bytes, PROT_READ);
	if (!strcmp(name, "unmap"))
		return munmap(start, bytes);
	if (!strcmp(name, "wp"))
		return write_protect(start, bytes);
	if (!strcmp(name, "sync"))
		return msync(memory, pages * PAGE, MS_SYNC);
	if (!strcmp(name, "wait"))
		return fgets(line, sizeof(line), stdin) ? 0 : -1;
	errno = EINVAL;
	return -1;
}

int main(int argc, char **argv)
{
	unsigned long first, count;
	char name[32];
	int i, index;

	if (argc < 3)
		return 2;
	pages = strtoull(argv[2], NULL, 10);
	make_memory(argv[1]);
	make_vm();
	printf("memory %p\n", (void *)memory);
	fflush(stdout);
	for (i = 3; i < argc; i++) {
		first = 0;
		count = pages;
		index = 0;
		sscanf(argv[i], "%31[^:]:%lu:%lu:%d", name, &first, &count, &index);
		if (act(name, first, count, index))
			die(argv[i]);
		printf("%s\n", argv[i]);
		fflush(stdout);
	}
	return 0;
}
