"""From what another tool printed to rows of a trace."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.printed import SVM_EXITS, VMX_EXITS
from faultreplay.collect.importers.raw import Raw
from faultreplay.faulttrace.meta import KvmFlavour, Probe, Target, Thread
from faultreplay.faulttrace.schema import EVENTS, KVM_IOCTLS, UFFD_IOCTLS, Kind

_COLUMNS: Final = tuple(field.name for field in EVENTS)
_KVM_RUN: Final = 0xAE80
_CLONE_THREAD: Final = 0x10000
_PLAIN: Final = {
    probe.tracepoint: (
        probe.kinds[0],
        # The table's own expressions, with a field for args->field; nothing of the file is ever evaluated.
        {column: compile(re.sub(r"args->(\w+)", r'f["\1"]', text), probe.tracepoint, "eval")
         for column, text in probe.columns.items()},
    )
    for probe in PROBES
    if probe.kinds and not probe.by_hand
}  # fmt: skip
_FAULTS: Final = {
    "exceptions:page_fault_user": Kind.PAGE_FAULT_USER,
    "exceptions:page_fault_kernel": Kind.PAGE_FAULT_KERNEL,
}
# call -> (kind, event column -> field of sys_enter_*); mmap's and mremap's result is an address
_CALLS: Final[dict[str, tuple[Kind, dict[str, str]]]] = {
    "mmap": (Kind.MMAP, {"size": "len", "fd": "fd"}),
    "munmap": (Kind.MUNMAP, {"addr": "addr", "size": "len"}),
    "madvise": (Kind.MADVISE, {"addr": "start", "size": "len_in", "code": "behavior"}),
    "fallocate": (Kind.FALLOCATE, {"fd": "fd", "addr": "offset", "size": "len", "code": "mode"}),
    "mremap": (Kind.MREMAP, {"addr": "addr", "size": "new_len"}),
}
_REASONS: Final = {
    "syscalls:sys_exit_read": "the source shows the call, not the message: who faults on which page is not in it",
    "syscalls:sys_exit_ioctl": "the source shows a pointer, not what it points to: ranges and memslots are 0",
}
_U64: Final = (1 << 64) - 1


class Builder:
    """Turns `Raw` events into rows of `EVENTS`; remembers what it saw for the meta."""

    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []
        self.seen: Counter[str] = Counter()
        self.first_ns = self.last_ns = 0
        self._calls: dict[tuple[int, str], Raw] = {}
        self._tgid: dict[int, int] = {}
        self._comm: dict[int, str] = {}
        self._vcpu: dict[int, int] = {}
        self._async: dict[int, int] = {}  # guest address of an asynchronous fault -> its vCPU's thread
        self._reasons: set[int] = set()

    def add(self, raw: Raw) -> None:
        """Take one event.

        Raises:
            ValueError: a field it needs is not there.
        """
        if raw.tgid > 0:
            self._tgid[raw.tid] = raw.tgid
        try:
            self._dispatch(raw)
        except KeyError as error:
            raise ValueError(f"{raw.name} without the field {error.args[0]}") from None
        self.seen[raw.name] += 1
        self.first_ns = min(self.first_ns or raw.ts_ns, raw.ts_ns)
        self.last_ns = max(self.last_ns, raw.ts_ns)
        if raw.tid and raw.comm:
            self._comm[raw.tid] = raw.comm

    def take(self) -> list[dict[str, int]]:
        """The rows so far; they are forgotten here."""
        rows, self.rows = self.rows, []
        return rows

    @property
    def flavour(self) -> KvmFlavour:
        """Which KVM it was, from exit reasons that exist on one only."""
        if self._reasons & {SVM_EXITS["NPF"], SVM_EXITS["HLT"]}:
            return "svm"
        return "vmx" if VMX_EXITS["EPT_VIOLATION"] in self._reasons else "unknown"

    def probes(self) -> list[Probe]:
        """Every row of the probe table: in the source, or missing and why."""
        found = []
        for probe in PROBES:
            reason = _REASONS.get(probe.tracepoint, "")
            if probe.tracepoint == "syscalls:sys_exit_read" or not self.seen[probe.tracepoint]:
                found.append(Probe(probe.tracepoint, probe.groups[0], "missing", reason or "not in the source"))
            else:
                found.append(Probe(probe.tracepoint, probe.groups[0], "attached", reason))
        return found

    def targets(self) -> list[Target]:
        """Processes and threads that events were seen of; a thread whose process is unknown stands alone."""
        targets: dict[int, Target] = {}
        for tid, comm in sorted(self._comm.items()):
            tgid = self._tgid.get(tid, tid)
            target = targets.setdefault(tgid, Target(tgid, self._comm.get(tgid, comm)))
            vcpu = self._vcpu.get(tid)
            target.threads.append(Thread(tid, comm, "other" if vcpu is None else "vcpu", -1 if vcpu is None else vcpu))
            if vcpu is not None:
                target.role = "vm"
        return list(targets.values())

    def _row(self, raw: Raw, kind: Kind, *, tid: int | None = None, owner: int = 0, **columns: int) -> None:
        """Add a row of thread `tid` (default: who raised the event), of the process of `owner` (default: its own)."""
        who = raw.tid if tid is None else tid
        owner = owner or who
        if not who:
            return  # the idle thread
        row: dict[str, int] = dict.fromkeys(_COLUMNS, 0)
        row |= {"ts_ns": raw.ts_ns, "cpu": raw.cpu, "tgid": self._tgid.get(owner, owner), "tid": who, "kind": int(kind)}
        row |= {"fd": -1, "vcpu": -1}
        row |= {
            name: value & _U64 if name in ("addr", "ip", "code", "size") else value for name, value in columns.items()
        }
        self.rows.append(row)

    def _dispatch(self, raw: Raw) -> None:
        f: dict[str, Any] = raw.fields
        if raw.name in _PLAIN:
            self._plain(raw)
        elif kind := _FAULTS.get(raw.name):
            self._row(raw, kind, addr=f["address"], ip=f.get("ip", 0), code=f["error_code"])
        elif raw.name == "mmap_lock:mmap_lock_released":
            self._row(raw, Kind.MMAP_LOCK_RELEASED, code=f["write"])
        elif raw.name == "sched:sched_switch":
            out, into = f["prev_pid"], f["next_pid"]
            self._row(raw, Kind.SCHED_OUT, tid=out, code=f["prev_state"], value=into)
            self._row(raw, Kind.SCHED_IN, tid=into, value=out)
        elif raw.name == "sched:sched_waking":
            self._row(raw, Kind.SCHED_WAKING, tid=f["pid"], value=raw.tid)
        elif raw.name == "task:task_newtask":
            if f["clone_flags"] & _CLONE_THREAD:
                self._tgid[f["pid"]] = self._tgid.get(raw.tid, raw.tid)
            self._row(raw, Kind.THREAD_NEW, value=f["pid"], code=f["clone_flags"])
        elif raw.name == "sched:sched_process_exit":
            self._row(raw, Kind.THREAD_EXIT)
        elif raw.name == "sched:sched_process_exec":
            self._row(raw, Kind.PROCESS_EXEC)
        elif raw.name == "kvm:kvm_try_async_get_page":
            self._async[f["gva"]] = raw.tid
        elif raw.name == "kvm:kvm_async_pf_completed":
            self._completed(raw)
        elif raw.name.startswith("syscalls:"):
            self._call(raw)

    def _plain(self, raw: Raw) -> None:
        kind, expressions = _PLAIN[raw.name]
        columns = {}
        for column, code in expressions.items():
            try:
                columns[column] = int(eval(code, {"__builtins__": {}}, {"f": raw.fields}))
            except KeyError:
                if column in ("addr", "code") and kind != Kind.KVM_EXIT:
                    raise
        if kind == Kind.KVM_EXIT:
            self._reasons.add(columns["code"])
        vcpu = raw.fields.get("vcpu_id", -1)
        if kind in (Kind.KVM_ENTRY, Kind.KVM_EXIT):
            self._vcpu[raw.tid] = max(vcpu, self._vcpu.get(raw.tid, -1))
        self._row(raw, kind, vcpu=vcpu, **columns)

    def _completed(self, raw: Raw) -> None:
        """A kernel worker has the page: the process is that of the vCPU that asked for this address."""
        waiter = self._async.pop(raw.fields["gva"], None)
        if waiter is not None:
            columns = {"addr": raw.fields["gva"], "ip": raw.fields["address"]}
            self._row(raw, Kind.KVM_ASYNC_PF_COMPLETED, owner=waiter, **columns)

    def _call(self, raw: Raw) -> None:
        phase, _, call = raw.name.removeprefix("syscalls:sys_").partition("_")
        if phase == "enter":
            self._calls[raw.tid, call] = raw
            if call == "ioctl" and raw.fields["cmd"] == _KVM_RUN:
                self._vcpu.setdefault(raw.tid, -1)
                self._row(raw, Kind.KVM_RUN_ENTER, fd=raw.fields["fd"])
            return
        entered = self._calls.pop((raw.tid, call), None)
        if entered is None:
            return  # it began before the recording did
        result, dur_ns = raw.fields["ret"], raw.ts_ns - entered.ts_ns
        if call == "ioctl":
            command = entered.fields["cmd"] & 0xFFFFFFFF
            kind = UFFD_IOCTLS.get(command) or KVM_IOCTLS.get(command)
            if kind is not None:
                self._row(raw, kind, fd=entered.fields["fd"], value=min(result, 0), dur_ns=dur_ns)
        elif call in _CALLS:
            kind, wanted = _CALLS[call]
            columns = {column: entered.fields.get(name, 0) for column, name in wanted.items()}
            if call == "mmap":
                columns["fd"] = _signed32(columns["fd"])
                columns["addr"] = result if result > 0 else 0
                columns["code"] = entered.fields.get("prot", 0) | entered.fields.get("flags", 0) << 32
            if call == "mremap":
                columns["ip"] = result if result > 0 else 0
            self._row(raw, kind, value=min(result, 0), dur_ns=dur_ns, **columns)


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
