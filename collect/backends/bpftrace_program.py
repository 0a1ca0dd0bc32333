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

from faultreplay.collect.backends.program import HUGE_PAGE_BYTES, Available
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.schema import KVM_IOCTLS, UFFD_IOCTLS, Kind, ZapCause

COLUMNS = ("kind", "ts_ns", "cpu", "tgid", "tid", "fd", "addr", "ip", "code", "size", "value", "dur_ns")
CREATE_VCPU = 250
"""Not an event: fd and number of a new vCPU, for the `vcpu` column."""

_MAPS = ("g", "t", "x", "u", "f", "b", "r", "e", "ei", "z", "ze", "mr", "mz")
_SEEDS = {"e": "nsecs", "ei": "nsecs", "z": "nsecs", "ze": "nsecs"}  # times and addresses are unsigned
_SYSCALL_MAPS = ("rf", "rb", "rt", "ic", "if", "ia", "it", "ma", "ml", "mc", "mf", "mt")
_COMMON = {"ts_ns": "nsecs", "cpu": "cpu", "tgid": "pid", "tid": "tid", "fd": "-1"}
_SIGNED = ("fd", "value")


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
        guard = guard.replace("HERE", f"({here})") if guard else f"/({here})/"
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


def _event(kind: Kind | int, **columns: str) -> str:
    """The statement that prints one event; constants go into the format."""
    values = _COMMON | columns
    formats, arguments = [str(int(kind))], []
    for column in COLUMNS[1:]:
        value = values.get(column, "0")
        if value.lstrip("-").isdigit():
            formats.append(value)
        else:
            signed = column in _SIGNED
            formats.append("%lld" if signed else "%llu")
            arguments.append(f"({'int64' if signed else 'uint64'})({value})")
    return f'printf("{",".join(formats)}\\n", {", ".join(arguments)});'


def _plain(item: Available) -> str:
    """A probe whose columns are expressions of the table."""
    (kind,) = item.probe.kinds
    columns = item.probe.filled(item.format.fields)
    if kind == Kind.KVM_ENTRY:
        # Printing wakes the reader by an interrupt to this CPU. Pending at the entry it would end guest mode before the
        # guest's first instruction, every time: the guest would stand still. So entries are printed at the next exit.
        return f"@e[tid] = nsecs; @ei[tid] = {columns.get('ip', '0')};"
    if kind == Kind.KVM_EXIT:
        entry = _event(Kind.KVM_ENTRY, ts_ns="@e[tid]", ip="@ei[tid]")
        return f"if (@e[tid]) {{ {entry} @e[tid] = 0; }}\n{_event(kind, **columns)}"
    return _event(kind, **columns)


def _word(pointer: str, index: int, kind: str = "uint64") -> str:
    return f"({kind})*uptr((uint64*)({pointer} + {8 * index}))"


