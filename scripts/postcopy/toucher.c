// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/* The Linux guest's only program: dirties MIB of memory in random order from THREADS threads, for ever; a sign of life a second. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static char *area;
static uint64_t pages;
static volatile uint64_t touched;

static void *touch(void *seed)
{
	uint64_t x = (uintptr_t)seed * 88172645463325252ULL;
	for (;;) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		(*(volatile uint64_t *)(area + x % pages * 4096))++;
		touched++;
		for (volatile int spin = 0; spin < 2000; spin++)
			;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 64;
	int threads = argc > 2 ? atoi(argv[2]) : 1;
	pages = mib << 8;
	area = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (area == MAP_FAILED) {
		perror("toucher: mmap");
		return 1;
	}
	for (uint64_t page = 0; page < pages; page++) /* not zero: QEMU sends zero pages as one byte */
		*(uint64_t *)(area + page * 4096) = page + 1;
	for (long i = 1; i <= threads; i++) {
		pthread_t thread;
		pthread_create(&thread, NULL, touch, (void *)i);
	}
	for (;;) {
		printf("toucher: %llu\n", (unsigned long long)touched);
		fflush(stdout);
		sleep(1);
	}
}
