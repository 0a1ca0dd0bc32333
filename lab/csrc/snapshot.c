/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot file, as a VMM leaves it, and restores from it: a private mapping, or a copy before the guest runs. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CHUNK_PAGES 256ull

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
	if (L.cold)
		drop_from_cache(pages);
	else
		L.cached_pages = pages_cached(pages);
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
