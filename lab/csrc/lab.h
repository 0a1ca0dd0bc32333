/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lab's host program: V accessors (vCPUs of a real guest, or threads of a process) walk access lists over a data
 * region whose missing memory is filled in by one mechanism. Python writes the lists and reads the logs.
 */
#ifndef LAB_H
#define LAB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ull
#define MAX_ACCESSORS 64
#define MAX_HANDLERS 64
#define MAX_WINDOWS 16
#define EXIT_MISSING_FEATURE 5
#define EXIT_NO_PERMISSION 77

/* A granule, as whoever places it sees it. */
enum { ABSENT = 0, PRESENT = 1, COMING = 2 };

#define WAITS_FOR_THAW 1 /* a write to a frozen page: nobody places anything, the thaw wakes it */

enum op { OP_READ = 0, OP_WRITE = 1, OP_RMW = 2, OP_MASK = 3, OP_ABSOLUTE = 4 };

/* One access. In the file: page index and ns; in memory: address and TSC ticks. `op` is unique, and is what a write stores. */
struct access {
	uint64_t addr, think, op;
};

/* What the accessor saw. t1 == 0: not done. value: what was read, written or (rmw) found. */
struct result {
	uint64_t t0, t1, value;
};

/* A page carries its number; the guest writes only words 1 (write) and 2 (read-modify-write). */
enum { WORD_NUMBER = 0, WORD_WRITE = 1, WORD_RMW = 2, WORD_FILL = 3 };

/* One resolution of missing memory, as the handler's own clock saw it (TSC). */
struct service {
	uint64_t page, t_msg, t_fetched, t_placed;
	uint32_t faulter_tid, handler_tid;
	int64_t result; /* 0; -errno (EEXIST: somebody else had placed it); or WAITS_FOR_THAW */
};

struct service_log {
	struct service *rows;
	size_t count, capacity;
};

/* State of whoever fetches content: a handler thread, or a vCPU thread that resolves its own faults. */
struct fetcher {
	uint64_t rng;
	int socket;
	void *buffer; /* one granule */
	struct service_log log;
	pid_t tid;
};

struct accessor {
	int index;
	pthread_t thread;
	pid_t tid;
	uint64_t count;
	struct access *list; /* host view; the guest sees list_gpa */
	struct result *log;
	volatile uint64_t *control; /* [0] base TSC (0: wait), [1] accesses left */
	struct fetcher fetcher;
	atomic_bool done, parked;
	volatile bool resolving; /* in the midst of resolving its own fault: not to be parked there */
	/* KVM only */
	int vcpu_fd;
	struct kvm_run *run;
	uint64_t list_gpa, log_gpa, control_gpa;
	uint64_t warm_before, warm_guest, warm_after; /* TSC of host, guest, host: ties the guest's TSC to ours */
	uint64_t efault_exits, mmio_exits, kicks, parked_ticks;
	uint64_t wait_first_tsc, wait_last_tsc; /* of accesses that waited for a window */
};

/* WATCH stops nothing: the control that shows that the comparison of memory would see a write. */
enum window_kind { WINDOW_PAUSE, WINDOW_FREEZE, WINDOW_DESTROY, WINDOW_WATCH };

struct window {
	enum window_kind kind;
	uint64_t start_ns, length_ns; /* asked for, from the start of the run */
	bool ran;
	int64_t begin_from_ns, begin_ns, end_from_ns, end_ns; /* CLOCK_MONOTONIC: [begin, end_from] is what is guaranteed */
	uint64_t pages_checked, pages_changed;
};

struct lab;

/* One way to fill in missing memory. Hooks may be NULL. */
struct mechanism {
	const char *name;
	bool kvm, process; /* targets it makes sense for */
	bool own_handlers; /* resolved in the accessor's own thread: no handler threads */
	void (*setup)(struct lab *); /* make lab->data; register it */
	void (*add_memory)(struct lab *); /* KVM: make the memslots (default: one slot) */
	void (*handler)(struct lab *, int index, struct fetcher *); /* body of a handler thread; returns on lab->stop */
	bool (*on_fault)(struct lab *, struct accessor *, uint64_t page); /* EFAULT exit or SIGBUS on this page: true if resolved */
	bool (*on_mmio)(struct lab *, struct accessor *, uint64_t page); /* no memslot there: true if there is one now */
	void (*before)(struct lab *); /* after a recorder is attached, before the accessors start: start-up, in no stall */
	bool (*prefetch)(struct lab *, struct fetcher *, uint64_t page); /* bring this page unasked; false: give up */
};

enum prefetch_kind { PREFETCH_NONE, PREFETCH_BEFORE, PREFETCH_BESIDE };

