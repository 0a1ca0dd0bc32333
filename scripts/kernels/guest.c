// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * The smallest guest whose events can be counted by hand: one vCPU in flat 32-bit protected mode (no page
 * tables of its own, so every fault is a stage-2 fault) writes one word into each of PAGES pages and halts.
 *
 *   guest PAGES lazy     memory is plain anonymous memory: KVM resolves each fault alone
 *   guest PAGES uffd     memory is a userfaultfd MISSING region served by one thread with UFFDIO_COPY
 *   guest PAGES apf      the same with an interrupt controller in KVM and interrupts on: each fault is asynchronous (a
 *                        kernel worker waits for the page; this guest takes no notice, so KVM halts the vCPU meanwhile)
 *   guest PAGES ring     plain memory whose writes KVM logs in a dirty ring of the smallest size; when it is full KVM
 *                        exits, and it is harvested and reset
 *
 *   guest PAGES devices  plain memory, then DEVICE_WRITES writes to an address that no memory slot holds: each is handed to
 *                        userspace as KVM_EXIT_MMIO
 *   guest PAGES exit     memory whose faults fail (userfaultfd with SIGBUS): KVM_RUN returns EFAULT, this thread copies the
 *                        page and calls KVM_RUN again
 *
 * Expected, with hardware paging (VMX, SVM): kvm_page_fault in the data slot = PAGES; every kvm_exit has one
 * kvm_entry before it; with uffd PAGES messages and PAGES copies; with apf PAGES of each asynchronous event; with ring
 * PAGES pushed and harvested, and one more for each exit with a full ring. Prints one line of JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define CODE_GPA 0x1000UL
#define DATA_GPA 0x10000000UL
#define DEVICE_GPA 0xd0000000U
#define DEVICE_WRITES 23 /* prime: no multiple of anything else that is counted */

static int uffd = -1;
static uint64_t served;
static pid_t handler_tid;
static struct kvm_dirty_gfn *ring;
static uint32_t ring_entries, harvested, pushed_again, ring_exits, mmio_exits, efault_exits;

#define CHECK(what) do { if ((what) < 0) { perror(#what); exit(1); } } while (0)

static void *handler(void *unused)
{
	static char content[PAGE] __attribute__((aligned(4096)));
	(void)unused;
	handler_tid = (pid_t)syscall(SYS_gettid);
	for (;;) {
		struct uffd_msg msg;
		if (read(uffd, &msg, sizeof msg) != sizeof msg)
			return NULL;
		if (msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct uffdio_copy copy = {
			.dst = msg.arg.pagefault.address & ~(PAGE - 1), .src = (uintptr_t)content, .len = PAGE,
		};
		/* before the copy: the guest may be through and print before this thread runs again */
		__atomic_add_fetch(&served, 1, __ATOMIC_SEQ_CST);
		CHECK(ioctl(uffd, UFFDIO_COPY, &copy));
	}
}

static void make_userfaultfd(void *data, size_t bytes, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)data, .len = bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	CHECK(uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC));
	CHECK(ioctl(uffd, UFFDIO_API, &api));
	CHECK(ioctl(uffd, UFFDIO_REGISTER, &reg));
}

static void serve_by_userfaultfd(void *data, size_t bytes)
{
	pthread_t thread;

	make_userfaultfd(data, bytes, UFFD_FEATURE_THREAD_ID);
	if (pthread_create(&thread, NULL, handler, NULL)) {
		fprintf(stderr, "cannot start the handler\n");
		exit(1);
	}
}

/* The page that the guest is about to write, by its register: the kernel does not say which one failed. */
static void place(int vcpu, char *data)
{
	static char content[PAGE] __attribute__((aligned(4096)));
	struct kvm_regs regs;

	CHECK(ioctl(vcpu, KVM_GET_REGS, &regs));
	struct uffdio_copy copy = {
		.dst = (uintptr_t)data + (regs.rdi - DATA_GPA), .src = (uintptr_t)content, .len = PAGE,
	};
	CHECK(ioctl(uffd, UFFDIO_COPY, &copy));
}

/*
 * Takes all entries that KVM published and lets it have them back. In order each names the next page. The page that filled
 * the ring comes twice: KVM exits before the guest's instruction is done, and the reset protects the page again.
 */
static void harvest(int vm)
{
	uint32_t took = 0;

	for (;; took++) {
		struct kvm_dirty_gfn *entry = &ring[harvested % ring_entries];
		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		uint64_t next = harvested - pushed_again;
		if (!took && next && entry->offset == next - 1) {
			pushed_again++;
		} else if (entry->slot != 1 || entry->offset != next) {
			fprintf(stderr, "dirty ring: entry %u says slot %u, page %llu\n", harvested, entry->slot,
				(unsigned long long)entry->offset);
			exit(1);
		}
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		harvested++;
	}
	if (ioctl(vm, KVM_RESET_DIRTY_RINGS, 0) != (int)took) {
		fprintf(stderr, "KVM_RESET_DIRTY_RINGS did not take back the %u entries\n", took);
		exit(1);
	}
}

static void *memory(size_t bytes)
{
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(area, bytes, MADV_NOHUGEPAGE); /* one fault a page, whatever the host's THP setting */
	return area;
}

