/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Threads on and off the CPU. These tracepoints carry thread ids only: `tasks` knows whose they are. */

#define EXIT_DEAD_STATE 0x10
#define EXIT_ZOMBIE_STATE 0x20

#ifdef TP_sched__sched_switch
int on_sched__sched_switch(struct tp_sched__sched_switch *args)
{
	u32 prev = args->prev_pid, next = args->next_pid;
	/* Beyond the first byte stands only "preempted" (0x100): runnable, as 0 is. */
	u64 state = args->prev_state & 0xff;
	struct task *task = tasks.lookup(&prev);
	struct event *e;

	if (task) {
		/*
		 * A userfault may also end without a sleep of its own: the handler it woke preempts it and has the page
		 * in place before it would have slept. That looks like any preemption.
		 */
		if (state || task->faulting || task->call == IN_KVM_RUN)
			task->blocked = 1;
		if (WANTED_SCHED) {
			e = reserve(PROBE_sched__sched_switch, GROUP_SCHED, task, prev, KIND_SCHED_OUT);
			if (e) {
				e->code = state;
				e->value = next;
				events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
			}
		}
		if (task->exiting && (state & (EXIT_DEAD_STATE | EXIT_ZOMBIE_STATE)))
			tasks.delete(&prev);
	}
	if (!WANTED_SCHED)
		return 0;
	task = tasks.lookup(&next);
	if (task) {
		e = reserve(PROBE_sched__sched_switch, GROUP_SCHED, task, next, KIND_SCHED_IN);
		if (e) {
			e->value = prev;
			events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
		}
	}
	return 0;
}
#endif

#ifdef TP_sched__sched_waking
static inline int waking(u32 tid)
{
	struct task *task = tasks.lookup(&tid);
	struct event *e;

	if (!task)
		return 0;
	e = reserve(PROBE_sched__sched_waking, GROUP_SCHED, task, tid, KIND_SCHED_WAKING);
	if (!e)
		return 0;
	e->value = (u32)bpf_get_current_pid_tgid();
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}

int on_sched__sched_waking(struct tp_sched__sched_waking *args)
{
	return waking(args->pid);
}

#ifdef TASK_PID_OFFSET
/*
 * Wake-ups come from interrupts too, and an ordinary tracepoint program does not run where another one was
 * interrupted. A raw one does; its only argument is the task, whose pid lies where the kernel's own BTF says.
 */
int on_raw_sched__sched_waking(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tid = 0;

	bpf_probe_read_kernel(&tid, sizeof(tid), (void *)(ctx->args[0] + TASK_PID_OFFSET));
	return waking(tid);
}
#endif
#endif
