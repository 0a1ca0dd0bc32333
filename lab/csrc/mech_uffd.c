/* SPDX-License-Identifier: Apache-2.0 */
/* userfaultfd with handler threads: missing (anonymous, 4 KiB or 2 MiB, one page or those around it), minor (shared memory), one per vCPU, or in another process. */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *feature_name(uint64_t lacking)
{
	static const char *const names[] = {
		"PAGEFAULT_FLAG_WP", "EVENT_FORK",     "EVENT_REMAP",     "EVENT_REMOVE", "MISSING_HUGETLBFS",  "MISSING_SHMEM",
		"EVENT_UNMAP",	     "SIGBUS",	       "THREAD_ID",	  "MINOR_HUGETLBFS", "MINOR_SHMEM",	"EXACT_ADDRESS",
		"WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "POISON",	  "WP_ASYNC",	  "MOVE",
	};

	for (unsigned bit = 0; bit < sizeof(names) / sizeof(*names); bit++)
		if (lacking >> bit & 1)
			return names[bit];
	return "a feature";
}

int uffd_open(uint64_t features, const char *who)
{
	struct uffdio_api api = {.api = UFFD_API}, wanted = {.api = UFFD_API, .features = features};
	int probe = (int)syscall(SYS_userfaultfd, O_CLOEXEC), fd;

	if (probe < 0 && (errno == EPERM || errno == EACCES))
		die(EXIT_NO_PERMISSION, "no permission for userfaultfd: run as root, or set vm.unprivileged_userfaultfd=1");
	if (probe < 0)
		die(EXIT_MISSING_FEATURE, "%s: this kernel has no userfaultfd (%s)", who, strerror(errno));
	if (ioctl(probe, UFFDIO_API, &api))
		die_errno("UFFDIO_API");
	close(probe);
	if ((api.features & features) != features)
		die(EXIT_MISSING_FEATURE, "%s: this kernel's userfaultfd has no UFFD_FEATURE_%s", who,
		    feature_name(features & ~api.features));
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &wanted))
		die_errno("UFFDIO_API");
	return fd;
}

void uffd_register(int fd, void *start, uint64_t bytes, uint64_t mode, const char *who)
{
	struct uffdio_register reg = {.range = {(uint64_t)(uintptr_t)start, bytes}, .mode = mode};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		die(errno == EINVAL ? EXIT_MISSING_FEATURE : 1, "%s: userfaultfd cannot be registered over this memory: %s", who,
		    strerror(errno));
}

static bool wants_freeze(void)
{
	for (int i = 0; i < L.window_count; i++)
		if (L.windows[i].kind == WINDOW_FREEZE)
			return true;
	return false;
}

static uint64_t features(void)
{
	return UFFD_FEATURE_THREAD_ID | (wants_freeze() ? UFFD_FEATURE_PAGEFAULT_FLAG_WP : 0);
}

static uint64_t wp_mode(void)
{
	L.freezable = wants_freeze();
	return L.freezable ? UFFDIO_REGISTER_MODE_WP : 0;
}

void track_present(void)
{
	L.present = map_populated(L.data_bytes / L.granule);
}

static void map_anonymous(int flags)
{
	L.data = map_data(L.data_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1);
	if (!L.data)
		die(1, "cannot map %llu MiB of guest memory: %s", (unsigned long long)(L.data_bytes >> 20), strerror(errno));
	track_present();
}

static void setup_missing(struct lab *lab)
{
	map_anonymous(0);
	lab->uffd[0] = uffd_open(features(), "uffd-missing");
	lab->uffds = 1;
	lab->uffd_mode = "missing";
	uffd_register(lab->uffd[0], lab->data, lab->data_bytes, UFFDIO_REGISTER_MODE_MISSING | wp_mode(), "uffd-missing");
}

