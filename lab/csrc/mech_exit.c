/* SPDX-License-Identifier: Apache-2.0 */
/* The accessor's own thread resolves: after EFAULT from KVM_RUN (or SIGBUS in a process), or after an exit for want of a memslot. */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static int waiters;

/* True: this thread has to fetch the granule. False: another one did, and it is there now (or the run is given up). */
bool claim_or_wait(uint64_t granule)
{
	unsigned char absent = ABSENT;

	if (atomic_compare_exchange_strong(&L.present[granule], &absent, COMING))
		return true;
	pthread_mutex_lock(&L.lock);
	waiters++;
	while (L.present[granule] != PRESENT && !L.abandon)
		pthread_cond_wait(&L.cond, &L.lock);
	waiters--;
	pthread_mutex_unlock(&L.lock);
	return false;
}

void placed(uint64_t granule, bool ok)
{
	L.present[granule] = ok ? PRESENT : ABSENT;
	pthread_mutex_lock(&L.lock);
	if (waiters)
		pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
}

static void setup_kvm_exit(struct lab *lab)
{
	lab->data = map_data(lab->data_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	if (!lab->data)
		die_errno("guest memory");
	track_present();
	lab->uffd[0] = uffd_open(UFFD_FEATURE_SIGBUS, "kvm-exit");
	lab->uffds = 1;
	lab->uffd_mode = "missing|sigbus";
	uffd_register(lab->uffd[0], lab->data, lab->data_bytes, UFFDIO_REGISTER_MODE_MISSING, "kvm-exit");
}

/* Places the content of a granule; 0, or -errno. */
typedef int place_fn(struct lab *lab, uint64_t granule, char *content);

/* What a vCPU's own thread does at its exit: fetch the granule and place it, or wait for another that does so. */
static bool serve_here(struct lab *lab, struct accessor *a, uint64_t page, place_fn *place, const char *mechanism)
{
	uint64_t t_exit = rdtsc(), granule = page * PAGE / lab->granule, t_fetched;
	struct fetcher *f = &a->fetcher;
	int result;

	if (!claim_or_wait(granule)) {
		service_row(f, page, a->tid, t_exit, t_exit, -EEXIST);
		return !lab->abandon;
	}
	if (!fetch_granule(f, granule))
		return false;
	t_fetched = rdtsc();
	result = place(lab, granule, f->buffer);
	placed(granule, result == 0);
	service_row(f, page, a->tid, t_exit, t_fetched, result);
	if (result)
		problem("%s: placing page %llu failed: %s", mechanism, (unsigned long long)page, strerror(-result));
	return result == 0;
}

static int copy_granule(struct lab *lab, uint64_t granule, char *content)
{
	struct uffdio_copy copy = {(uint64_t)(uintptr_t)lab->data + granule * lab->granule, (uint64_t)(uintptr_t)content,
				   lab->granule, UFFDIO_COPY_MODE_DONTWAKE, 0};

	return ioctl(lab->uffd[0], UFFDIO_COPY, &copy) ? -errno : 0;
}

static bool resolve_here(struct lab *lab, struct accessor *a, uint64_t page)
{
	return serve_here(lab, a, page, copy_granule, "kvm-exit");
}

/* Plain memory that the guest cannot reach until its granule has a memslot. */
static void setup_mmio_exit(struct lab *lab)
{
	lab->data = map_data(lab->data_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	if (!lab->data)
		die_errno("guest memory");
	track_present();
}

static void no_memslots(struct lab *lab)
{
	uint64_t slots = lab->data_bytes / lab->granule;

	if (slots + DATA_SLOT > lab->slot_limit)
		die(2, "mmio-exit: %llu granules need more memslots than KVM's %llu: use fewer pages or a larger --granule",
		    (unsigned long long)slots, (unsigned long long)lab->slot_limit);
}

static int add_slot(struct lab *lab, uint64_t granule, char *content)
{
	char *where = lab->data + granule * lab->granule;

	memcpy(where, content, lab->granule);
	return set_memslot(DATA_SLOT + (uint32_t)granule, 0, DATA_GPA + granule * lab->granule, lab->granule, where) ? -errno : 0;
}

static bool add_slot_here(struct lab *lab, struct accessor *a, uint64_t page)
{
	return serve_here(lab, a, page, add_slot, "mmio-exit");
}

const struct mechanism mech_kvm_exit = {
	.name = "kvm-exit", .kvm = true, .process = true, .own_handlers = true, .setup = setup_kvm_exit, .on_fault = resolve_here};
const struct mechanism mech_mmio_exit = {.name = "mmio-exit",
					 .kvm = true,
					 .own_handlers = true,
					 .setup = setup_mmio_exit,
					 .add_memory = no_memslots,
					 .on_mmio = add_slot_here};
