// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * The Linux guest's workload: a key-value store in memory, loaded before the snapshot is taken. Then it waits for a line
 * "SEED OPERATIONS" on its console, answers so many requests with keys by Zipf's law (one in ten stores, the rest load),
 * and says how long that took. The popular keys are the same whatever the seed. So are the first three of four requests,
 * as what a service does when it starts is the same each time; then the seed decides which keys are asked for.
 *
 * usage: keyvalue MIB
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define VALUE_BYTES 1000
#define EXPONENT 0.99
#define START 0

struct entry {
	uint64_t key, stored;
	char value[VALUE_BYTES - 16];
};

static struct entry *table;
static uint64_t slots, keys;
static double *share; /* of the requests, up to and with each rank */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

static struct entry *find(uint64_t key)
{
	uint64_t at = mix(key) % slots;

	while (table[at].key && table[at].key != key)
		at = (at + 1) % slots;
	return &table[at];
}

static void load(uint64_t mib)
{
	double sum = 0;

	slots = (mib << 20) / sizeof(struct entry);
	keys = slots * 7 / 10;
	table = calloc(slots, sizeof(struct entry));
	share = malloc(keys * sizeof(double));
	if (!table || !share)
		exit(1);
	for (uint64_t key = 1; key <= keys; key++) {
		struct entry *entry = find(key);

		entry->key = key;
		memset(entry->value, (int)(key % 251), sizeof(entry->value));
		share[key - 1] = sum += pow((double)key, -EXPONENT);
	}
	for (uint64_t i = 0; i < keys; i++)
		share[i] /= sum;
}

static uint64_t draw(uint64_t *state)
{
	uint64_t low = 0, high = keys - 1;
	double wanted;

	*state = mix(*state + 0x9e3779b97f4a7c15ULL);
	wanted = (double)(*state >> 11) / 9007199254740992.0;
	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (share[middle] < wanted)
			low = middle + 1;
		else
			high = middle;
	}
	return low + 1;
}

int main(int argc, char **argv)
{
	unsigned long long seed, operations, hits = 0, bytes = 0;

	load(argc > 1 ? strtoull(argv[1], NULL, 10) : 32);
	printf("keyvalue: ready, %llu keys\n", (unsigned long long)keys);
	fflush(stdout);
	while (scanf("%llu %llu", &seed, &operations) == 2) {
		uint64_t state = mix(START);
		struct timespec from, to;

		clock_gettime(CLOCK_MONOTONIC, &from);
		for (unsigned long long i = 0; i < operations; i++) {
			struct entry *entry;

			if (i == operations / 4 * 3)
				state = mix(seed);
			entry = find(draw(&state));
			hits += entry->key != 0;
			if (state % 10 == 0)
				entry->stored = state;
			else
				for (unsigned k = 0; k < sizeof(entry->value); k += 64)
					bytes += (unsigned char)entry->value[k];
		}
		clock_gettime(CLOCK_MONOTONIC, &to);
		printf("keyvalue: done, %llu of %llu found, sum %llu, %ld ms\n", hits, operations, bytes,
		       (long)((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000));
		fflush(stdout);
	}
	return 0;
}
