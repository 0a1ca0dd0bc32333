/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that bring a recorded set of pages in its order: all of it before the accessors start, or beside them. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t *set, set_count;
static atomic_ullong next;
static atomic_bool may_go;
static pthread_t thread[MAX_HANDLERS];

static void load_set(void)
{
	int fd = open(L.set_path, O_RDONLY | O_CLOEXEC);
	off_t bytes = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

	if (bytes < 0)
		die(2, "cannot read the set of pages at %s", L.set_path);
	set = map_populated((size_t)bytes + 8);
	set_count = (uint64_t)bytes / 8;
	if (pread(fd, set, (size_t)bytes, 0) != bytes)
		die_errno(L.set_path);
	close(fd);
	for (uint64_t i = 0; i < set_count; i++)
		if (set[i] >= L.pages)
			die(2, "the set refers to page %llu of %llu", (unsigned long long)set[i], (unsigned long long)L.pages);
}

static void wait_may_go(void)
{
	pthread_mutex_lock(&L.lock);
	while (!may_go && !L.go && !L.abandon && !L.stop)
		pthread_cond_wait(&L.cond, &L.lock);
	pthread_mutex_unlock(&L.lock);
}

static void *body(void *argument)
{
	int index = (int)(intptr_t)argument;
	struct fetcher *f = &L.prefetch_fetcher[index];
	uint64_t i;

	f->tid = my_tid();
	name_thread("prefetch-%d", index);
	pin_to(L.accessors + L.handlers + index);
	atomic_fetch_add(&L.ready, 1);
	wait_may_go();
	if (L.prefetch == PREFETCH_BESIDE)
		sleep_until_ns(L.base_ns);
	while (!L.stop && (i = atomic_fetch_add(&next, 1)) < set_count)
		if (!L.mechanism->prefetch(&L, f, set[i]))
			break;
	pthread_mutex_lock(&L.lock);
	L.prefetch_ns = now_ns(); /* the last one's stays */
	pthread_mutex_unlock(&L.lock);
	return NULL;
}

void prefetch_start(void)
{
	if (!L.mechanism->prefetch)
		die(2, "%s has no prefetch", L.mechanism->name);
	load_set();
	for (int i = 0; i < L.prefetchers; i++) {
		fetcher_open(&L.prefetch_fetcher[i], 2 * MAX_HANDLERS + i);
		if (pthread_create(&thread[i], NULL, body, (void *)(intptr_t)i))
			die_errno("pthread_create");
	}
}

void prefetch_join(void)
{
	if (!L.prefetch_from_ns)
		L.prefetch_from_ns = L.base_ns;
	for (int i = 0; i < L.prefetchers; i++)
		join_kicking(thread[i]);
}

void prefetch_before(void)
{
	pthread_mutex_lock(&L.lock);
	L.prefetch_from_ns = now_ns();
	may_go = true;
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
	prefetch_join();
}