def _bodies(groups: Collection[str], wanted: Filter) -> dict[str, tuple[str, str]]:
    """Guard and body of each hand-written probe. Guard "ALL": none."""
    sched, faults = "sched" in groups, "faults" in groups
    bodies = {
        "task:task_newtask": (
            "/HERE/",
            "if (args->clone_flags & 0x10000) { @t[args->pid] = pid; }\n"
            "else { @t[args->pid] = args->pid; @g[args->pid] = 1; }\n"
            + _event(Kind.THREAD_NEW, value="args->pid", code="args->clone_flags"),
        ),
        "sched:sched_process_exit": (
            "/@t[args->pid]/",
            _event(Kind.THREAD_EXIT, tgid="@t[args->pid]", tid="args->pid")
            + "\n@x[args->pid] = 1; delete(@g[args->pid]);"
            + ("" if sched or faults else "delete(@t[args->pid]);"),
        ),
        "sched:sched_process_exec": (
            "/HERE/",
            _event(Kind.PROCESS_EXEC, tid="args->pid")
            + "\nif (args->old_pid != args->pid) { delete(@t[args->old_pid]); }",
        ),
        "sched:sched_switch": ("ALL", _sched_switch(sched)),
        "sched:sched_waking": (
            "/@t[args->pid]/",
            _event(Kind.SCHED_WAKING, tgid="@t[args->pid]", tid="args->pid", value="tid"),
        ),
        "mmap_lock:mmap_lock_released": (
            "/@b[tid] && (@f[tid] || @r[tid])/",
            "@b[tid] = 0;\n" + _event(Kind.MMAP_LOCK_RELEASED, code="args->write"),
        ),
        "kvm:kvm_try_async_get_page": ("/HERE/", "@ag[args->gva] = pid;"),
        "kvm:kvm_async_pf_completed": (
            "/@ag[args->gva]/",
            _event(Kind.KVM_ASYNC_PF_COMPLETED, tgid="@ag[args->gva]", addr="args->gva", ip="args->address")
            + "\ndelete(@ag[args->gva]);",
        ),
    }
    for mode, kind in (("user", Kind.PAGE_FAULT_USER), ("kernel", Kind.PAGE_FAULT_KERNEL)):
        fault = _event(kind, addr="args->address", ip="args->ip", code="args->error_code")
        bodies[f"exceptions:page_fault_{mode}"] = ("/HERE/", "@f[tid] = 1; @b[tid] = 0;\n" + fault)
    return bodies | _descriptor_bodies(groups, wanted) | _mm_bodies()


def _zap_bodies() -> dict[str, tuple[str, str]]:
    """Zaps by any thread, and what told their cause; process 0: the reader finds whose memory it is."""
    owner = "HERE ? (uint64)pid : 0"
    zap = _event(Kind.KVM_UNMAP_HVA_RANGE, tgid="$owner", addr="args->start", size="args->end - args->start")
    batch = _event(Kind.MM_CAUSE, tgid="$owner", code=str(int(ZapCause.MIGRATION)), value="args->reason")
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
        event = _event(Kind.MM_CAUSE, tgid="$owner", code=str(int(cause)), addr=addr, size=size, value=value)
        bodies[tracepoint] = (f"/{guard}/", f"$owner = {owner};\n{event}\n@ze[tid] = 0;")
    return bodies


def _kprobe_bodies(available: Sequence[Available]) -> dict[str, tuple[str, str]]:
    """What reads a structure at the offsets of this kernel's BTF."""
    bodies = {}
    for item in available:
        if item.probe.tracepoint == "kprobe:handle_userfault":
            at = {name: field.offset for name, field in item.format.fields.items()}
            event = _event(
                Kind.HANDLE_USERFAULT,
                addr=f"*(uint64*)(arg0 + {at['address']})",
                code=f"*(uint32*)(arg0 + {at['flags']})",
                value="arg1",
            )
            bodies[item.probe.tracepoint] = ("/HERE/", event)
    return bodies


def _sched_switch(wanted: bool) -> str:
    out = _event(Kind.SCHED_OUT, tgid="@t[args->prev_pid]", tid="args->prev_pid", code="$state", value="args->next_pid")
    into = _event(Kind.SCHED_IN, tgid="@t[args->next_pid]", tid="args->next_pid", value="args->prev_pid")
    return f"""$state = (uint64)(args->prev_state & 0xff);
if (@g[pid] && !@t[tid] && !@x[tid]) {{ @t[tid] = pid; }}
if (@t[args->prev_pid]) {{
  if ($state || @f[tid] || @r[tid]) {{ @b[tid] = 1; }}
  {out if wanted else ""}
  if (@x[tid] && ($state & 0x30)) {{ delete(@t[tid]); delete(@x[tid]); delete(@f[tid]); delete(@b[tid]); }}
}}
{f"if (@t[args->next_pid]) {{ {into} }}" if wanted else ""}"""


