/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel alone: lazy anonymous memory, guest_memfd, and dirty logging over populated memory. */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void setup_anonymous(struct lab *lab)
{
	lab->data = map_data(lab->data_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	if (!lab->data)
		die_errno("guest memory");
	lab->zero_filled = !lab->prewarm;
	if (lab->prewarm) /* memory that was there long before: with its content */
		fill_pages(lab->data, 0, lab->data_bytes / PAGE);
	for (int i = 0; i < lab->window_count; i++)
		lab->freezable |= lab->windows[i].kind == WINDOW_FREEZE;
	if (!lab->freezable)
		return;
	/* memory that is all there needs no marks where there is none */
	lab->uffd[0] = uffd_open(UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					 (lab->prewarm ? 0 : UFFD_FEATURE_WP_UNPOPULATED),
				 "freeze");
	lab->uffds = 1;
	lab->uffd_mode = "wp";
	uffd_register(lab->uffd[0], lab->data, lab->data_bytes, UFFDIO_REGISTER_MODE_WP, "freeze");
}

/* Reads the messages of writers that met a freeze; the thaw wakes them. */
static void drain_messages(struct lab *lab, int index, struct fetcher *f)
{
	(void)index;
	while (!lab->stop && lab->freezable) {
		struct uffd_msg msg;
		ssize_t n = read(lab->uffd[0], &msg, sizeof(msg));

		if (n == sizeof(msg))
			service_row(f, (msg.arg.pagefault.address - (uint64_t)(uintptr_t)lab->data) / PAGE,
				    (pid_t)msg.arg.pagefault.feat.ptid, rdtsc(), rdtsc(), WAITS_FOR_THAW);
		else if (n >= 0 || (errno != EINTR && errno != EAGAIN))
			return;
	}
}

static void setup_guest_memfd(struct lab *lab)
{
	struct lab_create_guest_memfd create = {.size = lab->data_bytes,
						.flags = LAB_GUEST_MEMFD_MMAP | LAB_GUEST_MEMFD_INIT_SHARED};

	open_kvm();
	if (ioctl(lab->kvm_fd, KVM_CHECK_EXTENSION, LAB_CAP_GUEST_MEMFD) <= 0)
		die(EXIT_MISSING_FEATURE, "guest-memfd: this kernel has no guest_memfd (KVM_CAP_GUEST_MEMFD)");
	lab->gmem_fd = ioctl(lab->vm_fd, LAB_CREATE_GUEST_MEMFD, &create);
	if (lab->gmem_fd < 0)
		die(EXIT_MISSING_FEATURE, "guest-memfd: this kernel cannot make one with MMAP|INIT_SHARED: %s", strerror(errno));
	lab->data = map_data(lab->data_bytes, MAP_SHARED, lab->gmem_fd);
	if (!lab->data)
		die(EXIT_MISSING_FEATURE, "guest-memfd: mmap: %s", strerror(errno));
	lab->zero_filled = true;
}

static void add_guest_memfd(struct lab *lab)
{
	struct lab_region2 region = {.slot = DATA_SLOT,
				     .flags = LAB_MEM_GUEST_MEMFD,
				     .guest_phys_addr = DATA_GPA,
				     .memory_size = lab->data_bytes,
				     .userspace_addr = (uint64_t)(uintptr_t)lab->data,
				     .guest_memfd = (uint32_t)lab->gmem_fd};

	if (ioctl(lab->vm_fd, LAB_SET_USER_MEMORY_REGION2, &region))
		die(EXIT_MISSING_FEATURE, "guest-memfd: memslot: %s", strerror(errno));
}

static void setup_dirty_log(struct lab *lab)
{
	lab->prewarm = true;
	setup_anonymous(lab);
}

/* Turns logging on at the start, then fetches the bitmap every interval: each fetch makes all written pages fault again. */
static void log_dirty(struct lab *lab, int index, struct fetcher *f)
{
	uint64_t words = (lab->data_bytes / PAGE + 63) / 64;
	struct kvm_dirty_log get = {.slot = DATA_SLOT};
	int64_t from, next;
	uint64_t *bitmap;

	(void)f;
	if (index)
		return;
	get.dirty_bitmap = bitmap = map_populated(words * 8);
	from = now_ns();
	if (set_memslot(DATA_SLOT, KVM_MEM_LOG_DIRTY_PAGES, DATA_GPA, lab->data_bytes, lab->data)) {
		problem("dirty-log: KVM_MEM_LOG_DIRTY_PAGES: %s", strerror(errno));
		stop_run();
		return;
	}
	lab->data_slot_flags = KVM_MEM_LOG_DIRTY_PAGES; /* also when a window adds the slot again */
	lab->dirty_enable_ns = (uint64_t)(now_ns() - from);
	for (next = now_ns(); !lab->stop;) {
		next += (int64_t)lab->dirty_interval_ns;
		sleep_until_ns(next);
		if (lab->stop)
			break;
		from = now_ns();
		if (ioctl(lab->vm_fd, KVM_GET_DIRTY_LOG, &get)) {
			if (errno == ENOENT && lab->destroyed)
				continue; /* no slot, no log */
			problem("dirty-log: KVM_GET_DIRTY_LOG: %s", strerror(errno));
			break;
		}
		lab->dirty_get_ns += (uint64_t)(now_ns() - from);
		lab->dirty_rounds++;
		for (uint64_t i = 0; i < words; i++)
			lab->dirty_pages += (uint64_t)__builtin_popcountll(bitmap[i]);
	}
}

const struct mechanism mech_host_lazy = {
	.name = "host-lazy", .kvm = true, .process = true, .setup = setup_anonymous, .handler = drain_messages};
const struct mechanism mech_guest_memfd = {.name = "guest-memfd",
					   .kvm = true,
					   .process = true,
					   .own_handlers = true,
					   .setup = setup_guest_memfd,
					   .add_memory = add_guest_memfd};
const struct mechanism mech_dirty_log = {
	.name = "dirty-log", .kvm = true, .setup = setup_dirty_log, .handler = log_dirty};
