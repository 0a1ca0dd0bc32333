/* The path of uffd-missing as anybody would write it in C: a binary heap of events, one state a vCPU, a FIFO before the
 * handlers. It reads what benchmarks/engine.py wrote (think times and sampling tables) and uses the same counter-based
 * randomness and order of events on one instant, so its total stall and run time must equal the engine's; prints
 * "ns total_stall_ns run_time_ns".
 *
 * usage: engine DATA VCPUS FAULTS_PER_VCPU HANDLERS WALK_NS SEED IN_VAIN EACH ONCE SERIAL SERIAL_CONTENDED LOCK LOCK_CONTENDED
 *               HERD COLD
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

	z = z ? z : 0x9E3779B97F4A7C15ull; /* the mix leaves 0 as it is */
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
	int slot; /* a vCPU; or vcpus + n for the n-th tail of a handler, -1 for that of a single one: it comes first */
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
	int64_t row, stop, start, inside;
	int stage, next;
};

enum { FAULT, SERIAL, QUEUE, ACQUIRE, READ, PLACE };

struct lock {
	int64_t free_at, alone, contended;
};

static int64_t hold(struct lock *lock, int64_t now, int64_t longer)
{
	int64_t begin = lock->free_at > now ? lock->free_at : now;

	lock->free_at = begin + (lock->free_at > now ? lock->contended : lock->alone) + longer;
	return lock->free_at;
}

int main(int argc, char **argv)
{
	if (argc != 16)
		return 2;
	int vcpus = atoi(argv[2]), idle = atoi(argv[4]), sleepers = 0, head = -1, tail = -1;
	int64_t faults = atoll(argv[3]), total = 0, last = 0, walk = atoll(argv[5]);
	int64_t each = atoll(argv[8]), once = atoll(argv[9]), herd = atoll(argv[14]), cold = atoll(argv[15]);
	int in_vain = atoi(argv[7]); /* so many idle readers a message wakes beside the one that takes it, at most */
	struct lock serial = { 0, atoll(argv[10]), atoll(argv[11]) }, queue = { 0, atoll(argv[12]), atoll(argv[13]) };
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
		free_tail[h] = handlers == 1 ? -1 : vcpus + handlers - 1 - h;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int v = 0; v < vcpus; v++) {
		vcpu[v] = (struct vcpu){ .row = v * faults, .stop = (v + 1) * faults, .start = think[v * faults] };
		push(vcpu[v].start, v);
	}
	while (heap_size) {
		struct event e = pop();

		if (handlers > 1 && e.time > last) /* as the engine: of a single handler the way back has no event of its own */
			last = e.time;
		if (e.slot < 0 || e.slot >= vcpus) { /* a handler is back at its read() */
			free_tail[tails++] = e.slot;
			if (head < 0) {
				idle++;
				continue;
			}
			int woken = head;
			struct vcpu *w = &vcpu[woken];
			head = w->next;
			if (handlers == 1) { /* known ahead: goes on in its own turn */
				w->stage = READ;
				push(e.time, woken);
				continue;
			}
			w->stage = PLACE;
			push(hold(&queue, e.time, 0) + sample(FETCH, w->row) + sample(RESOLVE, w->row), woken);
			continue;
		}
		struct vcpu *v = &vcpu[e.slot];
		int64_t others = 0, slower = 0, t = e.time;
		if (v->stage == FAULT || v->stage == PLACE) { /* who is in a fault makes one longer */
			for (int k = 0; k < vcpus; k++)
				others += vcpu[k].inside > t;
			slower = others ? each * others + once : 0;
		}
		switch (v->stage) {
		case FAULT:
			v->inside = t + slower + sample(TRAP, v->row);
			v->stage = SERIAL;
			push(v->inside, e.slot);
			continue;
		case SERIAL:
			v->stage = QUEUE;
			push(hold(&serial, t, 0), e.slot);
			continue;
		case QUEUE: /* the message is in the queue */
			sleepers++;
			v->stage = ACQUIRE;
			others = idle - 1 < in_vain ? idle - 1 : in_vain;
			push(hold(&queue, t, others > 0 ? herd * others : 0), e.slot);
			continue;
		case ACQUIRE:
			if (idle) {
				idle--;
				v->stage = READ;
				push(t + sample(MESSAGE, v->row), e.slot);
			} else {
				v->next = -1;
				if (head < 0)
					head = e.slot;
				else
					vcpu[tail].next = e.slot;
				tail = e.slot;
			}
			continue;
		case READ:
			v->stage = PLACE;
			push(hold(&queue, t, 0) + sample(FETCH, v->row) + sample(RESOLVE, v->row), e.slot);
			continue;
		}
		sleepers--;
		int64_t longer = walk * sleepers + cold * (sleepers < handlers - 1 ? sleepers : handlers - 1);
		int64_t placed = hold(&queue, t, longer), resumed = placed + slower + sample(WAKE, v->row);
		v->inside = resumed;
		push(placed + sample(LOOP, v->row), free_tail[--tails]);
		start_ns[v->row] = v->start;
		stall_ns[v->row] = resumed - v->start;
		total += resumed - v->start;
		last = resumed > last ? resumed : last;
		v->stage = FAULT;
		if (++v->row < v->stop) {
			v->start = resumed + think[v->row];
			push(v->start, e.slot);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld %lld %lld\n", (end.tv_sec - begin.tv_sec) * 1000000000ll + end.tv_nsec - begin.tv_nsec,
	       (long long)total, (long long)last);
	return 0;
}
