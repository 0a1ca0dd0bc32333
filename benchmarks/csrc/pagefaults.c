/*
 * pagefaults THREADS COUNT RATE: after a line on stdin, each thread takes COUNT page faults (one write to a page that
 * is not there), RATE a second (0: as fast as it can). Prints one JSON line: what it did, how long, how much CPU.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define PAGES 4096L

static long count, rate;

static long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void *work(void *unused)
{
	char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long i, due, start = now_ns();
	struct timespec nap = { 0, 0 };

	(void)unused;
	if (memory == MAP_FAILED)
		exit(1);
	madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
	for (i = 0; i < count; i++) {
		if (i && i % PAGES == 0)
			madvise(memory, PAGES * PAGE, MADV_DONTNEED);
		if (rate && i % 64 == 0) {
			due = start + i * 1000000000L / rate - now_ns();
			if (due > 100000) {
				nap.tv_nsec = due % 1000000000L;
				nanosleep(&nap, NULL);
			}
		}
		memory[i % PAGES * PAGE] = 1;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 2, i;
	struct rusage usage;
	pthread_t thread[64];
	long start;

	count = argc > 2 ? atol(argv[2]) : 1000000;
	rate = argc > 3 ? atol(argv[3]) : 0;
	if (threads < 1 || threads > 64)
		return 2;
	getchar();
	start = now_ns();
	for (i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, work, NULL);
	for (i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	getrusage(RUSAGE_SELF, &usage);
	printf("{\"faults\": %ld, \"wall_ns\": %ld, \"cpu_ns\": %ld}\n", threads * count, now_ns() - start,
	       (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000L +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000L);
	return 0;
}