def _descriptor_bodies(groups: Collection[str], wanted: Filter) -> dict[str, tuple[str, str]]:
    message = _event(
        Kind.UFFD_MSG,
        ts_ns="$now",
        fd="$fd",
        ip=f"{_word('$m', 0)} & 0xff",
        code=_word("$m", 1),
        addr=_word("$m", 2),
        value=f"{_word('$m', 3)} & 0xffffffff",
        size="$n",
        dur_ns="$now - @rt[tid]",
    )
    read = f"""$now = nsecs; $ret = (uint64)args->ret; $fd = (int64)@rf[tid] - 1; $buf = @rb[tid];
if (args->ret > 0 && $ret % 32 == 0) {{
  $n = $ret / 32;
  if (!@u[pid, $fd]) {{
    $first = {_word("$buf", 0)};
    if ($first >= 0x12 && $first <= 0x16 && {_word("$buf", 2)} != 0) {{ @u[pid, $fd] = 1; }}
  }}
  if (@u[pid, $fd]) {{
    $i = (uint64)0;
    while ($i < 16) {{
      if ($i >= $n) {{ break; }}
      $m = $buf + $i * 32;
      {message}
      $i++;
    }}
  }}
}}
delete(@rf[tid]);"""
    run = _event(Kind.KVM_RUN_ENTER, fd="args->fd") if "kvm" in groups else ""
    adopt = "if (args->cmd == 0xAE01 || args->cmd == 0xAE80) { @g[pid] = 1; @t[tid] = pid; }" if wanted.all_vms else ""
    enter = f"""{adopt}
@f[tid] = 0; @r[tid] = 0; delete(@rf[tid]); delete(@if[tid]);
$type = ((uint64)args->cmd >> 8) & 0xff;
if (@g[pid] && ($type == 0xAA || $type == 0xAE)) {{
  @ic[tid] = (uint64)args->cmd & 0xffffffff; @if[tid] = (int64)args->fd + 1;
  @ia[tid] = (uint64)args->arg; @it[tid] = nsecs;
  if (@ic[tid] == 0xAE80) {{ @r[tid] = 1; @b[tid] = 0; {run} }}
}}"""
    return {
        "syscalls:sys_exit_userfaultfd": ("/HERE && args->ret >= 0/", "@u[pid, (int64)args->ret] = 1;"),
        "syscalls:sys_enter_close": ("/HERE/", "delete(@u[pid, (int64)args->fd]);"),
        "syscalls:sys_enter_read": (
            "/HERE/",
            "@f[tid] = 0; delete(@if[tid]); delete(@rf[tid]);\nif (args->count >= 32) "
            "{ @rf[tid] = (int64)args->fd + 1; @rb[tid] = (uint64)args->buf; @rt[tid] = nsecs; }",
        ),
        "syscalls:sys_exit_read": ("/@rf[tid]/", read),
        "syscalls:sys_enter_ioctl": ("ALL" if wanted.all_vms else "/HERE/", enter),
        "syscalls:sys_exit_ioctl": ("/@if[tid]/", _ioctl_exit(groups)),
    }


def _ioctl_exit(groups: Collection[str]) -> str:
    lines = [
        "$now = nsecs; $cmd = @ic[tid]; $a = @ia[tid]; $fd = (int64)@if[tid] - 1; $ret = (int64)args->ret; "
        "$took = $now - @it[tid]; $done = $ret;",
        "delete(@if[tid]); @r[tid] = 0;",
        "if ($cmd == 0xAA00) { if ($ret >= 0) { @u[pid, $ret] = 1; } }",
        "else { if ($ret == 0 && (($cmd >> 8) & 0xff) == 0xAA) { @u[pid, $fd] = 1; } }",
    ]
    if "faults" in groups:
        lines += [f"if ($cmd == {cmd:#x}) {{ {_uffd_ioctl(kind)} }}" for cmd, kind in UFFD_IOCTLS.items()]
    if "kvm" in groups:
        common = {"ts_ns": "$now", "fd": "$fd", "value": "$ret", "dur_ns": "$took"}
        create = _event(CREATE_VCPU, ts_ns="$now", fd="$ret", code="$a")
        lines.append(f"if ($cmd == 0xAE41 && $ret >= 0) {{ {create} }}")
        for cmd, kind in KVM_IOCTLS.items():
            columns = dict(common)
            if kind is Kind.KVM_SET_MEMSLOT:
                columns |= {name: _word("$a", i) for i, name in enumerate(("code", "addr", "size", "ip"))}
            elif kind in (Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG):
                columns["code"] = f"{_word('$a', 0)} & 0xffffffff"
            lines.append(f"if ($cmd == {cmd:#x}) {{ {_event(kind, **columns)} }}")
    return "\n".join(lines)


