/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * For the precompiled object: what BCC brings of itself. The object is built once; what depends on the host is filled in
 * when it is loaded: the fields' places (CO-RE relocations against a BTF made from tracefs), and the variables below.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;

/* As BCC does: BPF passes five arguments at most. */
#undef inline
#define inline inline __attribute__((always_inline))

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The verifier knows them as constants: what is off costs nothing. collect/backends/precompiled_program.py: HostValues. */
struct host_values {
	u64 task_pid_offset;
	u64 host_page_bytes;
	u64 huge_page_bytes;
	u32 wanted_groups;
	u32 follow_all_vms;
	u32 follow_cgroup;
	u32 pad;
};

const volatile struct host_values host_values = {};

#define TASK_PID_OFFSET (host_values.task_pid_offset)
#define HOST_PAGE_BYTES (host_values.host_page_bytes)
#define HUGE_PAGE_BYTES (host_values.huge_page_bytes)
#define FOLLOW_ALL_VMS (host_values.follow_all_vms)
#define FOLLOW_CGROUP (host_values.follow_cgroup)
#define FILTER_CGROUP 1

#define MAP(type_, name, key_, value_, entries)		\
	struct {					\
		__uint(type, type_);			\
		__type(key, key_);			\
		__type(value, value_);			\
		__uint(max_entries, entries);		\
	} name SEC(".maps")

#define BPF_HASH(name, key, value, entries) MAP(BPF_MAP_TYPE_HASH, name, key, value, entries)
#define BPF_ARRAY(name, value, entries) MAP(BPF_MAP_TYPE_ARRAY, name, u32, value, entries)
#define BPF_PERCPU_ARRAY(name, value, entries) MAP(BPF_MAP_TYPE_PERCPU_ARRAY, name, u32, value, entries)
#define BPF_CGROUP_ARRAY(name, entries) MAP(BPF_MAP_TYPE_CGROUP_ARRAY, name, u32, u32, entries)
#define BPF_TABLE(kind, key, value, name, entries) MAP(BPF_MAP_TYPE_LRU_HASH, name, key, value, entries)
#define BPF_RINGBUF_OUTPUT(name, pages)			\
	struct {					\
		__uint(type, BPF_MAP_TYPE_RINGBUF);	\
		__uint(max_entries, (pages) * 4096);	\
	} name SEC(".maps")
