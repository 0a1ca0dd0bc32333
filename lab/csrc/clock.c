/* SPDX-License-Identifier: Apache-2.0 */
/* TSC and CLOCK_MONOTONIC: pairs taken as (rdtsc, clock_gettime, rdtsc); half the bracket bounds a pair's error. */
#include "lab.h"

#include <errno.h>
#include <time.h>

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* The narrowest of `tries` brackets. */
struct clock_pair clock_pair_best(int tries)
{
	struct clock_pair best = {.half_width_ticks = UINT64_MAX};

	for (int i = 0; i < tries; i++) {
		uint64_t before = rdtsc();
		int64_t ns = now_ns();
		uint64_t after = rdtsc();

		if ((after - before) / 2 < best.half_width_ticks)
			best = (struct clock_pair){before + (after - before) / 2, ns, (after - before) / 2};
	}
	return best;
}

/* A first estimate, for think times; truth is converted with the pairs taken around the run. */
void clock_rate(void)
{
	struct clock_pair a = clock_pair_best(50), b;

	sleep_until_ns(now_ns() + 20000000);
	b = clock_pair_best(50);
	L.ticks_per_ns = (double)(b.tsc - a.tsc) / (double)(b.ns - a.ns);
}

void sleep_until_ns(int64_t deadline_ns)
{
	struct timespec t = {deadline_ns / 1000000000ll, deadline_ns % 1000000000ll};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR && !L.stop)
		;
}
