/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where missing content comes from: a delay (fixed, exponential, lognormal), or a page server over a socket.
 * A delay below spin_below_ns is spun, as a timer would overshoot it; above, the thread sleeps and leaves its core.
 */
#define _GNU_SOURCE
#include "lab.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static enum { FETCH_NONE, FETCH_FIXED, FETCH_EXPONENTIAL, FETCH_LOGNORMAL, FETCH_SOCKET, FETCH_SNAPSHOT } kind;
static double mean_ns, sigma;

/* Form: none | fixed:NS | exp:MEAN_NS | lognormal:MEAN_NS:SIGMA | unix:PATH | tcp:PORT | snapshot */
void fetch_setup(void)
{
	const char *f = L.fetch;

	if (!strncmp(f, "fixed:", 6)) {
		mean_ns = atof(f + 6);
		kind = mean_ns > 0 ? FETCH_FIXED : FETCH_NONE;
	} else if (!strncmp(f, "exp:", 4)) {
		kind = FETCH_EXPONENTIAL;
		mean_ns = atof(f + 4);
	} else if (!strncmp(f, "lognormal:", 10)) {
		kind = FETCH_LOGNORMAL;
		if (sscanf(f + 10, "%lf:%lf", &mean_ns, &sigma) != 2)
			die(2, "bad fetch '%s'", f);
	} else if (!strncmp(f, "unix:", 5) || !strncmp(f, "tcp:", 4)) {
		kind = FETCH_SOCKET;
	} else if (!strcmp(f, "snapshot")) {
		kind = FETCH_SNAPSHOT;
	} else if (strcmp(f, "none")) {
		die(2, "bad fetch '%s'", f);
	}
}

static int address_of(const char *address, struct sockaddr_storage *out, socklen_t *length)
{
	memset(out, 0, sizeof(*out));
	if (!strncmp(address, "unix:", 5)) {
		struct sockaddr_un *un = (struct sockaddr_un *)out;

		un->sun_family = AF_UNIX;
		if (strlen(address + 5) >= sizeof(un->sun_path))
			die(2, "socket path too long: %s", address + 5);
		memcpy(un->sun_path, address + 5, strlen(address + 5));
		*length = sizeof(*un);
		return AF_UNIX;
	}
	struct sockaddr_in *in = (struct sockaddr_in *)out;

	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)atoi(address + 4));
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*length = sizeof(*in);
	return AF_INET;
}

