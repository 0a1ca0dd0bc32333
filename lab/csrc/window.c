/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows while the accessors run: pause (all kicked out), freeze (write-protected), memslot-destroy (slot deleted).
 * In each, memory is compared between begin and end: nothing may have been written.
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

static char *snapshot;
static uint8_t *was_present;
static uint64_t *pagemap;
static int pagemap_fd;

const char *window_name(enum window_kind kind)
{
	static const char *const names[] = {"pause", "freeze", "memslot-destroy", "watch"};

	return names[kind];
}

void windows_setup(void)
{
	uint64_t pages = L.data_bytes / PAGE;

	if (!L.window_count)
		return;
	for (int i = 0; i < L.window_count; i++) {
		if (L.windows[i].kind == WINDOW_FREEZE && !L.freezable)
			die(2, "%s memory cannot be write-protected by userfaultfd: choose another mechanism for a freeze", L.mechanism->name);
		if (L.windows[i].kind == WINDOW_DESTROY && (L.process || L.mechanism->add_memory))
			die(2, "memslot-destroy needs a KVM guest whose memory is one plain memslot");
	}
	snapshot = map_populated(L.data_bytes);
	was_present = map_populated(pages);
	pagemap = map_populated(pages * 8);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		die_errno("/proc/self/pagemap");
}

/* Which pages of the data mapping are there now; a look that never faults. */
static void read_presence(void)
{
	uint64_t pages = L.data_bytes / PAGE;
	ssize_t want = (ssize_t)(pages * 8);

	if (pread(pagemap_fd, pagemap, (size_t)want, (off_t)((uint64_t)(uintptr_t)L.data / PAGE * 8)) != want)
		memset(pagemap, 0, (size_t)want);
}

static void take_snapshot(void)
{
	read_presence();
	for (uint64_t p = 0; p < L.data_bytes / PAGE; p++) {
		was_present[p] = pagemap[p] >> 63;
		if (was_present[p])
			memcpy(snapshot + p * PAGE, L.data + p * PAGE, PAGE);
	}
}

/* Pages that came inside the window must hold what was fetched; all others what they held. */
static void compare_snapshot(struct window *w)
{
	static const char zeros[PAGE];
	char fresh[PAGE];

	read_presence();
	for (uint64_t p = 0; p < L.data_bytes / PAGE; p++) {
		const char *expected = was_present[p] ? snapshot + p * PAGE : zeros;

		if (!(pagemap[p] >> 63))
			continue;
		if (!was_present[p] && !L.zero_filled) {
			fill_pages(fresh, p, 1);
			expected = fresh;
		}
		w->pages_checked++;
		w->pages_changed += memcmp(L.data + p * PAGE, expected, PAGE) != 0;
	}
}

/* Called by an accessor that was kicked: say so, stay out until the window ends. */
void park_while_paused(struct accessor *a)
{
	uint64_t from = rdtsc();

	pthread_mutex_lock(&L.lock);
	a->kicks++;
	a->parked = true;
	pthread_cond_broadcast(&L.cond);
	while (L.paused && !L.abandon)
		pthread_cond_wait(&L.cond, &L.lock);
	a->parked = false;
	pthread_mutex_unlock(&L.lock);
	a->parked_ticks += rdtsc() - from;
}

/* Called by a vCPU that met the deleted slot. */
void wait_while_destroyed(struct accessor *a)
{
	uint64_t from = rdtsc();

	pthread_mutex_lock(&L.lock);
	while (L.destroyed && !L.abandon)
		pthread_cond_wait(&L.cond, &L.lock);
	pthread_mutex_unlock(&L.lock);
	if (!a->wait_first_tsc)
		a->wait_first_tsc = from;
	a->wait_last_tsc = from;
}

static void reopen(atomic_int *flag)
{
	pthread_mutex_lock(&L.lock);
	*flag = 0;
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
}

static bool all_parked(void)
{
	for (int i = 0; i < L.accessors; i++)
		if (!L.accessor[i].parked && !L.accessor[i].done)
			return false;
	return true;
}

