/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Zaps of guest memory by mmu notifiers, and why. Any thread may zap: ksmd, kswapd, khugepaged, kcompactd, another
 * process. The tracepoint has no address space, only addresses: a zap by a thread that belongs to no target is the
 * target's whose memory lies there. A cause is kept only where the same thread has just zapped memory of a target.
 */

struct zap {
	u64 start;
	u64 end;
	u32 tgid;
	u32 pad;
};

struct migration {
	u32 reason;
	u32 tgid;	/* whose memory was zapped for it, or 0 */
};

BPF_TABLE("lru_hash", u32, struct zap, zapped, 4096);		/* tid -> its last zap, until its cause is told */
BPF_TABLE("lru_hash", u32, struct migration, migrating, 4096);	/* tid -> the batch of pages it migrates */

#ifdef TP_kvm__kvm_unmap_hva_range
static inline u32 owner_of(u64 start, u64 end)
{
	struct vm_range *r;
	u32 i, at;

	for (i = 0; i < 2 * RANGES; i++) {
		at = i;
		r = ranges.lookup(&at);
		if (!r)
			break;
		if (start < r->end && r->start < end)
			return r->tgid;
	}
	return 0;
}

int on_kvm__kvm_unmap_hva_range(struct tp_kvm__kvm_unmap_hva_range *args)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct task *task = current_task();
	struct task other = {};
	struct migration *batch;
	struct zap zap = {};
	struct event *e;

	zap.start = args->start;
	zap.end = args->end;
	if (!task) {
		other.tgid = owner_of(zap.start, zap.end);
		other.vcpu = -1;
		if (!other.tgid)
			return 0;
		task = &other;
	}
	zap.tgid = task->tgid;
	zapped.update(&tid, &zap);
	batch = migrating.lookup(&tid);
	if (batch)
		batch->tgid = task->tgid;
	e = reserve(PROBE_kvm__kvm_unmap_hva_range, GROUP_KVM, task, tid, KIND_KVM_UNMAP_HVA_RANGE);
	if (!e)
		return 0;
	e->addr = zap.start;
	e->size = zap.end - zap.start;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}
#endif

static inline int put_cause(u32 probe, u32 tgid, u32 cause, u64 addr, u64 size, s64 value)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct task by = {}, *known;
	struct event *e;

	by.tgid = tgid;
	by.vcpu = -1;
	known = tasks.lookup(&tid);
	if (known)
		by.vcpu = known->vcpu;
	zapped.delete(&tid);
	e = reserve(probe, GROUP_KVM, &by, tid, KIND_MM_CAUSE);
	if (!e)
		return 0;
	e->code = cause;
	e->addr = addr;
	e->size = size;
	e->value = value;
	events.ringbuf_submit(e, RINGBUF_NO_WAKEUP);
	return 0;
}

/* `within`: when not 0, the cause of a zap of this address only. */
static inline int tell_cause(u32 probe, u32 cause, u64 within, u64 addr, u64 size, s64 value)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct zap *zap = zapped.lookup(&tid);

	if (!zap || (within && (within < zap->start || within >= zap->end)))
		return 0;
	return put_cause(probe, zap->tgid, cause, addr, size, value);
}

#ifdef TP_migrate__mm_migrate_pages_start
int on_migrate__mm_migrate_pages_start(struct tp_migrate__mm_migrate_pages_start *args)
{
	struct migration batch = {};
	u32 tid = bpf_get_current_pid_tgid();

	batch.reason = args->reason;
	migrating.update(&tid, &batch);
	return 0;
}
#endif

#ifdef TP_migrate__mm_migrate_pages
/* The end of a batch: also for zaps whose page turned out not to be mapped there. */
int on_migrate__mm_migrate_pages(struct tp_migrate__mm_migrate_pages *args)
{
	u32 tid = bpf_get_current_pid_tgid(), tgid = 0;
	struct migration *batch = migrating.lookup(&tid);

	if (batch)
		tgid = batch->tgid;
	migrating.delete(&tid);
	if (!tgid)
		return 0;
	return put_cause(PROBE_migrate__mm_migrate_pages, tgid, ZAP_MIGRATION, 0, 0, args->reason);
}
#endif

static inline int tell_migration(u32 probe, u64 addr, u64 size)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct migration *batch = migrating.lookup(&tid);

	return tell_cause(probe, ZAP_MIGRATION, addr, addr, size, batch ? (s64)batch->reason : -1);
}

#ifdef TP_migrate__set_migration_pte
int on_migrate__set_migration_pte(struct tp_migrate__set_migration_pte *args)
{
	return tell_migration(PROBE_migrate__set_migration_pte, args->addr, (u64)HOST_PAGE_BYTES << (args->order & 31));
}
#endif

#ifdef TP_thp__set_migration_pmd
int on_thp__set_migration_pmd(struct tp_thp__set_migration_pmd *args)
{
	return tell_migration(PROBE_thp__set_migration_pmd, args->addr, HUGE_PAGE_BYTES);
}
#endif

#ifdef TP_ksm__ksm_merge_one_page
int on_ksm__ksm_merge_one_page(struct tp_ksm__ksm_merge_one_page *args)
{
	return tell_cause(PROBE_ksm__ksm_merge_one_page, ZAP_KSM, 0, 0, 0, args->err);
}
#endif

#ifdef TP_ksm__ksm_merge_with_ksm_page
int on_ksm__ksm_merge_with_ksm_page(struct tp_ksm__ksm_merge_with_ksm_page *args)
{
	return tell_cause(PROBE_ksm__ksm_merge_with_ksm_page, ZAP_KSM, 0, 0, 0, args->err);
}
#endif

#ifdef TP_vmscan__mm_vmscan_lru_shrink_inactive
int on_vmscan__mm_vmscan_lru_shrink_inactive(struct tp_vmscan__mm_vmscan_lru_shrink_inactive *args)
{
	return tell_cause(PROBE_vmscan__mm_vmscan_lru_shrink_inactive, ZAP_RECLAIM, 0, 0, 0, args->nr_reclaimed);
}
#endif

#ifdef TP_vmscan__mm_vmscan_reclaim_pages
int on_vmscan__mm_vmscan_reclaim_pages(struct tp_vmscan__mm_vmscan_reclaim_pages *args)
{
	return tell_cause(PROBE_vmscan__mm_vmscan_reclaim_pages, ZAP_RECLAIM, 0, 0, 0, args->nr_reclaimed);
}
#endif

#ifdef TP_huge_memory__mm_collapse_huge_page
int on_huge_memory__mm_collapse_huge_page(struct tp_huge_memory__mm_collapse_huge_page *args)
{
	return tell_cause(PROBE_huge_memory__mm_collapse_huge_page, ZAP_THP_COLLAPSE, 0, 0, HUGE_PAGE_BYTES,
			  args->status);
}
#endif

#ifdef TP_huge_memory__mm_khugepaged_collapse_file
int on_huge_memory__mm_khugepaged_collapse_file(struct tp_huge_memory__mm_khugepaged_collapse_file *args)
{
	return tell_cause(PROBE_huge_memory__mm_khugepaged_collapse_file, ZAP_THP_COLLAPSE, 0, args->addr,
			  HUGE_PAGE_BYTES, args->result);
}
#endif