struct lab {
	/* asked for */
	const struct mechanism *mechanism;
	bool process, pin, prewarm;
	int accessors, handlers, nice;
	uint64_t pages, granule;
	const char *list_path, *out_dir, *fetch, *fail;
	const char *snapshot_path; /* file that memory is restored from, or NULL */
	const char *peer; /* socket of the process that handles the faults, or NULL */
	const char *set_path; /* pages that prefetch brings, in its order */
	bool cold, readahead; /* the file is in no page cache; a miss may read its neighbours */
	enum prefetch_kind prefetch;
	int prefetchers;
	uint64_t spin_below_ns, timeout_ns, dirty_interval_ns, rate_bytes, seed;
	struct window windows[MAX_WINDOWS];
	int window_count;
	/* memory */
	char *data; /* what accessors touch */
	char *alias; /* second mapping of the same memory (minor), or NULL */
	uint64_t data_bytes;
	bool zero_filled; /* fresh pages hold zeros, not their number */
	bool freezable; /* data is registered for write-protection */
	int uffd[MAX_ACCESSORS];
	int uffds;
	uint64_t uffd_share_pages; /* sharded: pages per userfaultfd */
	const char *uffd_mode;
	int memfd, snapshot_fd;
	atomic_uchar *present; /* per granule; NULL: the kernel places */
	/* threads */
	struct accessor accessor[MAX_ACCESSORS];
	struct fetcher handler_fetcher[MAX_HANDLERS];
	pthread_t handler_thread[MAX_HANDLERS];
	struct fetcher prefetch_fetcher[MAX_HANDLERS];
	pid_t window_tid, logger_tid;
	atomic_bool stop, abandon;
	atomic_int running, ready;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool go;
	uint64_t base_tsc;
	int64_t base_ns;
	/* windows */
	atomic_int paused, destroyed; /* one of these is set while such a window is open */
	atomic_bool frozen;
	pthread_rwlock_t placing; /* read: a page is being placed; write: the frozen flag changes */
	/* KVM */
	int kvm_fd, vm_fd;
	uint64_t slot_limit;
	int gmem_fd;
	uint32_t data_slot_flags;
	bool sync_regs;
	/* clock */
	double ticks_per_ns;
	/* what happened */
	char problem[256];
	int64_t before_from_ns, before_ns; /* work before the accessors' start; 0: none */
	int64_t prefetch_from_ns, prefetch_ns;
	uint64_t cached_pages; /* of the snapshot, in the page cache when the run began */
	uint64_t storage_large_ns, storage_small_ns; /* a read of 1 MiB, of a page, from a cold snapshot's device; 0: not known */
	uint64_t dirty_rounds, dirty_pages, dirty_enable_ns, dirty_get_ns;
};

extern struct lab L;

/* util.c */
_Noreturn void die(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void die_errno(const char *what);
void problem(const char *format, ...) __attribute__((format(printf, 1, 2)));
pid_t my_tid(void);
void pin_to(int slot);
void raise_priority(int nice);
void set_group_nice(int nice);
void run_at_once(void);
void name_thread(const char *format, int index);
void *map_populated(size_t bytes);
void *map_data(size_t bytes, int flags, int fd);
void write_file(const char *name, const void *data, size_t bytes);
void kick_thread(pthread_t thread);
void stop_run(void);
void wait_go(void);

/* clock.c */
struct clock_pair {
	uint64_t tsc;
	int64_t ns;
	uint64_t half_width_ticks;
};
static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi)::"memory");
	return ((uint64_t)hi << 32) | lo;
}
int64_t now_ns(void);
struct clock_pair clock_pair_best(int tries);
void clock_rate(void);
void sleep_until_ns(int64_t deadline_ns);

/* report.c */
#define CLOCK_PAIRS 256
extern struct clock_pair pairs[CLOCK_PAIRS];
extern int pair_count;
void print_ready(void);
void write_pages(void);
void write_logs(void);
void print_done(int64_t end_ns);

/* fetch.c */
void fetch_setup(void);
void fetcher_open(struct fetcher *f, int index);
bool fetch_granule(struct fetcher *f, uint64_t granule_index); /* false: the source died */
void fill_pages(void *buffer, uint64_t first_page, uint64_t count);
void service_row(struct fetcher *f, uint64_t page, pid_t faulter, uint64_t t_msg, uint64_t t_fetched, int result);
void read_snapshot(void *buffer, uint64_t first_page, uint64_t count);
int serve_pages(const char *address, uint64_t granule, uint64_t rate_bytes, uint64_t limit);

/* guest.c */
#define DATA_GPA (1ull << 32)
#define DATA_SLOT 1
void guest_setup(void);
void guest_accessor(struct accessor *a);
int set_memslot(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes, void *hva);
void open_kvm(void);

/* proc.c */
void process_setup(void);
void process_accessor(struct accessor *a);

/* mech_*.c */
const struct mechanism *find_mechanism(const char *name);
extern const struct mechanism mech_file_private, mech_restore_copy, mech_handler_process, mech_fault_around;
extern const struct mechanism mech_uffd_missing, mech_uffd_minor, mech_uffd_sharded, mech_hugetlb_2m;
extern const struct mechanism mech_kvm_exit, mech_mmio_exit;
extern const struct mechanism mech_host_lazy, mech_guest_memfd, mech_dirty_log;
int uffd_open(uint64_t features, const char *who);
void track_present(void);
bool claim_or_wait(uint64_t granule);
void placed(uint64_t granule, bool ok);
void uffd_register(int fd, void *start, uint64_t bytes, uint64_t mode, const char *who);

bool resolve(struct fetcher *f, int fd, uint64_t granule, pid_t faulter, uint64_t t_msg);
void serve_messages(struct lab *lab, int index, struct fetcher *f);

/* snapshot.c */
void snapshot_setup(void);

/* prefetch.c */
void prefetch_start(void);
void prefetch_before(void);
void prefetch_join(void);

/* handler.c */
int handle_faults(int argc, char **argv);
void send_userfaultfd(struct lab *lab);

/* main.c */
void parse(int argc, char **argv);
const uint64_t *load_lists(void);
void handle_signals(void);
void join_kicking(pthread_t thread);
void start_handlers(void);

/* window.c */
const char *window_name(enum window_kind kind);
void windows_setup(void);
void *windows_thread(void *unused);
void park_while_paused(struct accessor *a);
void wait_while_destroyed(struct accessor *a);

#endif
