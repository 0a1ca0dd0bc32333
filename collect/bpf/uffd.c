/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* System calls on userfaultfds and KVM file descriptors. */

#define UFFD_IOC_NEW 0xAA00
#define UFFDIO_API_NR 0xC018AA3F
#define UFFDIO_REGISTER_NR 0xC020AA00
#define UFFDIO_UNREGISTER_NR 0x8010AA01
#define UFFDIO_WAKE_NR 0x8010AA02
#define UFFDIO_COPY_NR 0xC028AA03
#define UFFDIO_ZEROPAGE_NR 0xC020AA04
#define UFFDIO_MOVE_NR 0xC028AA05
#define UFFDIO_WRITEPROTECT_NR 0xC018AA06
#define UFFDIO_CONTINUE_NR 0xC020AA07
#define UFFDIO_POISON_NR 0xC020AA08
#define KVM_CREATE_VM_NR 0xAE01
#define KVM_RUN_NR 0xAE80
#define KVM_CREATE_VCPU_NR 0xAE41
#define KVM_SET_USER_MEMORY_REGION_NR 0x4020AE46
#define KVM_SET_USER_MEMORY_REGION2_NR 0x40A0AE49
#define KVM_GET_DIRTY_LOG_NR 0x4010AE42
#define KVM_CLEAR_DIRTY_LOG_NR 0xC018AEC0
#define KVM_RESET_DIRTY_RINGS_NR 0xAEC7

#define EAGAIN_NR 11
#define MSG_BYTES 32
#define MSG_MAX 16

static inline void know_uffd(u32 tgid, s32 fd)
{
	u64 key = fd_key(tgid, fd);
	u32 one = 1;

	uffds.update(&key, &one);
}

