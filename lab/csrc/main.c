/* SPDX-License-Identifier: Apache-2.0 */
/*
 * labhost key=value...: sets everything up and prints a line of JSON; on a byte from stdin it runs and says that it
 * ended; on another it writes its logs and prints what happened.
 * labhost handle key=value...: takes the faults of another labhost, whose userfaultfd comes over the socket `peer`.
 * labhost serve ADDRESS GRANULE RATE LIMIT NICE: the page server.
 */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define START_DELAY_NS 500000

static __thread struct accessor *me;

static const struct mechanism *const mechanisms[] = {
	&mech_uffd_missing, &mech_uffd_minor, &mech_uffd_sharded, &mech_hugetlb_2m, &mech_kvm_exit,
	&mech_mmio_exit,    &mech_host_lazy,  &mech_guest_memfd,  &mech_dirty_log,  &mech_file_private,
	&mech_restore_copy, &mech_handler_process, &mech_fault_around,
};

const struct mechanism *find_mechanism(const char *name)
{
	for (size_t i = 0; i < sizeof(mechanisms) / sizeof(*mechanisms); i++)
		if (!strcmp(mechanisms[i]->name, name))
			return mechanisms[i];
	die(2, "unknown mechanism '%s'", name);
}

/* START_NS+LENGTH_NS:KIND,... */
static void parse_windows(const char *text)
{
	while (*text) {
		struct window *w = &L.windows[L.window_count];
		unsigned long long start, length;
		char kind[32];
		int used;

		if (L.window_count == MAX_WINDOWS || sscanf(text, "%llu+%llu:%31[a-z-]%n", &start, &length, kind, &used) != 3)
			die(2, "bad window '%s'", text);
		for (w->kind = WINDOW_PAUSE; w->kind <= WINDOW_WATCH; w->kind++)
			if (!strcmp(kind, window_name(w->kind)))
				break;
		if (w->kind > WINDOW_WATCH)
			die(2, "bad window '%s'", text);
		w->start_ns = start;
		w->length_ns = length;
		L.window_count++;
		text += used;
		text += *text == ',';
	}
}

void parse(int argc, char **argv)
{
	struct {
		const char *key;
		uint64_t *number;
		const char **text;
	} keys[] = {
		{"pages", &L.pages, NULL},	    {"granule", &L.granule, NULL},
		{"seed", &L.seed, NULL},	    {"spin_below_ns", &L.spin_below_ns, NULL},
		{"timeout_ns", &L.timeout_ns, NULL}, {"dirty_interval_ns", &L.dirty_interval_ns, NULL},
		{"list", NULL, &L.list_path},	    {"out", NULL, &L.out_dir},
		{"fetch", NULL, &L.fetch},	    {"fail", NULL, &L.fail},
		{"snapshot", NULL, &L.snapshot_path}, {"peer", NULL, &L.peer},
		{"set", NULL, &L.set_path},
	};
	L.fail = "";
	L.fetch = "none";
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		bool known = false;

		if (!value)
			die(2, "bad argument '%s'", argv[i]);
		*value++ = 0;
		for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
			if (strcmp(argv[i], keys[k].key))
				continue;
			known = true;
			if (keys[k].number)
				*keys[k].number = strtoull(value, NULL, 10);
			else
				*keys[k].text = value;
		}
		if (!strcmp(argv[i], "mechanism"))
			L.mechanism = find_mechanism(value);
		else if (!strcmp(argv[i], "target"))
			L.process = !strcmp(value, "process");
		else if (!strcmp(argv[i], "handlers"))
			L.handlers = atoi(value);
		else if (!strcmp(argv[i], "nice"))
			L.nice = atoi(value);
		else if (!strcmp(argv[i], "pin"))
			L.pin = atoi(value);
		else if (!strcmp(argv[i], "prewarm"))
			L.prewarm = atoi(value);
		else if (!strcmp(argv[i], "cold"))
			L.cold = atoi(value);
		else if (!strcmp(argv[i], "readahead"))
			L.readahead = atoi(value);
		else if (!strcmp(argv[i], "prefetch"))
			L.prefetch = !strcmp(value, "before") ? PREFETCH_BEFORE : !strcmp(value, "beside") ? PREFETCH_BESIDE : 0;
		else if (!strcmp(argv[i], "prefetchers"))
			L.prefetchers = atoi(value);
		else if (!strcmp(argv[i], "windows"))
			parse_windows(value);
		else if (!known)
			die(2, "unknown argument '%s'", argv[i]);
	}
	if (!L.mechanism || !L.list_path || !L.out_dir || !L.pages || !L.granule || L.handlers > MAX_HANDLERS ||
	    L.prefetchers > MAX_HANDLERS)
		die(2, "incomplete arguments");
	if (!(L.process ? L.mechanism->process : L.mechanism->kvm))
		die(2, "%s makes no sense for a %s", L.mechanism->name, L.process ? "process" : "guest");
	L.data_bytes = (L.pages * PAGE + L.granule - 1) / L.granule * L.granule;
}