static void begin_pause(void)
{
	L.paused = 1;
	pthread_mutex_lock(&L.lock);
	while (!all_parked() && !L.abandon) {
		struct timespec t;

		for (int i = 0; i < L.accessors; i++)
			if (!L.accessor[i].parked && !L.accessor[i].done)
				kick_thread(L.accessor[i].thread);
		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 2000000; /* one that waits for its page uninterruptibly comes out when that is there: ask again */
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		pthread_cond_timedwait(&L.cond, &L.lock, &t);
	}
	pthread_mutex_unlock(&L.lock);
}

static void protect(bool on)
{
	for (int i = 0; i < L.uffds; i++) {
		uint64_t first = L.uffds > 1 ? (uint64_t)i * L.uffd_share_pages * PAGE : 0;
		uint64_t end = L.uffds > 1 && i < L.uffds - 1 ? first + L.uffd_share_pages * PAGE : L.data_bytes;
		struct uffdio_writeprotect wp = {.range = {(uint64_t)(uintptr_t)L.data + first, end - first},
						 .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
		int result;

		if (first >= L.data_bytes || first >= end)
			continue;
		do
			result = ioctl(L.uffd[i], UFFDIO_WRITEPROTECT, &wp);
		while (result && errno == EAGAIN);
		if (result)
			problem("freeze: UFFDIO_WRITEPROTECT: %s", strerror(errno));
	}
}

static void begin_freeze(void)
{
	pthread_rwlock_wrlock(&L.placing);
	L.frozen = true;
	pthread_rwlock_unlock(&L.placing);
	protect(true);
}

static void end_freeze(void)
{
	pthread_rwlock_wrlock(&L.placing);
	L.frozen = false;
	pthread_rwlock_unlock(&L.placing);
	protect(false);
}

static void begin_destroy(void)
{
	L.destroyed = 1;
	if (set_memslot(DATA_SLOT, 0, DATA_GPA, 0, NULL))
		problem("memslot-destroy: delete: %s", strerror(errno));
}

static void end_destroy(void)
{
	if (set_memslot(DATA_SLOT, L.data_slot_flags, DATA_GPA, L.data_bytes, L.data)) {
		problem("memslot-destroy: add again: %s", strerror(errno));
		stop_run();
	}
	reopen(&L.destroyed);
}

static void run_window(struct window *w)
{
	/*
	 * A slot is gone when SRCU's work in a kworker at nice 0 has run: on the core of a vCPU at nice -20 that would take
	 * up to tens of ms, in which the vCPUs feel nothing.
	 */
	bool needs_kworker = w->kind == WINDOW_DESTROY && L.nice;

	w->ran = true;
	if (needs_kworker)
		set_group_nice(0);
	w->begin_from_ns = now_ns();
	switch (w->kind) {
	case WINDOW_PAUSE:
		begin_pause();
		break;
	case WINDOW_FREEZE:
		begin_freeze();
		break;
	case WINDOW_DESTROY:
		begin_destroy();
		break;
	case WINDOW_WATCH:
		break;
	}
	w->begin_ns = now_ns();
	if (needs_kworker)
		set_group_nice(L.nice);
	take_snapshot();
	sleep_until_ns(w->begin_ns + (int64_t)w->length_ns);
	compare_snapshot(w);
	w->end_from_ns = now_ns();
	switch (w->kind) {
	case WINDOW_PAUSE:
		reopen(&L.paused);
		break;
	case WINDOW_FREEZE:
		end_freeze();
		break;
	case WINDOW_DESTROY:
		end_destroy();
		break;
	case WINDOW_WATCH:
		break;
	}
	w->end_ns = now_ns();
}

void *windows_thread(void *unused)
{
	name_thread("windows", 0);
	run_at_once(); /* vCPUs that spin on every core leave it none: what it notes would be longer than what they feel */
	L.window_tid = my_tid();
	atomic_fetch_add(&L.ready, 1);
	wait_go();
	for (int i = 0; i < L.window_count && !L.stop; i++) {
		sleep_until_ns(L.base_ns + (int64_t)L.windows[i].start_ns);
		if (!L.stop)
			run_window(&L.windows[i]);
	}
	return unused;
}
