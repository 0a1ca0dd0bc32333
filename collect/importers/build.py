"""From what another tool printed to rows of a trace."""

from __future__ import annotations

import re
from collections import Counter
from types import CodeType
from typing import Any, Final

import numpy as np
import polars as pl

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.calls import REASONS, Calls
from faultreplay.collect.importers.raw import Mark, Raw, RawColumns
from faultreplay.collect.importers.rows import Rows
from faultreplay.collect.importers.zaps import KERNEL_THREADS, Zaps
from faultreplay.faulttrace.exits import EPT_VIOLATION, NPF, SVM_EXITS
from faultreplay.faulttrace.meta import KvmFlavour, Probe, Role, Target, Thread
from faultreplay.faulttrace.schema import EVENTS, Kind

_COLUMNS: Final = tuple(field.name for field in EVENTS)
_KVM_RUN: Final = 0xAE80
_CLONE_THREAD: Final = 0x10000


def _compiled(columns: dict[str, str]) -> dict[str, CodeType]:
    """The table's own expressions, with a field for args->field; nothing of the file is ever evaluated."""
    return {c: compile(re.sub(r"args->(\w+)", r'f["\1"]', text), c, "eval") for c, text in columns.items()}


_PLAIN: Final = {
    probe.tracepoint: (probe.kinds[0], _compiled(probe.columns), _compiled(probe.arm64))
    for probe in PROBES
    if probe.kinds and not probe.by_hand
}
_OF_ARM: Final = "vcpu_pc"
"""A field that only arm64's events of these names have."""
_FAULTS: Final = {
    "exceptions:page_fault_user": Kind.PAGE_FAULT_USER,
    "exceptions:page_fault_kernel": Kind.PAGE_FAULT_KERNEL,
}
_BARE: Final = {
    "mmap_lock:mmap_lock_released": Kind.MMAP_LOCK_RELEASED,
    "sched:sched_process_exit": Kind.THREAD_EXIT,
    "sched:sched_process_exec": Kind.PROCESS_EXEC,
}
_VCPU_NAME: Final = re.compile(r"^(?:CPU |fc_vcpu |(?:crosvm_)?vcpu[-_ ]?)(\d{1,5})(?:/KVM)?$", re.IGNORECASE)
"""Threads' names for vCPUs: QEMU, Firecracker, Cloud Hypervisor and crosvm."""
_OF_VCPUS: Final = (Kind.KVM_ENTRY, Kind.KVM_EXIT, Kind.KVM_PAGE_FAULT, Kind.KVM_GUEST_FAULT)
_IDLE: Final = "of the idle thread, or of one that is gone"


