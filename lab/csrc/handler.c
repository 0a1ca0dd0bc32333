/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fault handler that is a process of its own, as Firecracker's: it listens on a Unix socket; the VMM connects, sends
 * where guest memory lies as JSON and the userfaultfd with it (SCM_RIGHTS), and keeps the connection.
 */
#define _GNU_SOURCE
#include "abi.h"
#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAPPING "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":%llu}]"

static int peer_socket(struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address->sun_family = AF_UNIX;
	if (fd < 0)
		die_errno("socket");
	if (!L.peer || strlen(L.peer) >= sizeof(address->sun_path))
		die(2, "no socket of a handler process, or its path is too long");
	strcpy(address->sun_path, L.peer);
	return fd;
}

void send_userfaultfd(struct lab *lab)
{
	struct sockaddr_un address = {0};
	int fd = peer_socket(&address);
	char text[256];
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {text, 0};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room)};

	iov.iov_len = (size_t)snprintf(text, sizeof(text), MAPPING, (unsigned long long)(uintptr_t)lab->data,
				       (unsigned long long)lab->data_bytes, (unsigned long long)lab->granule);
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &lab->uffd[0], sizeof(int));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) || sendmsg(fd, &message, 0) < 0)
		die(1, "cannot send the userfaultfd to the handler process at %s: %s", L.peer, strerror(errno));
	if (read(fd, text, 1) != 1)
		die(1, "the handler process at %s did not take the userfaultfd", L.peer);
	/* the socket stays open: it is how a recorder finds who handles */
}

static void take_userfaultfd(int listening)
{
	int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	char text[256] = "";
	unsigned long long base, size, granule;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {text, sizeof(text) - 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room)};

	if (fd < 0 || recvmsg(fd, &message, MSG_CMSG_CLOEXEC) <= 0 || control.header.cmsg_type != SCM_RIGHTS)
		die_errno("no userfaultfd came");
	if (sscanf(text, MAPPING, &base, &size, &granule) != 3 || size != L.data_bytes || granule != L.granule)
		die(1, "the VMM's memory is not what was agreed: %s", text);
	memcpy(&L.uffd[0], CMSG_DATA(&control.header), sizeof(int));
	L.uffds = 1;
	L.data = (char *)(uintptr_t)base; /* an address of the other process: never dereferenced here */
	if (write(fd, "+", 1) != 1)
		die_errno("answer to the VMM");
}

int handle_faults(int argc, char **argv)
{
	struct sockaddr_un address = {0};
	int listening;
	char byte, name[32];

	parse(argc, argv);
	raise_priority(L.nice);
	load_lists(); /* how many accessors there are: handlers are pinned after them */
	handle_signals();
	fetch_setup();
	listening = peer_socket(&address);
	if (bind(listening, (struct sockaddr *)&address, sizeof(address)) || listen(listening, 1))
		die_errno(L.peer);
	printf("{\"pid\": %d}\n", getpid());
	fflush(stdout);
	take_userfaultfd(listening);
	if (L.snapshot_path && (L.snapshot_fd = open(L.snapshot_path, O_RDONLY | O_CLOEXEC)) < 0)
		die_errno(L.snapshot_path);
	track_present();
	start_handlers();
	printf("{\"threads\": [");
	for (int i = 0; i < L.handlers; i++)
		printf("%s{\"tid\": %d, \"role\": \"handler\", \"index\": %d}", i ? ", " : "", L.handler_fetcher[i].tid, i);
	printf("]}\n");
	fflush(stdout);
	if (read(STDIN_FILENO, &byte, 1) != 1)
		return 0;
	pthread_mutex_lock(&L.lock);
	L.go = true;
	pthread_cond_broadcast(&L.cond);
	pthread_mutex_unlock(&L.lock);
	if (read(STDIN_FILENO, &byte, 1) != 1)
		return 0;
	L.stop = true;
	for (int i = 0; i < L.handlers; i++)
		join_kicking(L.handler_thread[i]);
	for (int i = 0; i < L.handlers; i++) {
		snprintf(name, sizeof(name), "service-h%d.bin", i);
		write_file(name, L.handler_fetcher[i].log.rows, L.handler_fetcher[i].log.count * sizeof(struct service));
	}
	printf("{\"problem\": \"%s\"}\n", L.problem);
	fflush(stdout);
	return 0;
}
