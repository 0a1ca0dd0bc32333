/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Page faults of the targets' threads, and the ends of faults that had to wait. */

static inline int page_fault(u32 probe, u8 kind, u64 address, u64 ip, u64 error_code)
{
	struct task *task = current_task();
	struct event *e;

	if (!task)
		return 0;
	task->faulting = 1;
	task->blocked = 0;
	e = reserve(probe, GROUP_FAULTS, task, bpf_get_current_pid_tgid(), kind);
	if (!e)
		return 0;
	e->addr = address;
	e->ip = ip;
	e->code = error_code;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}

#ifdef TP_exceptions__page_fault_user
int on_exceptions__page_fault_user(struct tp_exceptions__page_fault_user *args)
{
	return page_fault(PROBE_exceptions__page_fault_user, KIND_PAGE_FAULT_USER, args->address, args->ip,
			  args->error_code);
}
#endif

#ifdef TP_exceptions__page_fault_kernel
int on_exceptions__page_fault_kernel(struct tp_exceptions__page_fault_kernel *args)
{
	return page_fault(PROBE_exceptions__page_fault_kernel, KIND_PAGE_FAULT_KERNEL, args->address, args->ip,
			  args->error_code);
}
#endif

#ifdef TP_mmap_lock__mmap_lock_released
/*
 * Only the first release after the thread left the CPU inside a page fault or inside KVM_RUN: that is the fault's retry
 * coming to its end. All other releases would be noise, and there are many.
 */
int on_mmap_lock__mmap_lock_released(struct tp_mmap_lock__mmap_lock_released *args)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id;
	struct task *task = tasks.lookup(&tid);
	struct event *e;

	if (!task || !task->blocked || !(task->faulting || task->call == IN_KVM_RUN))
		return 0;
	task->blocked = 0;
	e = reserve(PROBE_mmap_lock__mmap_lock_released, GROUP_FAULTS, task, tid, KIND_MMAP_LOCK_RELEASED);
	if (!e)
		return 0;
	e->code = args->write;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}
#endif

#ifdef TP_kprobe__handle_userfault
/* Twice per KVM fault: a try that may not wait comes first. The structure lies where the kernel's own BTF says. */
int on_kprobe__handle_userfault(struct pt_regs *ctx)
{
	struct tp_kprobe__handle_userfault *vmf = (void *)PT_REGS_PARM1(ctx);
	struct task *task = current_task();
	struct event *e;
	u64 address = 0;
	u32 flags = 0;

	if (!task)
		return 0;
	bpf_probe_read_kernel(&address, sizeof(address), &vmf->address);
	bpf_probe_read_kernel(&flags, sizeof(flags), &vmf->flags);
	e = reserve(PROBE_kprobe__handle_userfault, GROUP_FAULTS, task, bpf_get_current_pid_tgid(),
		    KIND_HANDLE_USERFAULT);
	if (!e)
		return 0;
	e->addr = address;
	e->code = flags;
	e->value = PT_REGS_PARM2(ctx);
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}
#endif
