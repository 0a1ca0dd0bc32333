/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot file, as a VMM leaves it, and restores from it: a private mapping, or a copy before the guest runs. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CHUNK_PAGES 256ull
#define DIRECT_BYTES (1ull << 20)
#define DIRECT_READS 33

static uint64_t pages_cached(uint64_t pages)
{
	void *view = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, L.snapshot_fd, 0);
	unsigned char *cached = map_populated(pages);
	uint64_t count = 0;

	if (view == MAP_FAILED || mincore(view, pages * PAGE, cached))
		die_errno("snapshot: mincore");
	for (uint64_t p = 0; p < pages; p++)
		count += cached[p] & 1;
	munmap(view, pages * PAGE);
	munmap(cached, pages);
	return count;
}

/* Out of the page cache. A page under writeback or on a CPU's list stays: written out first, and asked again. */
static void drop_from_cache(uint64_t pages)
{
	struct statfs fs;

	if (fstatfs(L.snapshot_fd, &fs))
		die_errno("snapshot: statfs");
	if (fs.f_type == TMPFS_MAGIC)
		die(2, "a cold page cache needs a snapshot on a disk: %s is on tmpfs", L.snapshot_path);
	for (int tries = 0; tries < 20; tries++) {
		if (fsync(L.snapshot_fd) || posix_fadvise(L.snapshot_fd, 0, 0, POSIX_FADV_DONTNEED))
			die_errno("snapshot: posix_fadvise");
		L.cached_pages = pages_cached(pages);
		if (!L.cached_pages)
			return;
		sleep_until_ns(now_ns() + 50000000);
	}
	die(1, "the snapshot stays in the page cache: %llu of %llu pages", (unsigned long long)L.cached_pages,
	    (unsigned long long)pages);
}

static int by_size(const void *a, const void *b)
{
	uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;

	return one < other ? -1 : one > other;
}

/* Median ns of a read of so many bytes past the page cache, over the whole file at equal steps; 0: cannot be had. */
static uint64_t direct_read_ns(int fd, char *buffer, uint64_t bytes, uint64_t file_bytes)
{
	uint64_t ns[DIRECT_READS], step = (file_bytes - bytes) / DIRECT_READS / PAGE * PAGE;

	for (int i = 0; i < DIRECT_READS; i++) {
		int64_t from_ns = now_ns();

		if (pread(fd, buffer, bytes, (off_t)((uint64_t)i * step)) != (ssize_t)bytes)
			return 0;
		ns[i] = (uint64_t)(now_ns() - from_ns);
	}
	qsort(ns, DIRECT_READS, sizeof(ns[0]), by_size);
	return ns[DIRECT_READS / 2];
}

/* What the device takes for small and for large reads, past the page cache, which stays cold; twice: what lies below it
 * may have a cache of its own, which the run finds filled. */
static void measure_device(uint64_t pages)
{
	int fd = open(L.snapshot_path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	char *buffer = map_populated(DIRECT_BYTES);

	for (int pass = 0; pass < 2 && fd >= 0 && pages * PAGE > DIRECT_BYTES; pass++) {
		L.storage_large_ns = direct_read_ns(fd, buffer, DIRECT_BYTES, pages * PAGE);
		L.storage_small_ns = direct_read_ns(fd, buffer, PAGE, pages * PAGE);
	}
	if (fd >= 0)
		close(fd);
	munmap(buffer, DIRECT_BYTES);
}

void snapshot_setup(void)
{
	uint64_t pages = L.data_bytes / PAGE;
	char *buffer = map_populated(CHUNK_PAGES * PAGE);

	L.snapshot_fd = open(L.snapshot_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (L.snapshot_fd < 0)
		die_errno(L.snapshot_path);
	for (uint64_t p = 0; p < pages; p += CHUNK_PAGES) {
		uint64_t count = pages - p < CHUNK_PAGES ? pages - p : CHUNK_PAGES;

		fill_pages(buffer, p, count);
		if (pwrite(L.snapshot_fd, buffer, count * PAGE, (off_t)(p * PAGE)) != (ssize_t)(count * PAGE))
			die(1, "snapshot: cannot write %s: %s", L.snapshot_path, strerror(errno));
	}
	munmap(buffer, CHUNK_PAGES * PAGE);
	if (L.cold) {
		drop_from_cache(pages);
		measure_device(pages);
	} else {
		L.cached_pages = pages_cached(pages);
	}
}

static void setup_file_private(struct lab *lab)
{
	lab->data = map_data(lab->data_bytes, MAP_PRIVATE | MAP_NORESERVE, lab->snapshot_fd);
	if (!lab->data)
		die_errno("file-private: mapping of the snapshot");
	if (!lab->readahead && madvise(lab->data, lab->data_bytes, MADV_RANDOM))
		die_errno("file-private: MADV_RANDOM");
}

/* Into the page cache and the host's page tables: the guest's own first touch finds both. */
static bool populate(struct lab *lab, struct fetcher *f, uint64_t page)
{
	uint64_t t_from = rdtsc();
	int result = madvise(lab->data + page * PAGE, PAGE, MADV_POPULATE_READ) ? -errno : 0;

	service_row(f, page, 0, t_from, t_from, result);
	if (result)
		problem("file-private: MADV_POPULATE_READ of page %llu: %s", (unsigned long long)page, strerror(-result));
	return !result;
}

static void setup_copy(struct lab *lab)
{
	lab->data = map_data(lab->data_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	if (!lab->data)
		die_errno("restore-copy: guest memory");
}

static void copy_all(struct lab *lab)
{
	uint64_t pages = lab->data_bytes / PAGE;

	for (uint64_t p = 0; p < pages && !lab->stop; p += CHUNK_PAGES)
		read_snapshot(lab->data + p * PAGE, p, pages - p < CHUNK_PAGES ? pages - p : CHUNK_PAGES);
}

const struct mechanism mech_file_private = {.name = "file-private",
					    .kvm = true,
					    .process = true,
					    .own_handlers = true,
					    .setup = setup_file_private,
					    .prefetch = populate};
const struct mechanism mech_restore_copy = {
	.name = "restore-copy", .kvm = true, .process = true, .own_handlers = true, .setup = setup_copy, .before = copy_all};