static void setup_sharded(struct lab *lab)
{
	map_anonymous(0);
	lab->uffds = lab->accessors;
	lab->uffd_mode = "missing";
	lab->uffd_share_pages = (lab->pages + (uint64_t)lab->uffds - 1) / (uint64_t)lab->uffds;
	for (int i = 0; i < lab->uffds; i++) {
		uint64_t first = (uint64_t)i * lab->uffd_share_pages, end = first + lab->uffd_share_pages;

		if (end > lab->data_bytes / PAGE || i == lab->uffds - 1)
			end = lab->data_bytes / PAGE;
		lab->uffd[i] = uffd_open(features(), "uffd-sharded");
		if (first < end)
			uffd_register(lab->uffd[i], lab->data + first * PAGE, (end - first) * PAGE,
				      UFFDIO_REGISTER_MODE_MISSING | wp_mode(), "uffd-sharded");
	}
}

/* The page cache is there from the start, with stale content: a first touch is a minor fault. */
static void setup_minor(struct lab *lab)
{
	uint64_t wp = wants_freeze() ? UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0;

	lab->memfd = memfd_create("guest", MFD_CLOEXEC);
	if (lab->memfd < 0 || ftruncate(lab->memfd, (off_t)lab->data_bytes) ||
	    fallocate(lab->memfd, 0, 0, (off_t)lab->data_bytes))
		die_errno("shared memory for the guest");
	lab->data = map_data(lab->data_bytes, MAP_SHARED, lab->memfd);
	lab->alias = map_data(lab->data_bytes, MAP_SHARED | MAP_POPULATE, lab->memfd);
	if (!lab->data || !lab->alias)
		die_errno("mapping of shared memory");
	track_present();
	lab->uffd[0] = uffd_open(features() | UFFD_FEATURE_MINOR_SHMEM | wp, "uffd-minor");
	lab->uffds = 1;
	lab->uffd_mode = "minor";
	uffd_register(lab->uffd[0], lab->data, lab->data_bytes, UFFDIO_REGISTER_MODE_MINOR | wp_mode(), "uffd-minor");
}

static void setup_hugetlb(struct lab *lab)
{
	bool starve = !strcmp(lab->fail, "hugetlb-enomem");

	lab->data = mmap(NULL, lab->data_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) | (starve ? MAP_NORESERVE : 0), -1, 0);
	if (lab->data == MAP_FAILED)
		die(EXIT_MISSING_FEATURE, "hugetlb-2m: %llu huge pages of 2 MiB cannot be had (%s): write that number to %s",
		    (unsigned long long)(lab->data_bytes >> 21), strerror(errno), "/proc/sys/vm/nr_hugepages");
	track_present();
	lab->uffd[0] = uffd_open(features() | UFFD_FEATURE_MISSING_HUGETLBFS, "hugetlb-2m");
	lab->uffds = 1;
	lab->uffd_mode = "missing";
	uffd_register(lab->uffd[0], lab->data, lab->data_bytes, UFFDIO_REGISTER_MODE_MISSING | wp_mode(), "hugetlb-2m");
}

static int place(struct fetcher *f, int fd, uint64_t granule)
{
	uint64_t address = (uint64_t)(uintptr_t)L.data + granule * L.granule;
	int result = 0;

	/* Under a freeze a page must arrive protected; the lock keeps the flag still while one is on its way. */
	pthread_rwlock_rdlock(&L.placing);
	if (L.alias) {
		struct uffdio_continue go_on = {.range = {address, L.granule}, .mode = L.frozen ? UFFDIO_CONTINUE_MODE_WP : 0};

		memcpy(L.alias + granule * L.granule, f->buffer, L.granule);
		if (ioctl(fd, UFFDIO_CONTINUE, &go_on))
			result = -errno;
	} else {
		struct uffdio_copy copy = {address, (uint64_t)(uintptr_t)f->buffer, L.granule,
					   L.frozen ? UFFDIO_COPY_MODE_WP : 0, 0};

		if (ioctl(fd, UFFDIO_COPY, &copy))
			result = -errno;
	}
	pthread_rwlock_unlock(&L.placing);
	return result;
}

static void wake(int fd, uint64_t granule)
{
	struct uffdio_range range = {(uint64_t)(uintptr_t)L.data + granule * L.granule, L.granule};

	ioctl(fd, UFFDIO_WAKE, &range);
}