void fetcher_open(struct fetcher *f, int index)
{
	f->rng = L.seed * 0x9e3779b97f4a7c15ull + (uint64_t)(index + 1) * 0xbf58476d1ce4e5b9ull;
	f->socket = -1;
	f->buffer = mmap(NULL, L.granule, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (f->buffer == MAP_FAILED)
		die_errno("fetch buffer");
	f->log.capacity = 4 * (L.data_bytes / L.granule) + 4096;
	f->log.rows = map_populated(f->log.capacity * sizeof(*f->log.rows));
	if (kind == FETCH_SOCKET) {
		struct sockaddr_storage address;
		socklen_t length;
		int family = address_of(L.fetch, &address, &length), one = 1;

		f->socket = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (f->socket < 0 || connect(f->socket, (struct sockaddr *)&address, length))
			die(1, "cannot reach the page server at %s: %s", L.fetch, strerror(errno));
		if (family == AF_INET)
			setsockopt(f->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
}

static double uniform(struct fetcher *f)
{
	f->rng ^= f->rng << 13; /* xorshift64 */
	f->rng ^= f->rng >> 7;
	f->rng ^= f->rng << 17;
	return ((double)(f->rng >> 11) + 0.5) / 9007199254740992.0;
}

static int64_t draw_ns(struct fetcher *f)
{
	double mu;

	switch (kind) {
	case FETCH_FIXED:
		return (int64_t)mean_ns;
	case FETCH_EXPONENTIAL:
		return (int64_t)(-mean_ns * log(uniform(f)));
	case FETCH_LOGNORMAL:
		mu = log(mean_ns) - sigma * sigma / 2;
		return (int64_t)exp(mu + sigma * sqrt(-2 * log(uniform(f))) * cos(2 * M_PI * uniform(f)));
	default:
		return 0;
	}
}

void fill_pages(void *buffer, uint64_t first_page, uint64_t count)
{
	uint64_t *words = buffer;

	for (uint64_t p = first_page; p < first_page + count; p++, words += PAGE / 8) {
		words[WORD_NUMBER] = p;
		words[WORD_WRITE] = words[WORD_RMW] = 0;
		for (unsigned k = WORD_FILL; k < PAGE / 8; k++)
			words[k] = p * 512 + k;
	}
}

static bool transfer(int fd, void *buffer, size_t bytes, bool out)
{
	char *p = buffer;

	while (bytes) {
		ssize_t n = out ? send(fd, p, bytes, MSG_NOSIGNAL) : recv(fd, p, bytes, 0);

		if (n < 0 && errno == EINTR && !L.stop)
			continue;
		if (n <= 0)
			return false;
		p += n;
		bytes -= (size_t)n;
	}
	return true;
}

/* From the file, out of the page cache or from the disk. */
void read_snapshot(void *buffer, uint64_t first_page, uint64_t count)
{
	char *p = buffer;
	size_t left = count * PAGE;
	off_t at = (off_t)(first_page * PAGE);

	while (left) {
		ssize_t n = pread(L.snapshot_fd, p, left, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die(1, "snapshot: read: %s", n < 0 ? strerror(errno) : "it ends too early");
		p += n;
		at += n;
		left -= (size_t)n;
	}
}

/* Content of one granule into f->buffer, after the time it takes to come. */
bool fetch_granule(struct fetcher *f, uint64_t granule_index)
{
	uint64_t per = L.granule / PAGE;
	int64_t delay_ns, from_ns;

	if (kind == FETCH_SOCKET) {
		uint64_t request = granule_index;

		if (transfer(f->socket, &request, sizeof(request), true) && transfer(f->socket, f->buffer, L.granule, false))
			return true;
		if (!L.stop)
			problem("the page server at %s died: page %llu never came", L.fetch,
				(unsigned long long)(granule_index * per));
		stop_run();
		return false;
	}
	if (kind == FETCH_SNAPSHOT) {
		read_snapshot(f->buffer, granule_index * per, per);
		return true;
	}
	delay_ns = draw_ns(f);
	from_ns = delay_ns ? now_ns() : 0;
	fill_pages(f->buffer, granule_index * per, per);
	if (!delay_ns)
		return true;
	if ((uint64_t)delay_ns < L.spin_below_ns) {
		while (now_ns() < from_ns + delay_ns)
			__builtin_ia32_pause();
	} else {
		sleep_until_ns(from_ns + delay_ns);
	}
	return true;
}

void service_row(struct fetcher *f, uint64_t page, pid_t faulter, uint64_t t_msg, uint64_t t_fetched, int result)
{
	if (f->log.count < f->log.capacity)
		f->log.rows[f->log.count++] =
			(struct service){page, t_msg, t_fetched, rdtsc(), (uint32_t)faulter, (uint32_t)f->tid, result};
}

/* --- the page server: the same program, another process --- */

static uint64_t server_granule, server_rate;
static atomic_llong server_left; /* pages until the server dies, for tests of a dying source */
static int64_t server_free_ns;
static pthread_mutex_t server_lock = PTHREAD_MUTEX_INITIALIZER;

static void *serve_one(void *argument)
{
	int fd = (int)(intptr_t)argument;
	void *buffer = malloc(server_granule);
	uint64_t request;

	prctl(PR_SET_TIMERSLACK, 1);
	while (buffer && transfer(fd, &request, sizeof(request), false)) {
		if (atomic_fetch_sub(&server_left, 1) <= 0)
			_exit(1);
		fill_pages(buffer, request * (server_granule / PAGE), server_granule / PAGE);
		if (server_rate) { /* one link for all connections: each granule takes its turn on it */
			int64_t now = now_ns(), done;

			pthread_mutex_lock(&server_lock);
			if (server_free_ns < now)
				server_free_ns = now;
			server_free_ns += (int64_t)((double)server_granule * 1e9 / (double)server_rate);
			done = server_free_ns;
			pthread_mutex_unlock(&server_lock);
			if (done - now < 60000) {
				while (now_ns() < done)
					__builtin_ia32_pause();
			} else {
				sleep_until_ns(done);
			}
		}
		if (!transfer(fd, buffer, server_granule, true))
			break;
	}
	close(fd);
	free(buffer);
	return NULL;
}

/* Serve until killed, or `limit` pages; dies with its parent. Says "listening PORT" on stdout. */
int serve_pages(const char *address, uint64_t granule, uint64_t rate_bytes, uint64_t limit)
{
	struct sockaddr_storage where;
	socklen_t length;
	int family = address_of(address, &where, &length), fd, one = 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	server_granule = granule;
	server_rate = rate_bytes;
	server_left = (long long)limit;
	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&where, length) || listen(fd, 64) ||
	    getsockname(fd, (struct sockaddr *)&where, &length))
		die_errno(address);
	printf("listening %d\n", family == AF_INET ? ntohs(((struct sockaddr_in *)&where)->sin_port) : 0);
	fflush(stdout);
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		pthread_t thread;

		if (peer < 0)
			continue;
		if (family == AF_INET)
			setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)peer))
			close(peer);
		else
			pthread_detach(thread);
	}
}
