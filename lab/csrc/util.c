/* SPDX-License-Identifier: Apache-2.0 */
/* Small things every part needs. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

struct lab L = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER, .placing = PTHREAD_RWLOCK_INITIALIZER};

void die(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	fflush(stderr);
	_exit(code);
}

void die_errno(const char *what)
{
	die(errno == EPERM || errno == EACCES ? EXIT_NO_PERMISSION : 1, "%s: %s", what, strerror(errno));
}

void problem(const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&L.lock);
	if (!L.problem[0]) { /* the first one is the cause */
		va_start(args, format);
		vsnprintf(L.problem, sizeof(L.problem), format, args);
		va_end(args);
	}
	pthread_mutex_unlock(&L.lock);
}

pid_t my_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

/* Give the thread the slot-th CPU of those this process may use. */
void pin_to(int slot)
{
	cpu_set_t allowed, one;
	int cpu, seen = 0, total;

	if (!L.pin || sched_getaffinity(0, sizeof(allowed), &allowed))
		return;
	total = CPU_COUNT(&allowed);
	CPU_ZERO(&one);
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && seen++ == slot % total) {
			CPU_SET(cpu, &one);
			break;
		}
	}
	pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

/*
 * Ahead of whatever else the host does: by nice, and as a session of its own, as nice counts only inside a scheduler
 * autogroup. Between our own threads nothing changes. Best effort: a user may not raise priorities.
 */
void raise_priority(int nice)
{
	if (!nice)
		return;
	setsid();
	setpriority(PRIO_PROCESS, 0, nice);
	set_group_nice(nice);
}

/* All threads of this session against the rest of the host. */
void set_group_nice(int nice)
{
	FILE *file = fopen("/proc/self/autogroup", "w");

	if (!file)
		return;
	fprintf(file, "%d", nice);
	fclose(file);
}

/* The thread runs the moment it is woken, whoever has the core. Best effort: a user may not ask for that. */
void run_at_once(void)
{
	struct sched_param lowest = {.sched_priority = sched_get_priority_min(SCHED_FIFO)};

	pthread_setschedparam(pthread_self(), SCHED_FIFO, &lowest);
}

void name_thread(const char *format, int index)
{
	char name[16];

	snprintf(name, sizeof(name), format, index);
	pthread_setname_np(pthread_self(), name);
	prctl(PR_SET_TIMERSLACK, 1); /* a sleeping fetch must not be rounded up by 50 us */
}

void *map_data(size_t bytes, int flags, int fd)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, bytes, MADV_NOHUGEPAGE); /* one fault a page: a huge page would swallow 511 of them */
	return p;
}

void *map_populated(size_t bytes)
{
	void *p = map_data(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (!p)
		die(1, "cannot map %zu bytes: %s", bytes, strerror(errno));
	memset(p, 0, bytes);
	return p;
}

void write_file(const char *name, const void *data, size_t bytes)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", L.out_dir, name);
	file = fopen(path, "wb");
	if (!file || (bytes && fwrite(data, 1, bytes, file) != bytes) || fclose(file))
		die(1, "cannot write %s: %s", path, strerror(errno));
}

/* Get a thread out of a blocking system call; the handler of SIGUSR1 also sets immediate_exit. */
void kick_thread(pthread_t thread)
{
	pthread_kill(thread, SIGUSR1);
}

void wait_go(void)
{
	pthread_mutex_lock(&L.lock);
	while (!L.go && !L.abandon)
		pthread_cond_wait(&L.cond, &L.lock);
	pthread_mutex_unlock(&L.lock);
}

/* End the run early: accessors and handlers leave at their next system call. */
void stop_run(void)
{
	L.abandon = true;
	L.stop = true;
	pthread_mutex_lock(&L.lock);
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
}
