/* The path of uffd-missing as anybody would write it in C: a binary heap of events, one state a vCPU, a FIFO before the
 * handlers. It reads what benchmarks/engine.py wrote (think times and sampling tables) and uses the same counter-based
 * randomness, so its total stall must equal the engine's; prints "ns total_stall_ns run_time_ns".
 *
 * usage: engine DATA VCPUS FAULTS_PER_VCPU HANDLERS WALK_NS SEED
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TRAP, MESSAGE, FETCH, RESOLVE, WAKE, LOOP, TABLES };
enum { KNOTS = 498, FINE_FROM = 61440, FINE_BASE = 241 };

static int64_t tables[TABLES][KNOTS];
static uint64_t seed;

static uint64_t draw_bits(uint64_t row, uint64_t word)
{
	uint64_t z = seed + (row * 16 + word) * 0x9E3779B97F4A7C15ull;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
	return z ^ (z >> 31);
}

static int64_t sample(int which, uint64_t row)
{
	int64_t u = (draw_bits(row, which >> 2) >> (16 * (which & 3))) & 0xFFFF;
	int fine = u >= FINE_FROM, shift = fine ? 4 : 8;

	if (fine)
		u -= FINE_FROM;
	int64_t index = (u >> shift) + (fine ? FINE_BASE : 0), rest = u & ((1 << shift) - 1);
	int64_t low = tables[which][index];
	return low + (((tables[which][index + 1] - low) * (2 * rest + 1)) >> (shift + 1));
}

struct event {
	int64_t time;
	int slot; /* a vCPU, or vcpus + n for the n-th tail of a handler */
};

static struct event *heap;
static int heap_size;

static int before(struct event a, struct event b)
{
	return a.time < b.time || (a.time == b.time && a.slot < b.slot);
}

static void push(int64_t time, int slot)
{
	struct event e = { time, slot };
	int i = heap_size++;

	for (; i && before(e, heap[(i - 1) / 2]); i = (i - 1) / 2)
		heap[i] = heap[(i - 1) / 2];
	heap[i] = e;
}

static struct event pop(void)
{
	struct event top = heap[0], e = heap[--heap_size];
	int i = 0, child;

	for (; (child = 2 * i + 1) < heap_size; i = child) {
		if (child + 1 < heap_size && before(heap[child + 1], heap[child]))
			child++;
		if (!before(heap[child], e))
			break;
		heap[i] = heap[child];
	}
	heap[i] = e;
	return top;
}

struct vcpu {
	int64_t row, stop, start;
	int resolving, next;
};

int main(int argc, char **argv)
{
	if (argc != 7)
		return 2;
	int vcpus = atoi(argv[2]), idle = atoi(argv[4]), sleepers = 0, head = -1, tail = -1;
	int64_t faults = atoll(argv[3]), total = 0, last = 0, walk = atoll(argv[5]);
	int64_t *think = malloc(sizeof(*think) * faults * vcpus), *start_ns = calloc(faults * vcpus, sizeof(*start_ns));
	int64_t *stall_ns = calloc(faults * vcpus, sizeof(*stall_ns));
	struct vcpu *vcpu = calloc(vcpus, sizeof(*vcpu));
	int handlers = idle, *free_tail = malloc(sizeof(int) * handlers), tails = handlers;
	FILE *file = fopen(argv[1], "rb");
	struct timespec begin, end;

	if (!file || fread(tables, sizeof(tables), 1, file) != 1 ||
	    fread(think, sizeof(*think), faults * vcpus, file) != (size_t)(faults * vcpus))
		return 1;
	seed = strtoull(argv[6], NULL, 10);
	heap = malloc(sizeof(*heap) * (vcpus + handlers + 1));
	for (int h = 0; h < handlers; h++)
		free_tail[h] = vcpus + handlers - 1 - h;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int v = 0; v < vcpus; v++) {
		vcpu[v] = (struct vcpu){ .row = v * faults, .stop = (v + 1) * faults, .start = think[v * faults] };
		push(vcpu[v].start + sample(TRAP, vcpu[v].row), v);
	}
	while (heap_size) {
		struct event e = pop();

		if (e.slot >= vcpus) { /* a handler is back at its read() */
			free_tail[tails++] = e.slot;
			if (head < 0) {
				idle++;
				continue;
			}
			struct vcpu *w = &vcpu[head];
			push(e.time + sample(FETCH, w->row) + sample(RESOLVE, w->row), head);
			w->resolving = 1;
			head = w->next;
			continue;
		}
		struct vcpu *v = &vcpu[e.slot];
		if (!v->resolving) { /* the message is in the queue */
			sleepers++;
			if (idle) {
				idle--;
				v->resolving = 1;
				push(e.time + sample(MESSAGE, v->row) + sample(FETCH, v->row) + sample(RESOLVE, v->row), e.slot);
			} else {
				v->next = -1;
				if (head < 0)
					head = e.slot;
				else
					vcpu[tail].next = e.slot;
				tail = e.slot;
			}
			continue;
		}
		int64_t placed = e.time + walk * --sleepers, resumed = placed + sample(WAKE, v->row);
		push(placed + sample(LOOP, v->row), free_tail[--tails]);
		start_ns[v->row] = v->start;
		stall_ns[v->row] = resumed - v->start;
		total += resumed - v->start;
		last = resumed > last ? resumed : last;
		v->resolving = 0;
		if (++v->row < v->stop) {
			v->start = resumed + think[v->row];
			push(v->start + sample(TRAP, v->row), e.slot);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld %lld %lld\n", (end.tv_sec - begin.tv_sec) * 1000000000ll + end.tv_nsec - begin.tv_nsec,
	       (long long)total, (long long)last);
	return 0;
}