/* File: accessors, then a count for each, then all lists one after the other. */
const uint64_t *load_lists(void)
{
	int fd = open(L.list_path, O_RDONLY | O_CLOEXEC);
	off_t bytes = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	uint64_t *words = bytes > 0 ? mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0) : MAP_FAILED;

	if (words == MAP_FAILED || words[0] < 1 || words[0] > MAX_ACCESSORS)
		die(2, "cannot read the access lists at %s", L.list_path);
	close(fd);
	L.accessors = (int)words[0];
	for (int i = 0; i < L.accessors; i++) {
		L.accessor[i].index = i;
		L.accessor[i].count = words[1 + i];
	}
	return words + 1 + L.accessors;
}

static void place_lists(const uint64_t *words)
{
	const struct access *from = (const struct access *)words;
	uint64_t base = L.process ? (uint64_t)(uintptr_t)L.data : DATA_GPA;

	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];

		for (uint64_t k = 0; k < a->count; k++, from++) {
			if (from->addr >= L.pages)
				die(2, "access list refers to page %llu of %llu", (unsigned long long)from->addr,
				    (unsigned long long)L.pages);
			a->list[k] = (struct access){base + from->addr * PAGE, (uint64_t)((double)from->think * L.ticks_per_ns),
						     from->op};
		}
	}
}

static void on_kick(int signal_number)
{
	int saved = errno;

	(void)signal_number;
	if (me && me->run)
		me->run->immediate_exit = 1;
	else if (me && L.paused && !me->resolving && L.go)
		park_while_paused(me);
	errno = saved;
}

static volatile sig_atomic_t interrupted;

static void on_term(int signal_number)
{
	(void)signal_number;
	interrupted = 1;
}

static void *accessor_body(void *argument)
{
	struct accessor *a = argument;

	me = a;
	a->tid = a->fetcher.tid = my_tid();
	name_thread(L.process ? "accessor-%d" : "vcpu-%d", a->index);
	pin_to(a->index);
	if (L.process)
		process_accessor(a);
	else
		guest_accessor(a);
	pthread_mutex_lock(&L.lock);
	L.running--;
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
	return NULL;
}

static void *handler_body(void *argument)
{
	int index = (int)(intptr_t)argument;
	struct fetcher *f = &L.handler_fetcher[index];

	f->tid = my_tid();
	name_thread("handler-%d", index);
	pin_to(L.accessors + index);
	atomic_fetch_add(&L.ready, 1);
	wait_go(); /* a read that blocks before a recorder is attached would not be seen by it */
	if (!L.stop)
		L.mechanism->handler(&L, index, f);
	return NULL;
}

static void wait_ready(int wanted)
{
	for (int tries = 0; L.ready < wanted; tries++) {
		if (L.problem[0])
			die(1, "%s", L.problem);
		if (tries > 30000)
			die(1, "the lab's threads did not get ready in 30 s");
		sleep_until_ns(now_ns() + 1000000);
	}
}

static uint64_t accesses_left(void)
{
	uint64_t left = 0;

	for (int i = 0; i < L.accessors; i++)
		left += L.accessor[i].control[1];
	return left;
}

/* Until every accessor is through, or none made progress for timeout_ns. */
static void wait_done(void)
{
	uint64_t left = accesses_left();
	int64_t moved_ns = now_ns();

	pthread_mutex_lock(&L.lock);
	while (L.running > 0) {
		struct timespec t;
		uint64_t now_left;

		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 100000000;
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		pthread_cond_timedwait(&L.cond, &L.lock, &t);
		if (L.abandon)
			break;
		if (interrupted) {
			pthread_mutex_unlock(&L.lock);
			problem("interrupted");
			stop_run();
			return;
		}
		if (pair_count < CLOCK_PAIRS - 8) /* room for those of the end */
			pairs[pair_count++] = clock_pair_best(8);
		now_left = accesses_left();
		if (now_left != left) {
			left = now_left;
			moved_ns = now_ns();
		} else if ((uint64_t)(now_ns() - moved_ns) > L.timeout_ns) {
			pthread_mutex_unlock(&L.lock);
			problem("no access ended for %.1f s: a fault is never resolved (%llu accesses left)",
				(double)L.timeout_ns / 1e9, (unsigned long long)left);
			stop_run();
			return;
		}
	}
	pthread_mutex_unlock(&L.lock);
}