int main(int argc, char **argv)
{
	uint32_t pages = argc > 2 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
	const char *backing = argc > 2 ? argv[2] : "";
	int apf = !strcmp(backing, "apf"), dirty_ring = !strcmp(backing, "ring"), uffd_backed = apf || !strcmp(backing, "uffd");
	int devices = !strcmp(backing, "devices"), by_exit = !strcmp(backing, "exit");
	if (!pages || !(uffd_backed || dirty_ring || devices || by_exit || !strcmp(backing, "lazy"))) {
		fprintf(stderr, "usage: guest PAGES lazy|uffd|apf|ring|devices|exit\n");
		return 2;
	}
	unsigned char code[] = {
		0xbf, 0, 0, 0, 0,                   /*       mov edi, DATA_GPA */
		0xb9, 0, 0, 0, 0,                   /*       mov ecx, pages    */
		0x89, 0x0f,                         /* next: mov [edi], ecx    */
		0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /*       add edi, 4096     */
		0x49,                               /*       dec ecx           */
		0x75, 0xf5,                         /*       jnz next          */
		0xb9, 0, 0, 0, 0,                   /*       mov ecx, writes   */
		0xe3, 0x08,                         /*       jecxz out         */
		0xa3, 0, 0, 0, 0,                   /* more: mov [DEVICE], eax */
		0x49,                               /*       dec ecx           */
		0x75, 0xf8,                         /*       jnz more          */
		0xe6, 0x80,                         /*       out 0x80, al: an exit to userspace with and without an APIC */
	};
	uint32_t base = DATA_GPA, device = DEVICE_GPA, writes = devices ? DEVICE_WRITES : 0;
	memcpy(code + 1, &base, 4);
	memcpy(code + 6, &pages, 4);
	memcpy(code + 22, &writes, 4);
	memcpy(code + 29, &device, 4);

	int kvm, vm, vcpu;
	CHECK(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	CHECK(vm = ioctl(kvm, KVM_CREATE_VM, 0));
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL); /* needed by VMX only */
	if (apf)
		CHECK(ioctl(vm, KVM_CREATE_IRQCHIP));
	if (dirty_ring) {
		struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args[0] = PAGE }; /* before any vCPU */
		CHECK(ioctl(vm, KVM_ENABLE_CAP, &cap));
		ring_entries = PAGE / sizeof *ring;
	}
	char *text = memory(PAGE), *data = memory(pages * PAGE);
	memcpy(text, code, sizeof code);
	if (uffd_backed)
		serve_by_userfaultfd(data, pages * PAGE);
	if (by_exit)
		make_userfaultfd(data, pages * PAGE, UFFD_FEATURE_SIGBUS);
	struct kvm_userspace_memory_region slot = {
		.slot = 0, .guest_phys_addr = CODE_GPA, .memory_size = PAGE, .userspace_addr = (uintptr_t)text,
	};
	CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	slot = (struct kvm_userspace_memory_region){
		.slot = 1, .flags = dirty_ring ? KVM_MEM_LOG_DIRTY_PAGES : 0, .guest_phys_addr = DATA_GPA, .memory_size = pages * PAGE, .userspace_addr = (uintptr_t)data,
	};
	CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	CHECK(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0));
	int run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED) {
		perror("mmap of kvm_run");
		return 1;
	}
	if (dirty_ring) {
		ring = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
		if (ring == MAP_FAILED) {
			perror("mmap of the dirty ring");
			return 1;
		}
	}
	struct kvm_sregs sregs;
	CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	struct kvm_segment flat = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
	sregs.cs = flat;
	flat.selector = 16;
	flat.type = 3;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
	sregs.cr0 |= 1;
	CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	struct kvm_regs regs = { .rip = CODE_GPA, .rflags = apf ? 0x202 : 2 };
	CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
	unsigned runs = 0;
	for (;;) {
		int failed = ioctl(vcpu, KVM_RUN, 0) < 0;
		runs++;
		if (failed && errno == EFAULT && by_exit) {
			efault_exits++;
			place(vcpu, data);
			continue;
		}
		if (failed && errno != EINTR) {
			perror("KVM_RUN");
			return 1;
		}
		if (failed || run->exit_reason == KVM_EXIT_INTR)
			continue;
		if (devices && run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == DEVICE_GPA) {
			mmio_exits++;
			continue;
		}
		if (run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			ring_exits++;
			harvest(vm);
			continue;
		}
		break;
	}
	if (dirty_ring)
		harvest(vm);
	for (uint32_t page = 0; page < pages; page++)
		if (*(uint32_t *)(data + page * PAGE) != pages - page) {
			fprintf(stderr, "page %u holds the wrong word: the guest did not run\n", page);
			return 1;
		}
	printf("{\"pages\": %u, \"backing\": \"%s\", \"served\": %lu, \"exit_reason\": %u, \"kvm_runs\": %u, "
	       "\"vcpu_tid\": %d, \"handler_tid\": %d, \"data_gpa\": %lu, \"data_hva\": %lu, \"harvested\": %u, "
	       "\"pushed_again\": %u, \"ring_exits\": %u, \"mmio_exits\": %u, \"efault_exits\": %u}\n",
	       pages, backing, (unsigned long)__atomic_load_n(&served, __ATOMIC_SEQ_CST), run->exit_reason, runs,
	       (int)syscall(SYS_gettid), (int)handler_tid, DATA_GPA, (unsigned long)(uintptr_t)data, harvested,
	       pushed_again, ring_exits, mmio_exits, efault_exits);
	return run->exit_reason == KVM_EXIT_IO ? 0 : 1;
}
