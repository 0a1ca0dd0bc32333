"""From what another tool printed to rows of a trace."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.printed import SVM_EXITS, VMX_EXITS
from faultreplay.collect.importers.raw import Mark, Raw, RawColumns
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
_BARE: Final = {
    "mmap_lock:mmap_lock_released": Kind.MMAP_LOCK_RELEASED,
    "sched:sched_process_exit": Kind.THREAD_EXIT,
    "sched:sched_process_exec": Kind.PROCESS_EXEC,
}
# call -> (kind, event column -> field of sys_enter_*); mmap's and mremap's result is an address
_CALLS: Final[dict[str, tuple[Kind, dict[str, str]]]] = {
    "mmap": (Kind.MMAP, {"size": "len", "fd": "fd"}),
    "munmap": (Kind.MUNMAP, {"addr": "addr", "size": "len"}),
    "madvise": (Kind.MADVISE, {"addr": "start", "size": "len_in", "code": "behavior"}),
    "fallocate": (Kind.FALLOCATE, {"fd": "fd", "addr": "offset", "size": "len", "code": "mode"}),
    "mremap": (Kind.MREMAP, {"addr": "addr", "size": "new_len"}),
    "mprotect": (Kind.MPROTECT, {"addr": "start", "size": "len", "code": "prot"}),
}
_REASONS: Final = {
    "syscalls:sys_exit_read": "the source shows the call, not the message: who faults on which page is not in it",
    "syscalls:sys_exit_ioctl": "the source shows a pointer, not what it points to: ranges and memslots are 0",
}
_U64: Final = (1 << 64) - 1
_STATE_ONLY: Final = ("read", "close", "userfaultfd")
_OTHER_IOCTL: Final = "ioctls of other devices, or of KVM that concern no fault"
_IDLE: Final = "of the idle thread"
_LINE: Final = "line"
_UNSIGNED: Final = ("addr", "ip", "code", "size")
_DTYPES: Final = {field.name: field.type.to_pandas_dtype() for field in EVENTS}
_LIMITS: Final = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in _DTYPES.items()}


class Builder:
    """Turns `Raw` events into rows of `EVENTS`; remembers what it saw for the meta."""

    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []
        self.kept: Counter[str] = Counter()
        self.not_taken: dict[tuple[str, str], Mark] = {}
        """(event, why) -> how many and from which line on."""
        self._tables: list[dict[str, Any]] = []
        self._line = 0
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
            ValueError: a field it needs is not there, or a number fits no column.
        """
        if raw.tgid > 0:
            self._tgid[raw.tid] = raw.tgid
        self._line = raw.line
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
        if raw.tid and raw.comm:
            self._comm[raw.tid] = raw.comm

    def add_columns(self, raw: RawColumns) -> None:
        """Take many events of one name."""
        known = raw.tgid > 0
        self._tgid.update(zip(raw.tid[known].tolist(), raw.tgid[known].tolist(), strict=True))
        if raw.name == "sched:sched_switch":
            out, into = raw.fields["prev_pid"], raw.fields["next_pid"]
            kept = self._rows_of(raw, Kind.SCHED_OUT, tid=out, code=raw.fields["prev_state"], value=into)
            kept |= self._rows_of(raw, Kind.SCHED_IN, tid=into, value=out)
        elif raw.name == "sched:sched_waking":
            kept = self._rows_of(raw, Kind.SCHED_WAKING, tid=raw.fields["pid"], value=raw.tid)
        else:
            kind = _PLAIN[raw.name][0]
            columns = self._evaluated(raw.name, raw.fields)
            if "vcpu_id" in raw.fields:
                columns["vcpu"] = raw.fields["vcpu_id"]
            kept = self._rows_of(raw, kind, **columns)
            self._note_vcpus(raw, kind)
        taken = int(np.count_nonzero(kept))
        self.kept[raw.name] += taken
        if taken < len(kept):
            self.leave(raw.name, _IDLE, int(raw.line[~kept][0]), len(kept) - taken)
        self._seen_at(int(raw.ts_ns.min()), int(raw.ts_ns.max()))
        self._comm.update(raw.comms)

    def leave(self, name: str, why: str, line: int, count: int = 1) -> None:
        """Count events that are not taken."""
        self.not_taken.setdefault((name, why), Mark()).add(line, count)

    def finish(self) -> None:
        """Count calls that had not ended when the recording did."""
        for (_, call), raw in self._calls.items():
            command = raw.fields.get("cmd", 0) & 0xFFFFFFFF if call == "ioctl" else 0
            if command != _KVM_RUN and (call != "ioctl" or command in KVM_IOCTLS):
                self.leave(raw.name, "the call had not ended when the recording did", raw.line)
        self._calls.clear()

    def take(self) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The rows so far in the order of the file (columns of `EVENTS`) and their lines; they are forgotten here.

        Raises:
            ValueError: a number does not fit into its column.
        """
        lines = [np.array([row.pop(_LINE) for row in self.rows], dtype=np.int64)]
        try:
            tables = [pa.Table.from_pylist(self.rows, EVENTS)]
            for columns in self._tables:
                lines.append(columns.pop(_LINE))
                tables.append(pa.Table.from_pydict(columns, EVENTS))
        except (pa.ArrowInvalid, OverflowError) as error:
            raise ValueError(f"a number does not fit into its column: {str(error).splitlines()[0]}") from None
        self.rows, self._tables = [], []
        line = np.concatenate(lines)
        order = np.argsort(line, kind="stable")
        return pa.concat_tables(tables).take(pa.array(order)), line[order]

    def _seen_at(self, first_ns: int, last_ns: int) -> None:
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)

    def _evaluated(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Columns of an event of the probe table by the table's own expressions: of one event, or of many."""
        kind, expressions = _PLAIN[name]
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
            self._reasons.update(np.unique(raw.fields["exit_reason"]).tolist())
        if kind in (Kind.KVM_ENTRY, Kind.KVM_EXIT):
            vcpus = raw.fields.get("vcpu_id", np.full(len(raw.tid), -1))
            for tid, vcpu in np.unique(np.stack([raw.tid, vcpus]), axis=1).T.tolist():
                self._vcpu[tid] = max(vcpu, self._vcpu.get(tid, -1))

    def _rows_of(
        self, raw: RawColumns, kind: Kind, *, tid: npt.NDArray[Any] | None = None, **columns: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_]:
        """Add rows as `_row` does; which of them are of a thread that is not the idle one."""
        who = raw.tid if tid is None else tid
        kept = who > 0
        people, index = np.unique(who, return_inverse=True)
        tgid = np.array([self._tgid.get(one, one) for one in people.tolist()])[index]
        rows: dict[str, Any] = {_LINE: raw.line, "ts_ns": raw.ts_ns, "cpu": raw.cpu, "tgid": tgid, "tid": who}
        rows |= {"kind": np.full(len(who), int(kind)), "fd": np.full(len(who), -1), "vcpu": np.full(len(who), -1)}
        for name in ("addr", "ip", "code", "size", "value", "dur_ns"):
            rows[name] = np.zeros(len(who), dtype=np.uint64 if name in _UNSIGNED else np.int64)
        for name, values in columns.items():
            rows[name] = values.astype(np.uint64) if name in _UNSIGNED else values
        self._tables.append({name: values[kept].astype(_DTYPES.get(name, np.int64)) for name, values in rows.items()})
        return kept

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
        if who <= 0:
            return  # the idle thread
        row: dict[str, int] = dict.fromkeys(_COLUMNS, 0) | {_LINE: self._line}
        row |= {"ts_ns": raw.ts_ns, "cpu": raw.cpu, "tgid": self._tgid.get(owner, owner), "tid": who, "kind": int(kind)}
        row |= {"fd": -1, "vcpu": -1}
        row |= {name: value & _U64 if name in _UNSIGNED else value for name, value in columns.items()}
        for name, value in row.items():
            least, most = _LIMITS.get(name, (-(1 << 63), _U64))
            if not least <= value <= most:
                raise ValueError(f"a number does not fit into its column: {name} {value}")
        self.rows.append(row)

    def _dispatch(self, raw: Raw) -> str:
        """Make rows of an event, or keep what it tells; why not, where neither can be (unless rows came of it)."""
        f: dict[str, Any] = raw.fields
        if raw.name in _PLAIN:
            self._plain(raw)
        elif kind := _FAULTS.get(raw.name):
            self._row(raw, kind, addr=f["address"], ip=f.get("ip", 0), code=f["error_code"])
        elif kind := _BARE.get(raw.name):
            self._row(raw, kind, code=f.get("write", 0))
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
        elif raw.name == "kvm:kvm_try_async_get_page":
            self._async[f["gva"]] = raw.tid
            return ""
        elif raw.name == "kvm:kvm_async_pf_completed":
            return self._completed(raw)
        elif raw.name.startswith("syscalls:"):
            return self._call(raw)
        else:
            return "imports make nothing of it yet"
        return _IDLE

    def _plain(self, raw: Raw) -> None:
        kind = _PLAIN[raw.name][0]
        columns = {name: int(value) for name, value in self._evaluated(raw.name, raw.fields).items()}
        if kind == Kind.KVM_EXIT:
            self._reasons.add(columns["code"])
        vcpu = raw.fields.get("vcpu_id", -1)
        if kind in (Kind.KVM_ENTRY, Kind.KVM_EXIT):
            self._vcpu[raw.tid] = max(vcpu, self._vcpu.get(raw.tid, -1))
        self._row(raw, kind, vcpu=vcpu, **columns)

    def _completed(self, raw: Raw) -> str:
        """A kernel worker has the page: the process is that of the vCPU that asked for this address."""
        waiter = self._async.pop(raw.fields["gva"], None)
        if waiter is not None:
            columns = {"addr": raw.fields["gva"], "ip": raw.fields["address"]}
            self._row(raw, Kind.KVM_ASYNC_PF_COMPLETED, owner=waiter, **columns)
        return "the source does not show whose fault this ends (kvm_try_async_get_page)"

    def _call(self, raw: Raw) -> str:
        phase, _, call = raw.name.removeprefix("syscalls:sys_").partition("_")
        if call in _STATE_ONLY:
            return _REASONS.get(raw.name, "file descriptors are followed for userfaultfd messages only")
        if phase == "enter":
            self._calls[raw.tid, call] = raw
            if call != "ioctl":
                return ""
            command = raw.fields["cmd"] & 0xFFFFFFFF
            if command == _KVM_RUN:
                self._vcpu.setdefault(raw.tid, -1)
                self._row(raw, Kind.KVM_RUN_ENTER, fd=_signed32(raw.fields["fd"]))
            return "" if command in KVM_IOCTLS or command in UFFD_IOCTLS else _OTHER_IOCTL
        entered = self._calls.pop((raw.tid, call), None)
        if entered is None:
            return "the call began before the recording did"
        if call == "ioctl":
            return self._ioctl(raw, entered)
        result = raw.fields["ret"]
        kind, wanted = _CALLS[call]
        columns = {column: entered.fields.get(name, 0) for column, name in wanted.items()}
        if "fd" in columns:
            columns["fd"] = _signed32(columns["fd"])
        if call == "mmap":
            columns["addr"] = result if result > 0 else 0
            columns["code"] = entered.fields.get("prot", 0) | entered.fields.get("flags", 0) << 32
        if call == "mremap":
            columns["ip"] = result if result > 0 else 0
        self._row(raw, kind, value=min(result, 0), dur_ns=raw.ts_ns - entered.ts_ns, **columns)
        return ""

    def _ioctl(self, raw: Raw, entered: Raw) -> str:
        command = entered.fields["cmd"] & 0xFFFFFFFF
        kind = UFFD_IOCTLS.get(command) or KVM_IOCTLS.get(command)
        if kind is not None:
            fd, result = _signed32(entered.fields["fd"]), raw.fields["ret"]
            self._row(raw, kind, fd=fd, value=min(result, 0), dur_ns=raw.ts_ns - entered.ts_ns)
        return _OTHER_IOCTL


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