#ifdef TP_syscalls__sys_exit_userfaultfd
int on_syscalls__sys_exit_userfaultfd(struct tp_syscalls__sys_exit_userfaultfd *args)
{
	struct task *task = current_task();

	if (task && args->ret >= 0)
		know_uffd(task->tgid, args->ret);
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_close
int on_syscalls__sys_enter_close(struct tp_syscalls__sys_enter_close *args)
{
	struct task *task = current_task();
	u64 key;

	if (!task)
		return 0;
	key = fd_key(task->tgid, args->fd);
	uffds.delete(&key);
	vcpus.delete(&key);
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_read
int on_syscalls__sys_enter_read(struct tp_syscalls__sys_enter_read *args)
{
	struct task *task = current_task();

	if (!task)
		return 0;
	task->faulting = 0;
	task->call = IN_NOTHING;
	if (args->count < MSG_BYTES)
		return 0;
	task->call = IN_READ;
	task->fd = args->fd;
	task->arg[0] = args->buf;
	task->enter_ns = bpf_ktime_get_ns();
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_read
/* struct uffd_msg as words: event and zeroes, flags (or other), address (or other), thread id */
int on_syscalls__sys_exit_read(struct tp_syscalls__sys_exit_read *args)
{
	struct task *task = current_task();
	u64 msg[4], key, now, left;
	struct event *e;
	u32 tid, i;

	if (!task || task->call != IN_READ)
		return 0;
	task->call = IN_NOTHING;
	if (args->ret <= 0 || (u64)args->ret % MSG_BYTES)	/* unsigned: BPF divides nothing else */
		return 0;
	left = (u64)args->ret / MSG_BYTES;
	now = bpf_ktime_get_ns();
	tid = bpf_get_current_pid_tgid();
	key = fd_key(task->tgid, task->fd);
	if (!uffds.lookup(&key)) {
		/* Received over a socket or duplicated: known by the shape of what it says, then by its first ioctl. */
		if (bpf_probe_read_user(msg, sizeof(msg), (void *)task->arg[0]))
			return 0;
		if (msg[0] < 0x12 || msg[0] > 0x16 || !msg[2])
			return 0;
		know_uffd(task->tgid, task->fd);
	}
	for (i = 0; i < MSG_MAX; i++) {
		if (i >= left)
			break;
		if (bpf_probe_read_user(msg, sizeof(msg), (void *)(task->arg[0] + i * MSG_BYTES))) {
			count_lost(PROBE_syscalls__sys_exit_read);
			continue;
		}
		e = reserve(PROBE_syscalls__sys_exit_read, GROUP_FAULTS, task, tid, KIND_UFFD_MSG);
		if (!e)
			continue;
		e->ts_ns = now;
		e->fd = task->fd;
		e->ip = msg[0] & 0xff;
		e->code = msg[1];
		e->addr = msg[2];
		e->value = msg[3] & 0xffffffff;
		e->size = left;
		e->dur_ns = now - task->enter_ns;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	for (; i < left && i < 4096; i++)
		count_lost(PROBE_syscalls__sys_exit_read);
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_ioctl
int on_syscalls__sys_enter_ioctl(struct tp_syscalls__sys_enter_ioctl *args)
{
	struct task *task = current_task();
	u32 cmd, type, *vcpu;
	struct event *e;
	u64 key;

	if (FOLLOW_ALL_VMS && !task && (args->cmd == KVM_CREATE_VM_NR || args->cmd == KVM_RUN_NR)) {
		u32 tgid = bpf_get_current_pid_tgid() >> 32;

		targets.update(&tgid, &tgid);
		task = current_task();
	}
	if (!task)
		return 0;
	task->faulting = 0;
	task->call = IN_NOTHING;
	cmd = args->cmd;
	type = cmd >> 8 & 0xff;
	if (type != 0xAA && type != 0xAE)
		return 0;
	task->fd = args->fd;
	task->arg[0] = args->arg;
	task->arg[1] = cmd;
	task->enter_ns = bpf_ktime_get_ns();
	if (type == 0xAA) {
		task->call = IN_UFFD_IOCTL;
		return 0;
	}
	task->call = IN_KVM_IOCTL;
	if (cmd != KVM_RUN_NR)
		return 0;
	task->call = IN_KVM_RUN;
	task->blocked = 0;
	if (task->vcpu_fd != task->fd) {
		key = fd_key(task->tgid, task->fd);
		vcpu = vcpus.lookup(&key);
		if (vcpu) {
			task->vcpu = *vcpu;
			task->vcpu_fd = task->fd;
		}
	}
	if (!WANTED_KVM)
		return 0;
	e = reserve(PROBE_syscalls__sys_enter_ioctl, GROUP_KVM, task, bpf_get_current_pid_tgid(), KIND_KVM_RUN_ENTER);
	if (e) {
		e->fd = task->fd;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_ioctl

static inline int uffd_ioctl(struct task *task, u64 now, s64 ret)
{
	u32 cmd = task->arg[1], kind = 0;
	u64 w[5] = {};
	u64 mode = 0;
	s64 done = ret;
	int bytes = 32;
	struct event *e;

	if (cmd == UFFDIO_COPY_NR || cmd == UFFDIO_MOVE_NR)
		bytes = 40;
	else if (cmd == UFFDIO_WAKE_NR || cmd == UFFDIO_UNREGISTER_NR)
		bytes = 16;
	else if (cmd == UFFDIO_WRITEPROTECT_NR || cmd == UFFDIO_API_NR)
		bytes = 24;
	if (bytes == 40)
		bpf_probe_read_user(w, 40, (void *)task->arg[0]);
	else if (bytes == 32)
		bpf_probe_read_user(w, 32, (void *)task->arg[0]);
	else if (bytes == 24)
		bpf_probe_read_user(w, 24, (void *)task->arg[0]);
	else
		bpf_probe_read_user(w, 16, (void *)task->arg[0]);

	mode = w[2];
	switch (cmd) {
	case UFFDIO_COPY_NR:
		kind = KIND_UFFD_COPY;
		break;
	case UFFDIO_MOVE_NR:
		kind = KIND_UFFD_MOVE;
		break;
	case UFFDIO_ZEROPAGE_NR:
		kind = KIND_UFFD_ZEROPAGE;
		done = w[3];
		break;
	case UFFDIO_CONTINUE_NR:
		kind = KIND_UFFD_CONTINUE;
		done = w[3];
		break;
	case UFFDIO_POISON_NR:
		kind = KIND_UFFD_POISON;
		done = w[3];
		break;
	case UFFDIO_WRITEPROTECT_NR:
		kind = KIND_UFFD_WRITEPROTECT;
		break;
	case UFFDIO_WAKE_NR:
		kind = KIND_UFFD_WAKE;
		break;
	case UFFDIO_REGISTER_NR:
		kind = KIND_UFFD_REGISTER;
		break;
	case UFFDIO_UNREGISTER_NR:
		kind = KIND_UFFD_UNREGISTER;
		break;
	case UFFDIO_API_NR:
		kind = KIND_UFFD_API;
		break;
	default:
		return 0;
	}
	if (bytes == 40) {		/* dst, src, len, mode, done */
		w[1] = w[2];
		mode = w[3];
		done = w[4];
	}
	/*
	 * The result field counts when the call went well, when it stopped half way (EAGAIN) or repeats the error;
	 * a call refused early leaves whatever stood there.
	 */
	if (ret < 0 && !(done < 0 && done > -4096) && !(ret == -EAGAIN_NR && done > 0 && done < w[1]))
		done = ret;

	e = reserve(PROBE_syscalls__sys_exit_ioctl, GROUP_FAULTS, task, bpf_get_current_pid_tgid(), kind);
	if (!e)
		return 0;
	e->ts_ns = now;
	e->fd = task->fd;
	e->addr = w[0];
	e->size = w[1];
	e->code = mode;
	e->value = done;
	e->dur_ns = now - task->enter_ns;
	if (cmd == UFFDIO_API_NR) {	/* api, features, ioctls */
		e->addr = 0;
		e->size = 0;
		e->code = w[1];
	}
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}

static inline void know_range(u32 tgid, u64 start, u64 size)
{
	struct vm_range range = {};
	u32 zero = 0, *seen = memslots_seen.lookup(&zero), at;

	if (!seen)
		return;
	at = RANGES + (*seen & (RANGES - 1));
	__sync_fetch_and_add(seen, 1);	/* its result may not be used: older compilers cannot */
	range.start = start;
	range.end = start + size;
	range.tgid = tgid;
	ranges.update(&at, &range);
}

static inline int kvm_ioctl(struct task *task, u64 now, s64 ret)
{
	u32 cmd = task->arg[1], kind = 0;
	u64 w[4] = {}, key;
	struct event *e;
	u32 vcpu;

	switch (cmd) {
	case KVM_RUN_NR:
		kind = KIND_KVM_RUN_EXIT;
		break;
	case KVM_CREATE_VCPU_NR:
		if (ret >= 0) {
			key = fd_key(task->tgid, ret);
			vcpu = task->arg[0];
			vcpus.update(&key, &vcpu);
		}
		return 0;
	case KVM_SET_USER_MEMORY_REGION_NR:
	case KVM_SET_USER_MEMORY_REGION2_NR:
		kind = KIND_KVM_SET_MEMSLOT;
		bpf_probe_read_user(w, 32, (void *)task->arg[0]);
		if (ret == 0 && w[2])
			know_range(task->tgid, w[3], w[2]);
		break;
	case KVM_GET_DIRTY_LOG_NR:
		kind = KIND_KVM_GET_DIRTY_LOG;
		bpf_probe_read_user(w, 4, (void *)task->arg[0]);
		break;
	case KVM_CLEAR_DIRTY_LOG_NR:
		kind = KIND_KVM_CLEAR_DIRTY_LOG;
		bpf_probe_read_user(w, 4, (void *)task->arg[0]);
		break;
	case KVM_RESET_DIRTY_RINGS_NR:
		kind = KIND_KVM_RESET_DIRTY_RINGS;
		break;
	default:
		return 0;
	}
	e = reserve(PROBE_syscalls__sys_exit_ioctl, GROUP_KVM, task, bpf_get_current_pid_tgid(), kind);
	if (!e)
		return 0;
	e->ts_ns = now;
	e->fd = task->fd;
	e->code = w[0];			/* slot, flags */
	e->addr = w[1];			/* guest physical address */
	e->size = w[2];
	e->ip = w[3];			/* userspace address */
	e->value = ret;
	e->dur_ns = now - task->enter_ns;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}

int on_syscalls__sys_exit_ioctl(struct tp_syscalls__sys_exit_ioctl *args)
{
	struct task *task = current_task();
	u64 now = bpf_ktime_get_ns();
	s64 ret = args->ret;
	u32 call;

	if (!task)
		return 0;
	call = task->call;
	task->call = IN_NOTHING;
	if (call == IN_UFFD_IOCTL) {
		if ((u32)task->arg[1] == UFFD_IOC_NEW) {
			if (ret >= 0)
				know_uffd(task->tgid, ret);
			return 0;
		}
		if (ret == 0)
			know_uffd(task->tgid, task->fd);
		if (WANTED_FAULTS)
			return uffd_ioctl(task, now, ret);
	}
	if (WANTED_KVM && (call == IN_KVM_IOCTL || call == IN_KVM_RUN))
		return kvm_ioctl(task, now, ret);
	return 0;
}
#endif