void join_kicking(pthread_t thread)
{
	struct timespec t;

	for (;;) {
		if (L.stop)
			kick_thread(thread);
		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 5000000;
		if (t.tv_nsec >= 1000000000) {
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		if (pthread_timedjoin_np(thread, NULL, &t) != ETIMEDOUT)
			return;
	}
}

static void let_waiters_go(void)
{
	for (int i = 0; i < L.uffds; i++) {
		struct uffdio_range range = {(uint64_t)(uintptr_t)L.data, L.data_bytes};

		if (L.uffds > 1) {
			range.start += (uint64_t)i * L.uffd_share_pages * PAGE;
			range.len = i < L.uffds - 1 ? L.uffd_share_pages * PAGE : L.data_bytes - (uint64_t)i * L.uffd_share_pages * PAGE;
		}
		ioctl(L.uffd[i], UFFDIO_UNREGISTER, &range);
	}
}

void handle_signals(void)
{
	struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART: a kick must end a blocking read */

	sigaction(SIGUSR1, &action, NULL);
	signal(SIGTERM, on_term);
	signal(SIGINT, SIG_IGN); /* the terminal's Ctrl-C is Python's, which ends the run in order */
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_TIMERSLACK, 1);
}

static void set_up(void)
{
	const uint64_t *lists = load_lists();

	handle_signals();
	clock_rate();
	fetch_setup();
	if (L.snapshot_path)
		snapshot_setup();
	if (!L.process)
		open_kvm();
	L.mechanism->setup(&L);
	if (L.process) {
		process_setup();
	} else {
		guest_setup();
		if (L.mechanism->add_memory)
			L.mechanism->add_memory(&L);
		else if (set_memslot(DATA_SLOT, L.data_slot_flags, DATA_GPA, L.data_bytes, L.data))
			die_errno("memslot of the data region");
	}
	place_lists(lists);
	windows_setup();
}

void start_handlers(void)
{
	for (int i = 0; i < L.handlers; i++) {
		fetcher_open(&L.handler_fetcher[i], i);
		if (pthread_create(&L.handler_thread[i], NULL, handler_body, (void *)(intptr_t)i))
			die_errno("pthread_create");
	}
	wait_ready(L.handlers);
}

static void start_threads(pthread_t *windows)
{
	int wanted;

	if (L.mechanism->own_handlers)
		L.handlers = 0;
	wanted = L.accessors + L.handlers;
	start_handlers();
	L.running = L.accessors;
	for (int i = 0; i < L.accessors; i++) {
		fetcher_open(&L.accessor[i].fetcher, MAX_HANDLERS + i);
		if (pthread_create(&L.accessor[i].thread, NULL, accessor_body, &L.accessor[i]))
			die_errno("pthread_create");
	}
	if (L.window_count) {
		if (pthread_create(windows, NULL, windows_thread, NULL))
			die_errno("pthread_create");
		wanted++;
	}
	if (L.prefetch) {
		prefetch_start();
		wanted += L.prefetchers;
	}
	wait_ready(wanted);
}

/* All that a restore does before its guest runs: start-up delay. */
static void before_start(void)
{
	if (!L.mechanism->before && L.prefetch != PREFETCH_BEFORE)
		return;
	L.before_from_ns = now_ns();
	if (L.mechanism->before)
		L.mechanism->before(&L);
	if (L.prefetch == PREFETCH_BEFORE)
		prefetch_before();
	L.before_ns = now_ns();
}

int main(int argc, char **argv)
{
	pthread_t windows;
	int64_t end_ns;
	char byte;

	if (argc == 7 && !strcmp(argv[1], "serve")) {
		raise_priority(atoi(argv[6]));
		return serve_pages(argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10));
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever asked for the run is gone: leave nothing behind */
	if (argc > 1 && !strcmp(argv[1], "handle"))
		return handle_faults(argc - 1, argv + 1);
	parse(argc, argv);
	raise_priority(L.nice);
	set_up();
	start_threads(&windows);
	print_ready();
	if (read(STDIN_FILENO, &byte, 1) != 1)
		return 0;

	for (int i = 0; i < 4; i++)
		pairs[pair_count++] = clock_pair_best(100);
	before_start();
	pthread_mutex_lock(&L.lock);
	L.base_ns = now_ns() + START_DELAY_NS;
	L.base_tsc = rdtsc() + (uint64_t)(START_DELAY_NS * L.ticks_per_ns);
	for (int i = 0; i < L.accessors; i++)
		L.accessor[i].control[0] = L.base_tsc;
	L.go = true;
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
	wait_done();
	end_ns = now_ns();
	for (int i = 0; i < 4; i++)
		pairs[pair_count++] = clock_pair_best(100);
	L.stop = true;
	if (L.abandon)
		let_waiters_go();
	if (L.window_count)
		join_kicking(windows);
	for (int i = 0; i < L.accessors; i++)
		join_kicking(L.accessor[i].thread);
	for (int i = 0; i < L.handlers; i++)
		join_kicking(L.handler_thread[i]);
	if (L.prefetch == PREFETCH_BESIDE)
		prefetch_join();
	printf("{\"ended\": true}\n");
	fflush(stdout);
	if (read(STDIN_FILENO, &byte, 1) != 1) /* the recorder detaches before memory is looked at */
		return 0;
	if (!L.abandon)
		write_pages();
	write_logs();
	print_done(end_ns);
	return 0;
}
