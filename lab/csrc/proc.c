/* SPDX-License-Identifier: Apache-2.0 */
/* The same access lists walked by plain threads of this process. */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static __thread struct accessor *self;

/* An access to a page that a SIGBUS-mode userfaultfd does not wait for: resolve it here, then the access runs again. */
static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
	char *address = info->si_addr;
	int saved = errno;

	(void)context;
	if (self && L.mechanism->on_fault && address >= L.data && address < L.data + L.data_bytes) {
		self->efault_exits++;
		self->resolving = true;
		if (L.mechanism->on_fault(&L, self, (uint64_t)(address - L.data) / PAGE)) {
			self->resolving = false;
			errno = saved;
			return;
		}
		if (L.abandon)
			pthread_exit(NULL);
	}
	signal(signal_number, SIG_DFL); /* ours or not, it is a real one now */
}

void process_setup(void)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigaction(SIGBUS, &action, NULL);
	for (int i = 0; i < L.accessors; i++) {
		struct accessor *a = &L.accessor[i];

		a->control = map_populated(PAGE);
		a->list = map_populated(a->count * sizeof(struct access) + 1);
		a->log = map_populated(a->count * sizeof(struct result) + 1);
	}
}

static void walk(struct accessor *a)
{
	uint64_t base = a->control[0], last = base;

	for (uint64_t i = 0; i < a->count && !L.abandon; i++) {
		struct access access = a->list[i];
		uint64_t deadline = access.think + (access.op & OP_ABSOLUTE ? base : last), t0, value;
		volatile uint64_t *page = (volatile uint64_t *)(uintptr_t)access.addr;

		while ((t0 = rdtsc()) < deadline && !L.abandon)
			__builtin_ia32_pause();
		switch (access.op & OP_MASK) {
		case OP_WRITE:
			value = access.op;
			page[WORD_WRITE] = value;
			break;
		case OP_RMW:
			value = __atomic_fetch_add(&page[WORD_RMW], 1, __ATOMIC_SEQ_CST);
			break;
		default:
			value = page[WORD_NUMBER];
		}
		last = rdtsc();
		a->log[i] = (struct result){t0, last, value};
		a->control[1] = a->count - i - 1;
	}
}

void process_accessor(struct accessor *a)
{
	self = a;
	a->control[1] = a->count;
	if (L.prewarm && a->index == 0)
		for (uint64_t p = 0; p < L.data_bytes; p += PAGE)
			__atomic_fetch_or((uint64_t *)(L.data + p) + WORD_WRITE, 0, __ATOMIC_SEQ_CST);
	a->warm_before = a->warm_guest = a->warm_after = rdtsc();
	atomic_fetch_add(&L.ready, 1);
	wait_go();
	if (L.abandon)
		return;
	walk(a);
	if (!L.abandon)
		a->done = true;
}
