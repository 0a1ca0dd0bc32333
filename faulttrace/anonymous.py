"""Anonymise a trace: remove names, ids, command lines, host data, addresses and instruction pointers.

What a replay needs is kept: which addresses are equal, adjacent or in the same huge page; which threads are equal, and
their order; all times. ``meta.extra["anonymised"]`` lists what was done.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.faulttrace.meta import Host, MapEntry, Memslot, Meta, Target, Thread
from faultreplay.faulttrace.moved_addresses import GIANT_PAGE, U64, Addresses
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace
from faultreplay.faulttrace.vcpus import NAMED, vcpu_threads

DONE: Final = (
    "process and thread ids: numbered from 1000 in their order",
    "names, command lines, mapped files, notes: removed",
    "host, kernel, CPU, distribution, fingerprint, wall clock: removed (number of CPUs and flavour of KVM stay)",
    "addresses: ranges moved by whole huge pages, each by an amount drawn at random and not kept; the offset within "
    "a page of 4 KiB is removed",
    "inodes, devices: removed; a number says only which pages are of one file",
    "instruction pointers, locks: removed; a number says only which are the same",
)
"""What was done, as stored in meta.json."""

_FIRST_ID: Final = 1000
_PAGE: Final = 4096
_HUGE: Final = 2 << 20
_IDS: Final = (Kind.UFFD_MSG, Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING, Kind.THREAD_NEW)
"""Kinds whose `value` is a thread."""
_OF_FILES: Final = (Kind.FILE_FAULT, Kind.FILE_MAP, Kind.FILE_ADD)
"""Kinds with an inode in `code` and a device in `value`."""
_PLAIN_ADDR: Final = (Kind.FALLOCATE, Kind.KVM_PIO, Kind.KVM_DIRTY_RING_PUSH, Kind.KVM_EXIT, *_OF_FILES)
"""Kinds whose `addr` is not a memory address: it is an offset, a port or an exit qualification."""
_EXACT_ADDR: Final = (Kind.MMAP, Kind.MUNMAP, Kind.MADVISE, Kind.MPROTECT, Kind.MREMAP, Kind.KVM_UNMAP_HVA_RANGE)
_ADDRESS_IN_IP: Final = (Kind.KVM_SET_MEMSLOT, Kind.MREMAP, Kind.KVM_ASYNC_PF_COMPLETED)
_LOCKS: Final = (Kind.LOCK_CONTENTION_BEGIN, Kind.LOCK_CONTENTION_END)
_EPT_VIOLATION, _VMX_IO, _NPF, _SVM_IO = 48, 30, 0x400, 0x7B
_KEPT_EXTRA: Final = ("shed", "rotated", "cut", "slowed", "dropped")


class Anonymiser:
    """Anonymises the tables and the meta.json of one trace, all with the same mapping."""

    def __init__(self, trace: Trace) -> None:
        self._flavour = trace.meta.host.kvm_flavour
        self._files: dict[tuple[int, int], int] = {}
        ids: set[int] = set()
        ips: set[int] = set()
        pages: list[U64] = [np.array(list(_told_addresses(trace.meta)), np.uint64)]
        for table in trace.event_tables():
            columns = _columns(table)
            for name in ("tgid", "tid"):
                ids.update(np.unique(columns[name]).tolist())
            of_ids = np.isin(columns["kind"], _IDS)
            ids.update(np.unique(columns["value"][of_ids]).tolist())
            ips.update(np.unique(columns["ip"][self._is_pointer(columns["kind"])]).tolist())
            ips.update(np.unique(columns["addr"][np.isin(columns["kind"], _LOCKS)]).tolist())
            pages += [np.unique(part // np.uint64(_PAGE)) * np.uint64(_PAGE) for part in self._addresses(columns)]
        for table in (trace.truth_table(), trace.original_faults()):
            if table is None:
                continue
            names = [name for name in ("tid", "vm", "handler_tid", "read_after_tid") if name in table.column_names]
            for name in [*names, *(n for n in ("wake_after_tid",) if n in table.column_names)]:
                ids.update(int(x) for x in table[name].drop_null().unique().to_pylist())
            pages.append(np.unique(table["page"].drop_null().to_numpy()).astype(np.uint64))
        for target in trace.meta.targets:
            ids |= {target.tgid, *(thread.tid for thread in target.threads)}
        ids |= {entry.tgid for entry in trace.meta.memory_map}
        ids |= {int(tid) for tid in trace.meta.extra.get(NAMED, ())}
        known = sorted(x for x in ids if x > 0)
        self._ids = np.array(known, np.int64)
        self._ips = np.array(sorted(ips - {0}), np.uint64)
        self._ip_numbers = np.array(secrets.SystemRandom().sample(range(1, len(ips) + 2), len(self._ips)), np.uint64)
        giant = any(entry.page_bytes >= GIANT_PAGE for entry in trace.meta.memory_map)
        self._moved = Addresses(np.concatenate(pages), GIANT_PAGE if giant else _HUGE)

    def events(self, table: pa.Table) -> pa.Table:
        """Raw events, anonymised."""
        columns = {name: array.copy() for name, array in _columns(table).items()}
        kind = columns["kind"]
        addresses = self._mapped(columns)
        columns["ip"] = np.where(np.isin(kind, (*_ADDRESS_IN_IP, Kind.UFFD_MSG)), columns["ip"], self._number(columns))
        columns["ip"][kind == Kind.KVM_MMU_SET_SPTE] = 0
        locks = np.isin(kind, _LOCKS)
        columns["addr"][locks] = self._ip_of(columns["addr"][locks])
        self._exits(columns)
        for name, rows, moved in addresses:
            columns[name][rows] = moved
        columns["addr"][kind == Kind.UFFD_API] = 0
        of_ids = np.isin(kind, _IDS)
        columns["value"][of_ids] = self._id(columns["value"][of_ids])
        self._number_files(columns)
        for name in ("tgid", "tid"):
            columns[name] = self._id(columns[name])
        return pa.Table.from_arrays(
            [pa.array(columns[field.name].astype(field.type.to_pandas_dtype())) for field in table.schema],
            schema=table.schema,
        )

    def _number_files(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Replace inode and device by 1, 2, ... in the order in which the files first appear."""
        rows = np.flatnonzero(np.isin(columns["kind"], _OF_FILES))
        pairs = zip(columns["value"][rows].tolist(), columns["code"][rows].tolist(), strict=True)
        numbers = [self._files.setdefault(pair, len(self._files) + 1) for pair in pairs]
        columns["code"][rows] = np.array(numbers, np.uint64)
        columns["value"][rows] = 0

    def rows(self, table: pa.Table) -> pa.Table:
        """Faults or truth, anonymised."""
        for name in ("tid", "vm", "handler_tid", "read_after_tid", "wake_after_tid"):
            if name in table.column_names:
                table = _put(table, name, [None if x is None else self.one_id(x) for x in table[name].to_pylist()])
        page = table["page"].to_numpy().astype(np.uint64)
        table = _put(table, "page", self._moved.of(page))
        return _put(table, "ip", [None] * len(table)) if "ip" in table.column_names else table

    def meta(self, old: Meta) -> Meta:
        """`old` (of the trace or of a piece) anonymised, with a list of what was done. The writer sets `integrity`."""
        host = Host(machine=old.host.machine, cpus=old.host.cpus, kvm_flavour=old.host.kvm_flavour)
        numbers = vcpu_threads(old)
        extra = {key: value for key, value in old.extra.items() if key in _KEPT_EXTRA}
        if numbers:
            extra[NAMED] = [self.one_id(tid) for tid in numbers]
        extra["anonymised"] = list(DONE)
        lab: Any = _without(dict(old.lab), ("notes", "problem"))
        if "per_accessor" in lab:
            lab["per_accessor"] = [
                {**total, "tid": self.one_id(total["tid"])} if "tid" in total else total
                for total in lab["per_accessor"]
            ]
        mechanism = old.mechanism and dataclasses.replace(
            old.mechanism, params={k: v for k, v in old.mechanism.params.items() if not isinstance(v, str)}
        )
        return dataclasses.replace(
            old,
            host=host,
            clock=dataclasses.replace(old.clock, start_realtime=""),
            command=[],
            mechanism=mechanism,
            targets=[self._target(target, n, numbers) for n, target in enumerate(old.targets)],
            memory_map=[self._map_entry(entry) for entry in old.memory_map],
            lab=lab,
            extra=extra,
        )

    def one_id(self, tid: int) -> int:
        """The new number of a process or thread; 0 and negative values mean none and are kept."""
        return int(self._id(np.array([tid], np.int64))[0])

    def _id(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        known = np.searchsorted(self._ids, values)
        return np.where(values > 0, known + _FIRST_ID, np.minimum(values, 0)).astype(np.int64)

    def _ip_of(self, values: U64) -> U64:
        if not len(self._ips):
            return np.zeros_like(values)
        at = np.minimum(np.searchsorted(self._ips, values), len(self._ips) - 1)
        return np.where(values == 0, np.uint64(0), self._ip_numbers[at])

    def _number(self, columns: Mapping[str, npt.NDArray[Any]]) -> U64:
        return self._ip_of(np.where(self._is_pointer(columns["kind"]), columns["ip"], 0).astype(np.uint64))

    @staticmethod
    def _is_pointer(kind: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return ~np.isin(kind, (*_ADDRESS_IN_IP, Kind.UFFD_MSG, Kind.KVM_MMU_SET_SPTE))

    def _where(self, columns: Mapping[str, npt.NDArray[Any]]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
        """Columns that hold memory addresses, each with a mask of the rows that do."""
        kind = columns["kind"]
        blank = (columns["addr"] == 0) & np.isin(kind, (Kind.MM_CAUSE, Kind.MMAP))
        addr = ~np.isin(kind, (*_PLAIN_ADDR, *_LOCKS, *_NO_ADDRESS)) & ~blank
        ip = np.isin(kind, _ADDRESS_IN_IP) & (columns["ip"] != 0)
        size = kind == Kind.KVM_GUEST_FAULT
        if self._flavour not in ("vmx", "arm64"):
            size = size | ((kind == Kind.KVM_EXIT) & (columns["code"] == _NPF) & (columns["size"] != 0))
        return [("addr", addr), ("ip", ip), ("size", size)]

    def _addresses(self, columns: Mapping[str, npt.NDArray[Any]]) -> list[U64]:
        return [columns[name][rows].astype(np.uint64) for name, rows in self._where(columns)]

    def _mapped(self, columns: Mapping[str, npt.NDArray[Any]]) -> list[tuple[str, npt.NDArray[np.bool_], U64]]:
        found = []
        for name, rows in self._where(columns):
            old = columns[name][rows].astype(np.uint64)
            moved = self._moved.of(old // np.uint64(_PAGE) * np.uint64(_PAGE))
            exact = np.isin(columns["kind"][rows], _EXACT_ADDR)  # calls on ranges, which need not be whole pages
            found.append((name, rows, np.where(exact, moved + old % np.uint64(_PAGE), moved)))
        return found

    def _exits(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Keep of an exit's two info words only how memory or a port was accessed; other values can be addresses."""
        if self._flavour == "arm64":
            keeps = np.ones(len(columns["kind"]), bool)
        elif self._flavour == "vmx":
            keeps = np.isin(columns["code"], (_EPT_VIOLATION, _VMX_IO))
        else:
            keeps = np.isin(columns["code"], (_EPT_VIOLATION, _NPF, _SVM_IO))
        gone = (columns["kind"] == Kind.KVM_EXIT) & ~keeps
        columns["addr"][gone] = 0
        columns["size"][(columns["kind"] == Kind.KVM_EXIT) & ~(keeps & (columns["code"] == _NPF))] = 0

    def _target(self, target: Target, number: int, vcpus: Mapping[int, int]) -> Target:
        return Target(
            self.one_id(target.tgid),
            comm=f"process {number}",
            role=target.role,
            name=f"vm {number}" if target.role == "vm" else "",
            threads=[
                Thread(self.one_id(thread.tid), _comm(thread, vcpus.get(thread.tid)), thread.role, thread.vcpu)
                for thread in target.threads
            ],
            memslots=[self._memslot(slot) for slot in target.memslots],
        )

    def _memslot(self, slot: Memslot) -> Memslot:
        return dataclasses.replace(slot, gpa=self._moved.one(slot.gpa), hva=self._moved.one(slot.hva))

    def _map_entry(self, entry: MapEntry) -> MapEntry:
        start = self._moved.one(entry.start)
        moved = {"start": start, "end": start + entry.end - entry.start, "name": "", "tgid": self.one_id(entry.tgid)}
        return dataclasses.replace(entry, **moved)  # type: ignore[arg-type]


_NO_ADDRESS: Final = tuple(
    kind
    for kind in Kind
    if kind
    in (
        Kind.MMAP_LOCK_RELEASED, Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING, Kind.THREAD_NEW, Kind.THREAD_EXIT,
        Kind.PROCESS_EXEC, Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT, Kind.KVM_ENTRY, Kind.KVM_USERSPACE_EXIT,
        Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG, Kind.KVM_RESET_DIRTY_RINGS, Kind.KVM_PML_FULL,
        Kind.KVM_DIRTY_RING_EXIT, Kind.KVM_MMU_ZAP_ALL, Kind.UFFD_API, Kind.RSS_STAT,
    )
)  # fmt: skip
"""Kinds that leave `addr` empty, or whose `addr` is not a memory address."""


def _comm(thread: Thread, vcpu: int | None) -> str:
    if thread.role == "kernel":
        return re.sub(r"\d+", "", thread.comm)  # the kernel's own names: khugepaged, kswapd, vhost-
    return f"vcpu {vcpu}" if vcpu is not None else thread.role


def _told_addresses(meta: Meta) -> Iterable[int]:
    for target in meta.targets:
        for slot in target.memslots:
            for start in (slot.gpa, slot.hva):
                yield from _steps(start, start + slot.size_bytes)
    for entry in meta.memory_map:
        yield from _steps(entry.start, entry.end)


def _steps(start: int, end: int) -> Iterable[int]:
    """Addresses at most `GIANT_PAGE` apart, so that the whole range is moved by one amount."""
    yield from range(start, max(end, start + 1), GIANT_PAGE)
    if end > start:
        yield end - 1


def _columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    return {name: table[name].to_numpy() for name in table.column_names}


def _put(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(values, field.type))


def _without(told: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in keys}