class Builder:
    """Turns `Raw` events into rows of `EVENTS`; remembers what it saw for the meta."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.kept: Counter[str] = Counter()
        self.not_taken: dict[tuple[str, str], Mark] = {}
        """(event, why) -> how many and from which line on."""
        self.first_ns = self.last_ns = 0
        self._comm: dict[int, str] = {}
        self._vcpu: dict[int, int] = {}
        self._async: dict[int, int] = {}  # guest address of an asynchronous fault -> its vCPU's thread
        self._reasons: set[int] = set()
        self._arm = False
        self._zaps = Zaps(self.rows)
        self._calls = Calls(self.rows, self._vcpu)
        self.not_a_thread = ""
        """Why the number of a line cannot be a thread, where it cannot."""

    def add(self, raw: Raw) -> None:
        """Take one event.

        Raises:
            ValueError: a field it needs is not there, or a number fits no column.
        """
        if raw.tgid > 0:
            self.rows.tgid[raw.tid] = raw.tgid
        rows = len(self.rows)
        try:
            why = self._dispatch(raw)
        except KeyError as error:
            raise ValueError(f"{raw.name} without the field {error.args[0]}") from None
        if why and len(self.rows) == rows:
            self.leave(raw.name, why, raw.line)
        else:
            self.kept[raw.name] += 1
        self._seen_at(raw.ts_ns, raw.ts_ns)
        if raw.comm:
            self._name(raw.tid, raw.comm)

    def add_columns(self, raw: RawColumns) -> None:
        """Take many events of one name."""
        self.rows.tgid.update(raw.tgids)
        if raw.name == "sched:sched_switch":
            out, into = raw.fields["prev_pid"], raw.fields["next_pid"]
            if len(other := np.flatnonzero((out != raw.tid) & (raw.tid > 0))) and not self.not_a_thread:
                at = other[0]
                self.not_a_thread = f"line {raw.line[at]} is of {raw.tid[at]}, but thread {out[at]} leaves the CPU"
            kept = self.rows.add_many(raw, Kind.SCHED_OUT, tid=out, code=raw.fields["prev_state"], value=into)
            kept |= self.rows.add_many(raw, Kind.SCHED_IN, tid=into, value=out)
        elif raw.name == "sched:sched_waking":
            kept = self.rows.add_many(raw, Kind.SCHED_WAKING, tid=raw.fields["pid"], value=raw.tid)
        else:
            kind = _PLAIN[raw.name][0]
            columns = self._evaluated(raw.name, raw.fields)
            if "vcpu_id" in raw.fields:
                columns["vcpu"] = raw.fields["vcpu_id"]
            kept = self.rows.add_many(raw, kind, **columns)
            self._note_vcpus(raw, kind)
        taken = int(np.count_nonzero(kept))
        self.kept[raw.name] += taken
        if taken < len(kept):
            self.leave(raw.name, _IDLE, int(raw.line[~kept][0]), len(kept) - taken)
        self._seen_at(int(raw.ts_ns.min()), int(raw.ts_ns.max()))
        for tid, comm in raw.comms:
            self._name(tid, comm)

    def _name(self, tid: int, comm: str) -> None:
        if tid <= 0:
            return  # the idle thread; -1: one that perf no longer knows
        before = self._comm.get(tid, comm)
        if before != comm and not self.not_a_thread:
            vcpus = [found[1] for found in map(_VCPU_NAME.search, (before, comm)) if found]
            if len(set(vcpus)) > 1:
                self.not_a_thread = f"{tid} is called {before} and {comm}"
        self._comm[tid] = comm

    def leave(self, name: str, why: str, line: int, count: int = 1) -> None:
        """Count events that are not taken."""
        self.not_taken.setdefault((name, why), Mark()).add(line, count)

    def finish(self) -> None:
        """Count calls that had not ended when the recording did."""
        self._calls.finish(self.leave)

    def _seen_at(self, first_ns: int, last_ns: int) -> None:
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)

    def _evaluated(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Columns of an event of the probe table by the table's own expressions: of one event, or of many."""
        kind, expressions, of_arm = _PLAIN[name]
        if of_arm and _OF_ARM in fields:
            expressions = of_arm
        columns = {}
        for column, code in expressions.items():
            try:
                columns[column] = eval(code, {"__builtins__": {}}, {"f": fields})
            except KeyError:
                if column in ("addr", "code") and kind != Kind.KVM_EXIT:
                    raise
        return columns

    def _note_vcpus(self, raw: RawColumns, kind: Kind) -> None:
        if kind == Kind.KVM_EXIT:
            self._reasons.update(pl.Series(raw.fields["exit_reason"]).unique().to_list())
        if kind in _OF_VCPUS:
            vcpus = raw.fields.get("vcpu_id", np.full(len(raw.tid), -1))
            for tid, vcpu in pl.DataFrame({"tid": raw.tid, "vcpu": vcpus}).unique().iter_rows():
                self._vcpu[tid] = max(vcpu, self._vcpu.get(tid, -1))

    @property
    def flavour(self) -> KvmFlavour:
        """Which KVM it was, from exit reasons that exist on one only."""
        if self._arm:
            return "arm64"
        if self._reasons & {NPF, SVM_EXITS["hlt"]}:
            return "svm"
        return "vmx" if EPT_VIOLATION in self._reasons else "unknown"

    def probes(self) -> list[Probe]:
        """Every row of the probe table: in the source, or missing and why."""
        found = []
        for probe in PROBES:
            if probe.machines and not self._arm:
                continue
            reason = REASONS.get(probe.tracepoint, "")
            name = probe.tracepoint
            if name == "syscalls:sys_exit_read" or not self.kept[name]:
                left = [why for event, why in self.not_taken if event == name]
                if name != "syscalls:sys_exit_read":
                    reason = ""
                reason = reason or (f"in the source, but not taken: {left[0]}" if left else "not in the source")
                found.append(Probe(name, probe.groups[0], "missing", reason))
            else:
                found.append(Probe(probe.tracepoint, probe.groups[0], "attached", reason))
        return found

    def targets(self) -> list[Target]:
        """Processes and threads that events were seen of; a thread whose process is unknown stands alone."""
        targets: dict[int, Target] = {}
        for tid, comm in sorted(self._comm.items()):
            tgid = self.rows.tgid.get(tid, tid)
            target = targets.setdefault(tgid, Target(tgid, self._comm.get(tgid, comm)))
            vcpu = self._vcpu.get(tid)
            if vcpu == -1 and (named := _VCPU_NAME.search(comm)):
                vcpu = int(named[1])  # kvm_exit has the number since Linux 5.10, kvm_page_fault since 6.0
            role: Role = "vcpu" if vcpu is not None else "kernel" if comm.startswith(KERNEL_THREADS) else "other"
            target.threads.append(Thread(tid, comm, role, -1 if vcpu is None else vcpu))
            if vcpu is not None:
                target.role = "vm"
        return list(targets.values())

    def _dispatch(self, raw: Raw) -> str:
        """Make rows of an event, or keep its information; returns why neither is possible (unless it made rows)."""
        f: dict[str, Any] = raw.fields
        if raw.name in _PLAIN:
            self._plain(raw)
        elif kind := _FAULTS.get(raw.name):
            self.rows.add(raw, kind, addr=f["address"], ip=f.get("ip", 0), code=f["error_code"])
        elif kind := _BARE.get(raw.name):
            self.rows.add(raw, kind, code=f.get("write", 0))
        elif raw.name == "sched:sched_switch":
            out, into = f["prev_pid"], f["next_pid"]
            self.rows.add(raw, Kind.SCHED_OUT, tid=out, code=f["prev_state"], value=into)
            self.rows.add(raw, Kind.SCHED_IN, tid=into, value=out)
        elif raw.name == "sched:sched_waking":
            self.rows.add(raw, Kind.SCHED_WAKING, tid=f["pid"], value=raw.tid)
        elif raw.name == "task:task_newtask":
            if f["clone_flags"] & _CLONE_THREAD:
                self.rows.tgid[f["pid"]] = self.rows.tgid.get(raw.tid, raw.tid)
            self.rows.add(raw, Kind.THREAD_NEW, value=f["pid"], code=f["clone_flags"])
        elif raw.name == "kvm:kvm_try_async_get_page":
            self._async[f["gva"]] = raw.tid
            return ""
        elif raw.name == "kvm:kvm_async_pf_completed":
            return self._completed(raw)
        elif raw.name.startswith("syscalls:"):
            return self._calls.add(raw)
        elif self._zaps.takes(raw.name):
            return self._zaps.add(raw)
        else:
            return "imports make nothing of it yet"
        return _IDLE

    def _plain(self, raw: Raw) -> None:
        kind = _PLAIN[raw.name][0]
        columns = {name: int(value) for name, value in self._evaluated(raw.name, raw.fields).items()}
        self._arm |= _OF_ARM in raw.fields
        if kind == Kind.KVM_EXIT:
            self._reasons.add(columns["code"])
        vcpu = raw.fields.get("vcpu_id", -1)
        if kind in _OF_VCPUS:
            self._vcpu[raw.tid] = max(vcpu, self._vcpu.get(raw.tid, -1))
        self.rows.add(raw, kind, vcpu=vcpu, **columns)

    def _completed(self, raw: Raw) -> str:
        """A kernel worker has the page: the process is that of the vCPU that asked for this address."""
        waiter = self._async.pop(raw.fields["gva"], None)
        if waiter is not None:
            columns = {"addr": raw.fields["gva"], "ip": raw.fields["address"]}
            self.rows.add(raw, Kind.KVM_ASYNC_PF_COMPLETED, owner=waiter, **columns)
        return "the source does not show whose fault this ends (kvm_try_async_get_page)"