bool resolve(struct fetcher *f, int fd, uint64_t granule, pid_t faulter, uint64_t t_msg)
{
	uint64_t page = granule * (L.granule / PAGE), t_fetched;
	unsigned char absent = ABSENT;
	int result;

	/* A second message for one page: who fetches it wakes all its waiters; if it came meanwhile, wake this one. */
	if (!atomic_compare_exchange_strong(&L.present[granule], &absent, COMING)) {
		if (absent == PRESENT)
			wake(fd, granule);
		service_row(f, page, faulter, t_msg, t_msg, -EEXIST);
		return true;
	}
	if (!fetch_granule(f, granule))
		return false;
	t_fetched = rdtsc();
	do
		result = place(f, fd, granule);
	while (result == -EAGAIN && !L.stop);
	L.present[granule] = result ? ABSENT : PRESENT;
	service_row(f, page, faulter, t_msg, t_fetched, result);
	if (!result)
		return true;
	problem("%s: placing page %llu failed: %s%s", L.mechanism->name, (unsigned long long)page, strerror(-result),
		L.granule > PAGE ? " (what the kernel says, too, when no huge page is free)" : "");
	stop_run();
	return false;
}

/* `--fail handler-exit@N`: handler 0 leaves after N messages, as a killed one would, with a message in its hands. */
static bool must_die(int index, uint64_t messages)
{
	unsigned long long after;

	return index == 0 && sscanf(L.fail, "handler-exit@%llu", &after) == 1 && messages > after;
}

void serve_messages(struct lab *lab, int index, struct fetcher *f)
{
	int fd = lab->uffd[lab->uffds > 1 ? index % lab->uffds : 0];
	uint64_t messages = 0;

	while (!lab->stop) {
		struct uffd_msg msg;
		ssize_t n = read(fd, &msg, sizeof(msg));
		uint64_t t_msg = rdtsc(), granule;

		if (n != sizeof(msg)) {
			if (n < 0 && (errno == EINTR || errno == EAGAIN))
				continue;
			problem("read from the userfaultfd: %s", n < 0 ? strerror(errno) : "short");
			stop_run();
			return;
		}
		if (must_die(index, ++messages))
			return;
		if (msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		granule = (msg.arg.pagefault.address - (uint64_t)(uintptr_t)lab->data) / lab->granule;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			service_row(f, granule * (lab->granule / PAGE), (pid_t)msg.arg.pagefault.feat.ptid, t_msg, t_msg,
				    WAITS_FOR_THAW);
			continue;
		}
		if (!resolve(f, fd, granule, (pid_t)msg.arg.pagefault.feat.ptid, t_msg))
			return;
	}
}

/* Nobody asked: no message, no faulter. A fault that comes meanwhile is woken by the placing. */
static bool bring(struct lab *lab, struct fetcher *f, uint64_t page)
{
	uint64_t granule = page * PAGE / lab->granule;
	int index = lab->uffds > 1 ? (int)(page / lab->uffd_share_pages) : 0;

	return resolve(f, lab->uffd[index], granule, 0, rdtsc());
}

#define UFFD_MECHANISM(NAME, SETUP) \
	{.name = NAME, .kvm = true, .process = true, .setup = SETUP, .handler = serve_messages, .prefetch = bring}
const struct mechanism mech_uffd_missing = UFFD_MECHANISM("uffd-missing", setup_missing);
const struct mechanism mech_uffd_minor = UFFD_MECHANISM("uffd-minor", setup_minor);
const struct mechanism mech_uffd_sharded = UFFD_MECHANISM("uffd-sharded", setup_sharded);
const struct mechanism mech_hugetlb_2m = UFFD_MECHANISM("hugetlb-2m", setup_hugetlb);
/* The same memory as uffd-missing: a fetch brings the aligned granule around the page, and one UFFDIO_COPY places it. */
const struct mechanism mech_fault_around = UFFD_MECHANISM("uffd-fault-around", setup_missing);

static void setup_handler_process(struct lab *lab)
{
	setup_missing(lab);
	send_userfaultfd(lab);
}

/* Nobody here reads the messages. */
const struct mechanism mech_handler_process = {.name = "uffd-handler-process",
					       .kvm = true,
					       .process = true,
					       .own_handlers = true,
					       .setup = setup_handler_process,
					       .handler = serve_messages};
