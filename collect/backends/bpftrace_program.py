"""The bpftrace text of the probe table: what collect/bpf/*.c says in C, with one line of numbers printed per event.

Maps: @g[process] is a target, @t[thread] its process, @x[thread] is exiting; @u[process, fd] is a userfaultfd;
@f[thread] faulting, @b[thread] blocked since, @r[thread] in KVM_RUN, @e[thread] and
@ei[thread] when and where it last entered guest mode; @z[thread] and @ze[thread] where a zap without a known cause
begins and ends, @mr[thread] why it migrates pages, plus one, @mz[thread] that it zapped for it;
the others hold a system call's arguments.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence

from faultreplay.collect.backends.bpftrace_event import print_event
from faultreplay.collect.backends.bpftrace_syscalls import descriptor_bodies, memory_bodies
from faultreplay.collect.backends.program import HUGE_PAGE_BYTES, Available
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.schema import Kind, ZapCause

_MAPS = ("g", "t", "x", "u", "f", "b", "r", "e", "ei", "z", "ze", "mr", "mz")
_SEEDS = {"e": "nsecs", "ei": "nsecs", "z": "nsecs", "ze": "nsecs"}  # times and addresses are unsigned
_SYSCALL_MAPS = ("rf", "rb", "rt", "ic", "if", "ia", "it", "ma", "ml", "mc", "mf", "mt")


def generate(
    available: Sequence[Available],
    groups: Collection[str],
    *,
    wanted: Filter,
    tasks: dict[int, int],
    uffds: Collection[tuple[int, int]],
    reads: Collection[tuple[int, int, int]] = (),
    cgroup_ids: Collection[int] = (),
) -> str:
    """The whole program.

    Args:
        available: probes this kernel has.
        groups: groups that are on.
        wanted: which processes become targets by themselves.
        tasks: thread -> process of the targets as they are now.
        uffds: (process, fd) of the userfaultfds that exist now.
        reads: (thread, fd, buffer) of the threads that sleep in a read from one of these.
        cgroup_ids: ids of the cgroups whose processes are targets.
    """
    seeds = [f"@g[{tgid}] = 1;" for tgid in sorted(set(tasks.values()))]
    seeds += [f"@t[{tid}] = {tgid};" for tid, tgid in sorted(tasks.items())]
    seeds += [f"@u[{tgid}, {fd}] = 1;" for tgid, fd in sorted(uffds)]
    if "faults" in groups:
        for tid, fd, buf in reads:
            seeds.append(f"@rf[{tid}] = (int64){fd + 1}; @rb[{tid}] = (uint64){buf}; @rt[{tid}] = nsecs;")
    here = " || ".join(["@g[pid]", *(f"cgroup == {number}" for number in cgroup_ids)])
    bodies = _bodies(groups, wanted) | _zap_bodies() | _kprobe_bodies(available)
    parts = []
    for item in available:
        probe = item.probe
        guard, body = bodies[probe.tracepoint] if probe.by_hand else ("", _plain(item))
        in_fault = {"": "", "only": " && @f[tid]", "or in KVM_RUN": " && (@f[tid] || @r[tid])"}[probe.in_fault]
        guard = guard.replace("HERE", f"({here})") if guard else f"/({here}){in_fault}/"
        where = probe.tracepoint if probe.tracepoint.startswith("kprobe:") else f"tracepoint:{probe.tracepoint}"
        body = body.replace("HERE", f"({here})")
        parts.append(f"{where} {'' if guard == 'ALL' else guard} {{\n{body}\n}}")
    text = "\n".join(parts)
    # A map has a type from its first assignment in the text on; one of a group that is off would have none.
    used = [name for name in (*_MAPS, *_SYSCALL_MAPS) if f"@{name}[" in text]
    seeds += ["@u[0, 0] = 0;" if name == "u" else f"@{name}[0] = {_SEEDS.get(name, '0')};" for name in used]
    parts.insert(0, "BEGIN {\n" + "\n".join(seeds) + '\nprintf("0,%llu,READY\\n", nsecs);\n}')
    clears = " ".join(f"clear(@{name});" for name in used)
    parts.append(f'END {{ {clears} printf("0,0,END\\n"); }}')
    return "\n".join(parts) + "\n"


def _plain(item: Available) -> str:
    """A probe whose columns are expressions of the table."""
    (kind,) = item.probe.kinds
    columns = item.probe.filled(item.format.fields)
    if kind == Kind.KVM_ENTRY:
        # Printing wakes the reader by an interrupt to this CPU. Pending at the entry it would end guest mode before the
        # guest's first instruction, every time: the guest would make no progress. So entries are printed at the next
        # exit.
        return f"@e[tid] = nsecs; @ei[tid] = {columns.get('ip', '0')};"
    if kind == Kind.KVM_EXIT:
        entry = print_event(Kind.KVM_ENTRY, ts_ns="@e[tid]", ip="@ei[tid]")
        return f"if (@e[tid]) {{ {entry} @e[tid] = 0; }}\n{print_event(kind, **columns)}"
    return print_event(kind, **columns)


def _bodies(groups: Collection[str], wanted: Filter) -> dict[str, tuple[str, str]]:
    """Guard and body of each hand-written probe. Guard "ALL": none."""
    sched, faults = "sched" in groups, "faults" in groups
    bodies = {
        "task:task_newtask": (
            "/HERE/",
            "if (args->clone_flags & 0x10000) { @t[args->pid] = pid; }\n"
            "else { @t[args->pid] = args->pid; @g[args->pid] = 1; }\n"
            + print_event(Kind.THREAD_NEW, value="args->pid", code="args->clone_flags"),
        ),
        "sched:sched_process_exit": (
            "/@t[args->pid]/",
            print_event(Kind.THREAD_EXIT, tgid="@t[args->pid]", tid="args->pid")
            + "\n@x[args->pid] = 1; delete(@g[args->pid]);"
            + ("" if sched or faults else "delete(@t[args->pid]);"),
        ),
        "sched:sched_process_exec": (
            "/HERE/",
            print_event(Kind.PROCESS_EXEC, tid="args->pid")
            + "\nif (args->old_pid != args->pid) { delete(@t[args->old_pid]); }",
        ),
        "sched:sched_switch": ("ALL", _sched_switch(sched)),
        "sched:sched_waking": (
            "/@t[args->pid]/",
            print_event(Kind.SCHED_WAKING, tgid="@t[args->pid]", tid="args->pid", value="tid"),
        ),
        "mmap_lock:mmap_lock_released": (
            "/@b[tid] && (@f[tid] || @r[tid])/",
            "@b[tid] = 0;\n" + print_event(Kind.MMAP_LOCK_RELEASED, code="args->write"),
        ),
        "kvm:kvm_try_async_get_page": ("/HERE/", "@ag[args->gva] = pid;"),
        "kvm:kvm_async_pf_completed": (
            "/@ag[args->gva]/",
            print_event(Kind.KVM_ASYNC_PF_COMPLETED, tgid="@ag[args->gva]", addr="args->gva", ip="args->address")
            + "\ndelete(@ag[args->gva]);",
        ),
    }
    for mode, kind in (("user", Kind.PAGE_FAULT_USER), ("kernel", Kind.PAGE_FAULT_KERNEL)):
        fault = print_event(kind, addr="args->address", ip="args->ip", code="args->error_code")
        bodies[f"exceptions:page_fault_{mode}"] = ("/HERE/", "@f[tid] = 1; @b[tid] = 0;\n" + fault)
    return bodies | descriptor_bodies(groups, wanted) | memory_bodies()


def _zap_bodies() -> dict[str, tuple[str, str]]:
    """Zaps by any thread, and their causes; process 0: the reader finds out whose memory it is."""
    owner = "HERE ? (uint64)pid : 0"
    zap = print_event(Kind.KVM_UNMAP_HVA_RANGE, tgid="$owner", addr="args->start", size="args->end - args->start")
    batch = print_event(Kind.MM_CAUSE, tgid="$owner", code=str(int(ZapCause.MIGRATION)), value="args->reason")
    bodies = {
        "kvm:kvm_unmap_hva_range": (
            "ALL",
            f"$owner = {owner}; @z[tid] = (uint64)args->start; @ze[tid] = (uint64)args->end;\n"
            f"if (@mr[tid]) {{ @mz[tid] = 1; }}\n{zap}",
        ),
        "migrate:mm_migrate_pages_start": ("ALL", "@mr[tid] = (int64)args->reason + 1;"),
        "migrate:mm_migrate_pages": (
            "ALL",
            f"if (@mz[tid]) {{ $owner = {owner};\n{batch}\n@ze[tid] = 0; }}\ndelete(@mr[tid]); delete(@mz[tid]);",
        ),
    }
    within = "@ze[tid] && args->addr >= @z[tid] && args->addr < @ze[tid]"
    page = f"(uint64){mmap.PAGESIZE} << (uint64)args->order"
    for tracepoint, guard, cause, columns in (
        ("migrate:set_migration_pte", within, ZapCause.MIGRATION, ("args->addr", page, "@mr[tid] - 1")),
        ("thp:set_migration_pmd", within, ZapCause.MIGRATION, ("args->addr", str(HUGE_PAGE_BYTES), "@mr[tid] - 1")),
        ("ksm:ksm_merge_one_page", "@ze[tid]", ZapCause.KSM, ("0", "0", "args->err")),
        ("ksm:ksm_merge_with_ksm_page", "@ze[tid]", ZapCause.KSM, ("0", "0", "args->err")),
        ("vmscan:mm_vmscan_lru_shrink_inactive", "@ze[tid]", ZapCause.RECLAIM, ("0", "0", "args->nr_reclaimed")),
        ("vmscan:mm_vmscan_reclaim_pages", "@ze[tid]", ZapCause.RECLAIM, ("0", "0", "args->nr_reclaimed")),
        (
            "huge_memory:mm_collapse_huge_page",
            "@ze[tid]",
            ZapCause.THP_COLLAPSE,
            ("0", str(HUGE_PAGE_BYTES), "args->status"),
        ),
        (
            "huge_memory:mm_khugepaged_collapse_file",
            "@ze[tid]",
            ZapCause.THP_COLLAPSE,
            ("args->addr", str(HUGE_PAGE_BYTES), "args->result"),
        ),
    ):
        addr, size, value = columns
        event = print_event(Kind.MM_CAUSE, tgid="$owner", code=str(int(cause)), addr=addr, size=size, value=value)
        bodies[tracepoint] = (f"/{guard}/", f"$owner = {owner};\n{event}\n@ze[tid] = 0;")
    return bodies


def _kprobe_bodies(available: Sequence[Available]) -> dict[str, tuple[str, str]]:
    """What reads a structure at the offsets of this kernel's BTF."""
    bodies = {}
    for item in available:
        if item.probe.tracepoint == "kprobe:handle_userfault":
            at = {name: field.offset for name, field in item.format.fields.items()}
            event = print_event(
                Kind.HANDLE_USERFAULT,
                addr=f"*(uint64*)(arg0 + {at['address']})",
                code=f"*(uint32*)(arg0 + {at['flags']})",
                value="arg1",
            )
            bodies[item.probe.tracepoint] = ("/HERE/", event)
    return bodies


def _sched_switch(wanted: bool) -> str:
    out = print_event(
        Kind.SCHED_OUT, tgid="@t[args->prev_pid]", tid="args->prev_pid", code="$state", value="args->next_pid"
    )
    into = print_event(Kind.SCHED_IN, tgid="@t[args->next_pid]", tid="args->next_pid", value="args->prev_pid")
    return f"""$state = (uint64)(args->prev_state & 0xff);
if (@g[pid] && !@t[tid] && !@x[tid]) {{ @t[tid] = pid; }}
if (@t[args->prev_pid]) {{
  if ($state || @f[tid] || @r[tid]) {{ @b[tid] = 1; }}
  {out if wanted else ""}
  if (@x[tid] && ($state & 0x30)) {{ delete(@t[tid]); delete(@x[tid]); delete(@f[tid]); delete(@b[tid]); }}
}}
{f"if (@t[args->next_pid]) {{ {into} }}" if wanted else ""}"""
