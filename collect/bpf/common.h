/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Shared by all programs. Plain libbpf style except for the map calls, which BCC writes as methods; for the
 * precompiled object collect/backends/precompiled_program.py rewrites these, and core.h has BCC's map macros.
 * Nothing here looks into a kernel structure: only tracepoint arguments, helpers and user memory that the
 * traced system call itself has just read or written.
 *
 * Before this file the generator defines: KIND_*, GROUP_*, PROBE_* (index of the probe in the table), RING_PAGES,
 * WANTED_* and FOLLOW_* (0 or 1, or read when the object is loaded), TP_* for each tracepoint that is on, and
 * struct tp_* from tracefs.
 */

/* One record of the ring; collect/backends/ring.py has the same layout as a numpy dtype. */
struct event {
	u64 ts_ns;
	u64 addr;
	u64 ip;
	u64 code;
	u64 size;
	s64 value;
	s64 dur_ns;
	s32 tgid;
	s32 tid;
	s32 fd;
	s32 vcpu;
	s16 cpu;
	u8 kind;
	u8 pad[5];
};

/* A thread of a target, and the system call it is in. */
struct task {
	u64 enter_ns;
	u64 arg[5];
	s32 fd;
	u32 tgid;
	s32 vcpu;	/* -1: has not called KVM_RUN */
	s32 vcpu_fd;
	u32 call;	/* IN_* */
	u8 faulting;	/* took a page fault and has not entered a system call since */
	u8 blocked;	/* left the CPU since, and has not let go of mmap_lock */
	u8 exiting;
	u8 pad;
};

enum { IN_NOTHING, IN_READ, IN_UFFD_IOCTL, IN_KVM_IOCTL, IN_KVM_RUN, IN_MM };

/* Memory of a target that holds a VM. */
struct vm_range {
	u64 start;
	u64 end;
	u32 tgid;
	u32 pad;
};

struct counts {
	u64 lost[64];	/* by probe */
	u64 unfollowed;	/* threads that did not fit into `tasks` */
	u64 kept;
};

#define GROUP_PAUSED 0x80000000	/* nobody records: keep nothing, count nothing */
#define RINGBUF_NO_WAKEUP 1	/* the reader polls: a wake-up per event would cost more than the event */

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_HASH(tasks, u32, struct task, MAX_TASKS);		/* tid -> thread of a target */
BPF_HASH(targets, u32, u32, 4096);			/* tgid -> why */
BPF_HASH(uffds, u64, u32, 16384);			/* tgid << 32 | fd: is a userfaultfd */
BPF_HASH(vcpus, u64, u32, 16384);			/* tgid << 32 | fd -> vCPU number */
BPF_HASH(async_pf, u64, u32, 16384);			/* gva -> tid that waits */
BPF_PERCPU_ARRAY(counts, struct counts, 1);
/* Half of it is written by the recorder, half here as memslots are set: in turn, the oldest goes. */
BPF_ARRAY(ranges, struct vm_range, 2 * RANGES);
BPF_ARRAY(memslots_seen, u32, 1);
#ifdef FILTER_CGROUP
BPF_CGROUP_ARRAY(cgroup, 1);
#endif
BPF_ARRAY(shed, u32, 1);				/* groups whose events are counted, not kept */

static inline u64 fd_key(u32 tgid, s32 fd)
{
	return (u64)tgid << 32 | (u32)fd;
}

static inline void count_lost(u32 probe)
{
	u32 zero = 0;
	struct counts *c = counts.lookup(&zero);

	if (c)
		c->lost[probe & 63]++;
}

static inline struct task *adopt(u32 tid, u32 tgid)
{
	struct task fresh = {};
	u32 zero = 0;
	struct task *task;
	struct counts *c;

	fresh.tgid = tgid;
	fresh.vcpu = -1;
	fresh.vcpu_fd = -1;
	tasks.update(&tid, &fresh);
	task = tasks.lookup(&tid);
	if (!task) {
		c = counts.lookup(&zero);
		if (c)
			c->unfollowed++;
	}
	return task;
}

/* The current thread when it belongs to a target, else 0. The one place where targets are chosen. */
static inline struct task *current_task(void)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, tgid = id >> 32;
	struct task *task = tasks.lookup(&tid);

	if (task && task->tgid == tgid)
		return task;
	if (targets.lookup(&tgid))
		return adopt(tid, tgid);
#ifdef FILTER_CGROUP
	if (FOLLOW_CGROUP && cgroup.check_current_task(0) > 0) {
		targets.update(&tgid, &tgid);
		return adopt(tid, tgid);
	}
#endif
	return 0;
}

/* A record with the columns every event has; 0 (and counted) when the ring is full or the group is shed. */
static inline struct event *reserve(u32 probe, u32 group, struct task *task, u32 tid, u8 kind)
{
	u32 zero = 0;
	u32 *off = shed.lookup(&zero);
	struct event *e;

	if (off && (*off & (group | GROUP_PAUSED))) {
		if (!(*off & GROUP_PAUSED))
			count_lost(probe);
		return 0;
	}
	e = events.ringbuf_reserve(sizeof(struct event));
	if (!e) {
		count_lost(probe);
		return 0;
	}
	e->ts_ns = bpf_ktime_get_ns();
	e->addr = 0;
	e->ip = 0;
	e->code = 0;
	e->size = 0;
	e->value = 0;
	e->dur_ns = 0;
	e->tgid = task->tgid;
	e->tid = tid;
	e->fd = -1;
	e->vcpu = task->vcpu;
	e->cpu = bpf_get_smp_processor_id();
	e->kind = kind;
	return e;
}
