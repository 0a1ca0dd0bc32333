/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* KVM tracepoints that need state; the others are generated from the table. */

#ifdef TP_kvm__kvm_try_async_get_page
int on_kvm__kvm_try_async_get_page(struct tp_kvm__kvm_try_async_get_page *args)
{
	struct task *task = current_task();
	u32 tid = bpf_get_current_pid_tgid();
	u64 gva = args->gva;

	if (task)
		async_pf.update(&gva, &tid);
	return 0;
}
#endif

#ifdef TP_kvm__kvm_async_pf_completed
/* Runs in a kernel worker: whose page it is, only the guest address tells. */
int on_kvm__kvm_async_pf_completed(struct tp_kvm__kvm_async_pf_completed *args)
{
	u64 gva = args->gva;
	u32 *waiter = async_pf.lookup(&gva);
	struct task *task;
	struct event *e;
	u32 tid;

	if (!waiter)
		return 0;
	tid = *waiter;
	async_pf.delete(&gva);
	task = tasks.lookup(&tid);
	if (!task)
		return 0;
	e = reserve(PROBE_kvm__kvm_async_pf_completed, GROUP_KVM, task, bpf_get_current_pid_tgid(),
		    KIND_KVM_ASYNC_PF_COMPLETED);
	if (!e)
		return 0;
	e->addr = gva;
	e->ip = args->address;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}
#endif
