"""The bpftrace text for system calls: descriptors and ioctls of userfaultfd and KVM; changes of the address space."""

from __future__ import annotations

from collections.abc import Collection

from faultreplay.collect.backends.bpftrace_event import CREATE_VCPU, print_event, word
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.schema import KVM_IOCTLS, UFFD_IOCTLS, Kind


def descriptor_bodies(groups: Collection[str], wanted: Filter) -> dict[str, tuple[str, str]]:
    """Guard and body of the probes of reads and ioctls on userfaultfd and KVM descriptors. Guard "ALL": none."""
    message = print_event(
        Kind.UFFD_MSG,
        ts_ns="$now",
        fd="$fd",
        ip=f"{word('$m', 0)} & 0xff",
        code=word("$m", 1),
        addr=word("$m", 2),
        value=f"{word('$m', 3)} & 0xffffffff",
        size="$n",
        dur_ns="$now - @rt[tid]",
    )
    read = f"""$now = nsecs; $ret = (uint64)args->ret; $fd = (int64)@rf[tid] - 1; $buf = @rb[tid];
if (args->ret > 0 && $ret % 32 == 0) {{
  $n = $ret / 32;
  if (!@u[pid, $fd]) {{
    $first = {word("$buf", 0)};
    if ($first >= 0x12 && $first <= 0x16 && {word("$buf", 2)} != 0) {{ @u[pid, $fd] = 1; }}
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
    run = print_event(Kind.KVM_RUN_ENTER, fd="args->fd") if "kvm" in groups else ""
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
        create = print_event(CREATE_VCPU, ts_ns="$now", fd="$ret", code="$a")
        lines.append(f"if ($cmd == 0xAE41 && $ret >= 0) {{ {create} }}")
        for cmd, kind in KVM_IOCTLS.items():
            columns = dict(common)
            if kind is Kind.KVM_SET_MEMSLOT:
                columns |= {name: word("$a", i) for i, name in enumerate(("code", "addr", "size", "ip"))}
            elif kind in (Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG):
                columns["code"] = f"{word('$a', 0)} & 0xffffffff"
            lines.append(f"if ($cmd == {cmd:#x}) {{ {print_event(kind, **columns)} }}")
    return "\n".join(lines)


def _uffd_ioctl(kind: Kind) -> str:
    """Range, mode and result as the structure of each ioctl has them; see collect/bpf/uffd.c for the result's rule."""
    columns = {"ts_ns": "$now", "fd": "$fd", "value": "$done", "dur_ns": "$took", "addr": word("$a", 0)}
    done = ""
    if kind in (Kind.UFFD_COPY, Kind.UFFD_MOVE):
        columns |= {"size": word("$a", 2), "code": word("$a", 3)}
        done = word("$a", 4, "int64")
    elif kind is Kind.UFFD_API:
        columns |= {"addr": "0", "code": word("$a", 1)}
    else:
        columns["size"] = word("$a", 1)
        if kind not in (Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER):
            columns["code"] = word("$a", 2)
        if kind in (Kind.UFFD_ZEROPAGE, Kind.UFFD_CONTINUE, Kind.UFFD_POISON):
            done = word("$a", 3, "int64")
    rule = ""
    if done:
        rule = (
            f"$done = {done}; $len = (int64)({columns['size']}); if ($ret < 0 && !($done < 0 && $done > -4096) "
            "&& !($ret == -11 && $done > 0 && $done < $len)) { $done = $ret; } "
        )
    return rule + print_event(kind, **columns)


def memory_bodies() -> dict[str, tuple[str, str]]:
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
        event = print_event(Kind[name.upper()], **columns)
        bodies[f"syscalls:sys_exit_{name}"] = (
            "/@mt[tid]/",
            "$now = nsecs; $result = (uint64)args->ret; $error = (int64)0;\n"
            f"if (args->ret < 0 && args->ret > -4096) {{ $error = (int64)args->ret; }}\n{event}\ndelete(@mt[tid]);",
        )
    return bodies
