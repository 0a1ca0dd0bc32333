/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real KVM guest without firmware: long mode, CPL 3, identity page tables of 2 MiB leaves with accessed and dirty
 * already set. One piece of code interprets any access list. Control memory (code, tables, lists, logs) is one
 * populated memslot which the guest touches once before the run, so that only the data region faults.
 *
 * Data in pages of 4 KiB has leaves of 4 KiB, dirty but not yet accessed: shadow paging maps with a fault's page those
 * of the seven next to it that the host has and the guest has accessed, so that each page's first touch is a fault.
 */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CTL_GPA 0x100000ull
#define CODE_GPA CTL_GPA
#define PML4_GPA (CTL_GPA + 0x1000)
#define PDPT_GPA (CTL_GPA + 0x2000)
#define PD_GPA (CTL_GPA + 0x3000)
#define EXIT_GPA 0xc0000000ull /* no memslot: an access ends the guest's turn */
#define CTL_LIMIT 0x80000000ull
#define PTE_FLAGS 0x67ull /* present, writable, user, accessed, dirty */
#define PTE_UNTOUCHED 0x47ull /* the same without accessed */
#define HUGE_BYTES (2ull << 20)
#define PTE_LARGE 0x80ull

/*
 * rsi list, rdi log, rcx accesses, r8 EXIT_GPA, r15 control words; for the first touch: r12/r13 list bytes, log bytes,
 * r10/r11 data to touch, bytes (0: none). In the loop: r10 address, r11 op, rbx TSC when the last access ended.
 * The exit is a store, so KVM gives what is stored: the guest's TSC the first time, 0 at the end.
 */
__asm__(".pushsection .rodata\n"
	".intel_syntax noprefix\n"
	".global guest_code, guest_code_end\n"
	"guest_code:\n"
	"	mov rax, rsi\n"
	"	lea rdx, [rsi + r12]\n"
	"1:	cmp rax, rdx\n"
	"	jae 2f\n"
	"	mov rbx, [rax]\n"
	"	add rax, 4096\n"
	"	jmp 1b\n"
	"2:	mov rax, rdi\n"
	"	lea rdx, [rdi + r13]\n"
	"3:	cmp rax, rdx\n"
	"	jae 4f\n"
	"	mov qword ptr [rax], 0\n"
	"	add rax, 4096\n"
	"	jmp 3b\n"
	"4:	add r11, r10\n"
	"5:	cmp r10, r11\n"
	"	jae 6f\n"
	"	lock or qword ptr [r10 + 8], 0\n"
	"	add r10, 4096\n"
	"	jmp 5b\n"
	"6:	mov qword ptr [r15 + 8], rcx\n"
	"	lfence\n"
	"	rdtsc\n"
	"	shl rdx, 32\n"
	"	or rax, rdx\n"
	"	mov [r8], rax\n" /* exit: ready */
	"	mov r9, [r15]\n"
	"	mov rbx, r9\n"
	"7:	test rcx, rcx\n"
	"	jz 14f\n"
	"	mov r10, [rsi]\n"
	"	mov r12, [rsi + 8]\n"
	"	mov r11, [rsi + 16]\n"
	"	mov rax, rbx\n"
	"	test r11d, 4\n"
	"	cmovnz rax, r9\n"
	"	add r12, rax\n"
	"8:	rdtsc\n"
	"	shl rdx, 32\n"
	"	or rax, rdx\n"
	"	cmp rax, r12\n"
	"	jae 9f\n"
	"	pause\n"
	"	jmp 8b\n"
	"9:	mov r13, rax\n"
	"	mov r14, r11\n"
	"	and r14d, 3\n"
	"	cmp r14d, 1\n"
	"	je 10f\n"
	"	ja 11f\n"
	"	mov rbp, [r10]\n"
	"	jmp 12f\n"
	"10:	mov rbp, r11\n"
	"	mov [r10 + 8], rbp\n"
	"	jmp 12f\n"
	"11:	mov ebp, 1\n"
	"	lock xadd [r10 + 16], rbp\n"
	"12:	lfence\n"
	"	rdtsc\n"
	"	shl rdx, 32\n"
	"	or rax, rdx\n"
	"	mov [rdi], r13\n"
	"	mov [rdi + 16], rbp\n"
	"	mov [rdi + 8], rax\n"
	"	mov rbx, rax\n"
	"	add rsi, 24\n"
	"	add rdi, 24\n"
	"	dec rcx\n"
	"	mov [r15 + 8], rcx\n"
	"	jmp 7b\n"
	"14:	mov [r8], rcx\n" /* exit: done */
	"	jmp 14b\n"
	"guest_code_end:\n"
	".att_syntax\n"
	".popsection\n");
extern const char guest_code[], guest_code_end[];

static char *ctl;
static int run_bytes;