def _uffd_ioctl(kind: Kind) -> str:
    """Range, mode and result as the structure of each ioctl has them; see collect/bpf/uffd.c for the result's rule."""
    columns = {"ts_ns": "$now", "fd": "$fd", "value": "$done", "dur_ns": "$took", "addr": _word("$a", 0)}
    done = ""
    if kind in (Kind.UFFD_COPY, Kind.UFFD_MOVE):
        columns |= {"size": _word("$a", 2), "code": _word("$a", 3)}
        done = _word("$a", 4, "int64")
    elif kind is Kind.UFFD_API:
        columns |= {"addr": "0", "code": _word("$a", 1)}
    else:
        columns["size"] = _word("$a", 1)
        if kind not in (Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER):
            columns["code"] = _word("$a", 2)
        if kind in (Kind.UFFD_ZEROPAGE, Kind.UFFD_CONTINUE, Kind.UFFD_POISON):
            done = _word("$a", 3, "int64")
    rule = ""
    if done:
        rule = (
            f"$done = {done}; $len = (int64)({columns['size']}); if ($ret < 0 && !($done < 0 && $done > -4096) "
            "&& !($ret == -11 && $done > 0 && $done < $len)) { $done = $ret; } "
        )
    return rule + _event(kind, **columns)


def _mm_bodies() -> dict[str, tuple[str, str]]:
    """Changes of the address space: arguments kept at the entry, printed at the exit."""
    bodies = {}
    arguments = {
        "mmap": ("0", "args->len", "((uint64)args->prot & 0xffffffff) | ((uint64)args->flags << 32)", "args->fd"),
        "munmap": ("args->addr", "args->len", "0", "-1"),
        "madvise": ("args->start", "args->len_in", "(uint64)args->behavior & 0xffffffff", "-1"),
        "fallocate": ("args->offset", "args->len", "(uint64)args->mode & 0xffffffff", "args->fd"),
        "mremap": ("args->addr", "args->new_len", "0", "-1"),
        "mprotect": ("args->start", "args->len", "(uint64)args->prot & 0xffffffff", "-1"),
    }
    for name, (addr, size, code, fd) in arguments.items():
        bodies[f"syscalls:sys_enter_{name}"] = (
            "/HERE/",
            f"@f[tid] = 0; @ma[tid] = (uint64){addr}; @ml[tid] = (uint64){size}; @mc[tid] = (uint64)({code}); "
            f"@mf[tid] = (int64)(int32){fd}; @mt[tid] = nsecs;",
        )
        columns = {"ts_ns": "$now", "addr": "@ma[tid]", "size": "@ml[tid]", "code": "@mc[tid]", "value": "$error"}
        columns |= {"fd": "@mf[tid]", "dur_ns": "$now - @mt[tid]"}
        if name == "mmap":
            columns["addr"] = "$error ? 0 : $result"
        elif name == "mremap":
            columns["ip"] = "$error ? 0 : $result"
        event = _event(Kind[name.upper()], **columns)
        bodies[f"syscalls:sys_exit_{name}"] = (
            "/@mt[tid]/",
            "$now = nsecs; $result = (uint64)args->ret; $error = (int64)0;\n"
            f"if (args->ret < 0 && args->ret > -4096) {{ $error = (int64)args->ret; }}\n{event}\ndelete(@mt[tid]);",
        )
    return bodies
