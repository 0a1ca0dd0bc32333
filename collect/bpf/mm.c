/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changes of the targets' address space. */

static inline struct task *mm_enter(void)
{
	struct task *task = current_task();

	if (task) {
		task->faulting = 0;
		task->call = IN_MM;
		task->enter_ns = bpf_ktime_get_ns();
	}
	return task;
}

static inline struct event *mm_exit(u32 probe, u8 kind, struct task *task)
{
	struct event *e;

	if (task->call != IN_MM)
		return 0;
	task->call = IN_NOTHING;
	e = reserve(probe, GROUP_MM, task, bpf_get_current_pid_tgid(), kind);
	if (!e)
		return 0;
	e->dur_ns = e->ts_ns - task->enter_ns;
	e->addr = task->arg[0];
	e->size = task->arg[1];
	e->code = task->arg[2];
	return e;
}

static inline s64 error_or_zero(s64 ret)
{
	return ret < 0 && ret > -4096 ? ret : 0;
}

#ifdef TP_syscalls__sys_enter_mmap
int on_syscalls__sys_enter_mmap(struct tp_syscalls__sys_enter_mmap *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = 0;
		task->arg[1] = args->len;
		task->arg[2] = (u32)args->prot | (u64)args->flags << 32;
		task->fd = args->fd;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_mmap
int on_syscalls__sys_exit_mmap(struct tp_syscalls__sys_exit_mmap *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_mmap, KIND_MMAP, task) : 0;

	if (e) {
		e->value = error_or_zero(args->ret);
		e->addr = e->value ? 0 : args->ret;
		e->fd = task->fd;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_munmap
int on_syscalls__sys_enter_munmap(struct tp_syscalls__sys_enter_munmap *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = args->addr;
		task->arg[1] = args->len;
		task->arg[2] = 0;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_munmap
int on_syscalls__sys_exit_munmap(struct tp_syscalls__sys_exit_munmap *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_munmap, KIND_MUNMAP, task) : 0;

	if (e) {
		e->value = args->ret;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_madvise
int on_syscalls__sys_enter_madvise(struct tp_syscalls__sys_enter_madvise *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = args->start;
		task->arg[1] = args->len_in;
		task->arg[2] = (u32)args->behavior;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_madvise
int on_syscalls__sys_exit_madvise(struct tp_syscalls__sys_exit_madvise *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_madvise, KIND_MADVISE, task) : 0;

	if (e) {
		e->value = args->ret;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_fallocate
int on_syscalls__sys_enter_fallocate(struct tp_syscalls__sys_enter_fallocate *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = args->offset;
		task->arg[1] = args->len;
		task->arg[2] = (u32)args->mode;
		task->fd = args->fd;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_fallocate
int on_syscalls__sys_exit_fallocate(struct tp_syscalls__sys_exit_fallocate *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_fallocate, KIND_FALLOCATE, task) : 0;

	if (e) {
		e->fd = task->fd;
		e->value = args->ret;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_mremap
int on_syscalls__sys_enter_mremap(struct tp_syscalls__sys_enter_mremap *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = args->addr;
		task->arg[1] = args->new_len;
		task->arg[2] = 0;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_mremap
int on_syscalls__sys_exit_mremap(struct tp_syscalls__sys_exit_mremap *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_mremap, KIND_MREMAP, task) : 0;

	if (e) {
		e->value = error_or_zero(args->ret);
		e->ip = e->value ? 0 : args->ret;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_enter_mprotect
int on_syscalls__sys_enter_mprotect(struct tp_syscalls__sys_enter_mprotect *args)
{
	struct task *task = mm_enter();

	if (task) {
		task->arg[0] = args->start;
		task->arg[1] = args->len;
		task->arg[2] = (u32)args->prot;
	}
	return 0;
}
#endif

#ifdef TP_syscalls__sys_exit_mprotect
int on_syscalls__sys_exit_mprotect(struct tp_syscalls__sys_exit_mprotect *args)
{
	struct task *task = current_task();
	struct event *e = task ? mm_exit(PROBE_syscalls__sys_exit_mprotect, KIND_MPROTECT, task) : 0;

	if (e) {
		e->value = args->ret;
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	}
	return 0;
}
#endif
