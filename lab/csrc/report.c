/* SPDX-License-Identifier: Apache-2.0 */
/* What Python reads: JSON lines on stdout, logs and a look at memory in files. */
#define _GNU_SOURCE
#include "lab.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct clock_pair pairs[CLOCK_PAIRS];
int pair_count;

void print_ready(void)
{
	printf("{\"pid\": %d, \"data_hva\": %llu, \"data_bytes\": %llu, \"data_gpa\": %llu, \"uffd_mode\": \"%s\", "
	       "\"ticks_per_ns\": %.9f, \"slot_limit\": %llu, \"storage_large_ns\": %llu, \"storage_small_ns\": %llu, \"threads\": [{\"tid\": %d, \"role\": \"vmm\", \"index\": 0}",
	       getpid(), (unsigned long long)(uintptr_t)L.data, (unsigned long long)L.data_bytes,
	       L.process ? 0ull : DATA_GPA, L.uffd_mode ? L.uffd_mode : "", L.ticks_per_ns, (unsigned long long)L.slot_limit,
	       (unsigned long long)L.storage_large_ns, (unsigned long long)L.storage_small_ns, getpid());
	for (int i = 0; i < L.accessors; i++)
		printf(", {\"tid\": %d, \"role\": \"%s\", \"index\": %d}", L.accessor[i].tid, L.process ? "vmm" : "vcpu", i);
	for (int i = 0; i < L.handlers; i++)
		printf(", {\"tid\": %d, \"role\": \"handler\", \"index\": %d}", L.handler_fetcher[i].tid, i);
	for (int i = 0; L.prefetch && i < L.prefetchers; i++)
		printf(", {\"tid\": %d, \"role\": \"handler\", \"index\": %d}", L.prefetch_fetcher[i].tid, L.handlers + i);
	if (L.window_tid)
		printf(", {\"tid\": %d, \"role\": \"vmm\", \"index\": -1}", L.window_tid);
	printf("]}\n");
	fflush(stdout);
}

/* Which pages are there; for guest_memfd, which KVM maps without our page tables, those that its file holds. */
static void look_at_pages(uint64_t *rows, uint64_t pages)
{
	uint64_t *pagemap = map_populated(pages * 8);
	unsigned char *cached = map_populated(pages);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || pread(fd, pagemap, pages * 8, (off_t)((uint64_t)(uintptr_t)L.data / PAGE * 8)) != (ssize_t)(pages * 8))
		die_errno("/proc/self/pagemap");
	if (L.gmem_fd > 0 && mincore(L.data, L.data_bytes, cached))
		die_errno("mincore of guest_memfd");
	for (uint64_t p = 0; p < pages; p++)
		rows[p * 5] = pagemap[p] >> 63 | (cached[p] & 1);
	close(fd);
}

/* Per page: there or not, the three words that matter, and how many others are not as they were fetched. */
void write_pages(void)
{
	uint64_t pages = L.data_bytes / PAGE, *rows = map_populated(pages * 40);

	look_at_pages(rows, pages);
	for (uint64_t p = 0; p < pages; p++) {
		uint64_t *row = rows + p * 5, *words = (uint64_t *)(L.data + p * PAGE);

		if (!row[0])
			continue;
		memcpy(row + 1, words, 24);
		for (unsigned k = WORD_FILL; k < PAGE / 8; k++)
			row[4] += words[k] != (L.zero_filled ? 0 : p * 512 + k);
	}
	write_file("pages.bin", rows, pages * 40);
}

void write_logs(void)
{
	char name[32];

	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];

		snprintf(name, sizeof(name), "log-%d.bin", i);
		write_file(name, a->log, a->count * sizeof(struct result));
		snprintf(name, sizeof(name), "service-a%d.bin", i);
		write_file(name, a->fetcher.log.rows, a->fetcher.log.count * sizeof(struct service));
	}
	for (int i = 0; i < L.handlers; i++) {
		snprintf(name, sizeof(name), "service-h%d.bin", i);
		write_file(name, L.handler_fetcher[i].log.rows, L.handler_fetcher[i].log.count * sizeof(struct service));
	}
	for (int i = 0; L.prefetch && i < L.prefetchers; i++) {
		snprintf(name, sizeof(name), "prefetch-%d.bin", i);
		write_file(name, L.prefetch_fetcher[i].log.rows, L.prefetch_fetcher[i].log.count * sizeof(struct service));
	}
}

void print_done(int64_t end_ns)
{
	printf("{\"problem\": \"%s\", \"base_tsc\": %llu, \"base_ns\": %lld, \"end_ns\": %lld, \"pairs\": [", L.problem,
	       (unsigned long long)L.base_tsc, (long long)L.base_ns, (long long)end_ns);
	for (int i = 0; i < pair_count; i++)
		printf("%s[%llu, %lld, %llu]", i ? ", " : "", (unsigned long long)pairs[i].tsc, (long long)pairs[i].ns,
		       (unsigned long long)pairs[i].half_width_ticks);
	printf("], \"accessors\": [");
	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];

		printf("%s{\"done\": %d, \"left\": %llu, \"efault_exits\": %llu, \"mmio_exits\": %llu, \"kicks\": %llu, "
		       "\"parked_ticks\": %llu, \"warm_before\": %llu, \"warm_guest\": %llu, \"warm_after\": %llu}",
		       i ? ", " : "", a->done, (unsigned long long)a->control[1], (unsigned long long)a->efault_exits,
		       (unsigned long long)a->mmio_exits, (unsigned long long)a->kicks, (unsigned long long)a->parked_ticks,
		       (unsigned long long)a->warm_before, (unsigned long long)a->warm_guest, (unsigned long long)a->warm_after);
	}
	printf("], \"windows\": [");
	for (int i = 0; i < L.window_count; i++) {
		struct window *w = &L.windows[i];

		printf("%s{\"kind\": \"%s\", \"ran\": %d, \"begin_from_ns\": %lld, \"begin_ns\": %lld, \"end_from_ns\": %lld, "
		       "\"end_ns\": %lld, \"pages_checked\": %llu, \"pages_changed\": %llu}",
		       i ? ", " : "", window_name(w->kind), w->ran, (long long)w->begin_from_ns, (long long)w->begin_ns,
		       (long long)w->end_from_ns, (long long)w->end_ns, (unsigned long long)w->pages_checked,
		       (unsigned long long)w->pages_changed);
	}
	printf("], \"startup\": {\"before_from_ns\": %lld, \"before_ns\": %lld, \"prefetch_from_ns\": %lld, "
	       "\"prefetch_ns\": %lld, \"cached_pages\": %llu}",
	       (long long)L.before_from_ns, (long long)L.before_ns, (long long)L.prefetch_from_ns, (long long)L.prefetch_ns,
	       (unsigned long long)L.cached_pages);
	printf(", \"zero_filled\": %d, \"dirty\": {\"rounds\": %llu, \"pages\": %llu, \"enable_ns\": %llu, \"get_ns\": %llu}}\n",
	       L.zero_filled, (unsigned long long)L.dirty_rounds, (unsigned long long)L.dirty_pages,
	       (unsigned long long)L.dirty_enable_ns, (unsigned long long)L.dirty_get_ns);
	fflush(stdout);
}