void open_kvm(void)
{
	if (L.vm_fd > 0)
		return;
	L.kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (L.kvm_fd < 0 && (errno == EACCES || errno == EPERM))
		die(EXIT_NO_PERMISSION, "no permission for /dev/kvm: run as root, or join the group kvm");
	if (L.kvm_fd < 0)
		die(EXIT_MISSING_FEATURE, "no KVM here (/dev/kvm: %s): use --target process", strerror(errno));
	L.vm_fd = ioctl(L.kvm_fd, KVM_CREATE_VM, 0);
	if (L.vm_fd < 0)
		die(EXIT_MISSING_FEATURE, "KVM cannot make a VM here (%s): use --target process", strerror(errno));
	L.slot_limit = (uint64_t)ioctl(L.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
}

int set_memslot(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes, void *hva)
{
	struct kvm_userspace_memory_region region = {slot, flags, gpa, bytes, (uint64_t)(uintptr_t)hva};

	return ioctl(L.vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static void map_gigabyte(uint64_t gigabyte)
{
	uint64_t *pdpt = (uint64_t *)(ctl + PDPT_GPA - CTL_GPA), *pd = (uint64_t *)(ctl + PD_GPA - CTL_GPA + gigabyte * PAGE);

	pdpt[gigabyte] = (PD_GPA + gigabyte * PAGE) | PTE_FLAGS;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = (gigabyte << 30) | i << 21 | PTE_FLAGS | PTE_LARGE;
}

static bool has_small_leaves(void)
{
	return L.granule < HUGE_BYTES;
}

/* Tables of 4 KiB leaves for the data region, from guest address `at` on. */
static void map_data_small(uint64_t at)
{
	uint64_t *pd = (uint64_t *)(ctl + PD_GPA - CTL_GPA), *pt = (uint64_t *)(ctl + at - CTL_GPA);

	for (uint64_t gpa = DATA_GPA; gpa < DATA_GPA + L.data_bytes; gpa += HUGE_BYTES, at += PAGE, pt += 512) {
		pd[gpa / HUGE_BYTES] = at | PTE_FLAGS;
		for (uint64_t i = 0; i < 512; i++)
			pt[i] = (gpa + i * PAGE) | PTE_UNTOUCHED;
	}
}

static void make_vcpu(struct accessor *a)
{
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1};
	struct kvm_device_attr offset = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));
	struct kvm_regs regs = {.rflags = 2, .rip = CODE_GPA};
	struct kvm_sregs sregs;
	uint64_t zero = 0, list_bytes = (a->count * sizeof(struct access) + PAGE - 1) & ~(PAGE - 1);

	a->vcpu_fd = ioctl(L.vm_fd, KVM_CREATE_VCPU, a->index);
	if (a->vcpu_fd < 0)
		die_errno("KVM_CREATE_VCPU");
	a->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->vcpu_fd, 0);
	if (a->run == MAP_FAILED)
		die_errno("mmap of the vCPU");
	if (ioctl(L.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & KVM_SYNC_X86_REGS)
		a->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	cpuid->nent = 256;
	if (ioctl(L.kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(a->vcpu_fd, KVM_SET_CPUID2, cpuid))
		die_errno("KVM_SET_CPUID2");
	free(cpuid);
	offset.addr = (uint64_t)(uintptr_t)&zero;
	ioctl(a->vcpu_fd, KVM_SET_DEVICE_ATTR, &offset); /* guest TSC = ours where it can be had; measured either way */
	if (ioctl(a->vcpu_fd, KVM_GET_SREGS, &sregs))
		die_errno("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x80050033;
	sregs.cr3 = PML4_GPA;
	sregs.cr4 = 0x220;
	sregs.efer = 0x500;
	if (ioctl(a->vcpu_fd, KVM_SET_SREGS, &sregs))
		die_errno("KVM_SET_SREGS");
	regs.rsi = a->list_gpa;
	regs.rdi = a->log_gpa;
	regs.rcx = a->count;
	regs.r8 = EXIT_GPA;
	regs.r15 = a->control_gpa;
	regs.r12 = regs.r13 = list_bytes;
	regs.r10 = DATA_GPA;
	regs.r11 = L.prewarm && a->index == 0 ? L.data_bytes : 0;
	if (ioctl(a->vcpu_fd, KVM_SET_REGS, &regs))
		die_errno("KVM_SET_REGS");
}

/* VM, control memory, page tables, vCPUs. Fills in where each accessor's list, log and control words are. */
void guest_setup(void)
{
	uint64_t gigabytes = (DATA_GPA + L.data_bytes + (1ull << 30) - 1) >> 30, at = PD_GPA + gigabytes * PAGE, tables = at;

	if (gigabytes > 512)
		die(2, "the guest's page tables reach 508 GiB of data");
	if (has_small_leaves())
		at += (L.data_bytes + HUGE_BYTES - 1) / HUGE_BYTES * PAGE;
	open_kvm();
	run_bytes = ioctl(L.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	ioctl(L.vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000); /* VMX wants it; elsewhere it is unknown, and not needed */
	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];
		uint64_t bytes = (a->count * sizeof(struct access) + PAGE - 1) & ~(PAGE - 1);

		a->control_gpa = at;
		a->list_gpa = at + PAGE;
		a->log_gpa = a->list_gpa + bytes;
		at = a->log_gpa + bytes;
	}
	if (at > CTL_LIMIT)
		die(2, "lists of %llu MiB do not fit below 2 GiB: use fewer accesses", (unsigned long long)(at >> 20));
	ctl = map_populated(at - CTL_GPA);
	memcpy(ctl, guest_code, (size_t)(guest_code_end - guest_code));
	*(uint64_t *)(ctl + PML4_GPA - CTL_GPA) = PDPT_GPA | PTE_FLAGS;
	for (uint64_t g = 0; g < gigabytes; g++)
		map_gigabyte(g);
	if (has_small_leaves())
		map_data_small(tables);
	if (set_memslot(0, 0, CTL_GPA, at - CTL_GPA, ctl))
		die_errno("memslot 0");
	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];

		a->control = (volatile uint64_t *)(ctl + a->control_gpa - CTL_GPA);
		a->list = (struct access *)(ctl + a->list_gpa - CTL_GPA);
		a->log = (struct result *)(ctl + a->log_gpa - CTL_GPA);
		make_vcpu(a);
	}
}

