/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Following the targets: threads and processes that come and go. */

#define CLONE_THREAD_FLAG 0x00010000

#ifdef TP_task__task_newtask
int on_task__task_newtask(struct tp_task__task_newtask *args)
{
	struct task *task = current_task();
	u32 tid = args->pid, one = 1;
	struct event *e;

	if (!task)
		return 0;
	if (args->clone_flags & CLONE_THREAD_FLAG) {
		adopt(tid, task->tgid);
	} else {
		adopt(tid, tid);
		targets.update(&tid, &one);
	}
	e = reserve(PROBE_task__task_newtask, GROUP_BASE, task, bpf_get_current_pid_tgid(), KIND_THREAD_NEW);
	if (!e)
		return 0;
	e->value = tid;
	e->code = args->clone_flags;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}
#endif

#ifdef TP_sched__sched_process_exit
int on_sched__sched_process_exit(struct tp_sched__sched_process_exit *args)
{
	u32 tid = args->pid;
	struct task *task = tasks.lookup(&tid);
	struct event *e;

	if (!task)
		return 0;
	e = reserve(PROBE_sched__sched_process_exit, GROUP_BASE, task, tid, KIND_THREAD_EXIT);
	if (e)
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	/* The leader may go first: its other threads stay in `tasks`, and so do those that they make. */
	targets.delete(&tid);
#ifdef TP_sched__sched_switch
	task->exiting = 1;	/* forgotten when it leaves the CPU for the last time */
#else
	tasks.delete(&tid);
#endif
	return 0;
}
#endif

#ifdef TP_sched__sched_process_exec
/* A thread that executes takes over its leader's id. */
int on_sched__sched_process_exec(struct tp_sched__sched_process_exec *args)
{
	struct task *task = current_task();
	u32 tid = args->pid, old = args->old_pid;
	struct event *e;

	if (!task)
		return 0;
	task->vcpu = -1;
	task->vcpu_fd = -1;
	e = reserve(PROBE_sched__sched_process_exec, GROUP_BASE, task, tid, KIND_PROCESS_EXEC);
	if (e)
		events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	if (old != tid)
		tasks.delete(&old);
	return 0;
}
#endif