/*
 * Where the guest was when KVM_RUN gave EFAULT: KVM says, or its registers do. Those come with the exit where that can
 * be had: KVM_GET_REGS takes several us here, which no VMM pays that is told the address.
 */
static uint64_t fault_gpa(struct accessor *a)
{
	struct kvm_regs regs;

	if (a->run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		uint64_t gpa;

		memcpy(&gpa, (char *)a->run + offsetof(struct kvm_run, hw) + 8, sizeof(gpa)); /* memory_fault.gpa */
		if (gpa >= DATA_GPA && gpa < DATA_GPA + L.data_bytes)
			return gpa;
	}
	if (a->run->kvm_valid_regs & KVM_SYNC_X86_REGS)
		return a->run->s.regs.regs.r10;
	if (ioctl(a->vcpu_fd, KVM_GET_REGS, &regs))
		return 0;
	return regs.r10;
}

/* Do for the guest what it wanted from memory that had no memslot when it tried. */
static void complete_mmio(struct kvm_run *run)
{
	char *p = L.data + (run->mmio.phys_addr - DATA_GPA);

	if (run->mmio.is_write)
		memcpy(p, run->mmio.data, run->mmio.len);
	else
		memcpy(run->mmio.data, p, run->mmio.len);
}

/* An exit that is not ours to serve: say so once. */
static bool lost(struct accessor *a, const char *why)
{
	struct kvm_regs regs = {0};

	ioctl(a->vcpu_fd, KVM_GET_REGS, &regs);
	problem("vcpu %d: %s (exit reason %u, rip %#llx, address %#llx)", a->index, why, a->run->exit_reason,
		(unsigned long long)regs.rip, (unsigned long long)regs.r10);
	stop_run();
	return false;
}

static bool serve_data_mmio(struct accessor *a)
{
	uint64_t page = (a->run->mmio.phys_addr - DATA_GPA) / PAGE;

	a->mmio_exits++;
	if (L.destroyed)
		wait_while_destroyed(a);
	if (L.abandon)
		return false;
	if (L.mechanism->on_mmio && !L.mechanism->on_mmio(&L, a, page))
		return lost(a, "access without memslot was not resolved");
	complete_mmio(a->run);
	return true;
}

/* Run until the guest stores to EXIT_GPA (true; *stored is what it stored) or the run is given up (false). */
static bool run_until_exit(struct accessor *a, uint64_t *stored)
{
	struct kvm_run *run = a->run;

	for (;;) {
		if (L.abandon)
			return false;
		if (L.paused)
			park_while_paused(a);
		if (ioctl(a->vcpu_fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN) {
				run->immediate_exit = 0;
				continue;
			}
			if (errno == EFAULT) {
				uint64_t gpa = fault_gpa(a);

				a->efault_exits++;
				if (gpa < DATA_GPA || gpa >= DATA_GPA + L.data_bytes || !L.mechanism->on_fault ||
				    !L.mechanism->on_fault(&L, a, (gpa - DATA_GPA) / PAGE))
					return L.abandon ? false : lost(a, "KVM_RUN: EFAULT that nobody resolves");
				continue;
			}
			return lost(a, strerror(errno));
		}
		if (run->exit_reason == KVM_EXIT_INTR)
			continue;
		if (run->exit_reason != KVM_EXIT_MMIO)
			return lost(a, "unexpected exit");
		if (run->mmio.phys_addr == EXIT_GPA) {
			memcpy(stored, run->mmio.data, 8);
			return true;
		}
		if (run->mmio.phys_addr < DATA_GPA || run->mmio.phys_addr >= DATA_GPA + L.data_bytes)
			return lost(a, "access outside all memory");
		if (!serve_data_mmio(a))
			return false;
	}
}

/* Body of a vCPU thread: touch control memory, wait for the start, walk the list. */
void guest_accessor(struct accessor *a)
{
	uint64_t stored;

	a->warm_before = rdtsc();
	if (!run_until_exit(a, &a->warm_guest))
		return;
	a->warm_after = rdtsc();
	atomic_fetch_add(&L.ready, 1);
	wait_go();
	if (run_until_exit(a, &stored))
		a->done = true;
}
