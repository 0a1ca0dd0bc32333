"""What the events themselves say about the targets: roles of threads, memslots, when to look at /proc again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from faultreplay.collect.recorder.drain import Columns
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.targets import vm_identity
from faultreplay.faulttrace.meta import MapEntry, Memslot, Meta, Target, Thread
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.vcpus import NAMED, numbers

_CLONE_THREAD = 0x00010000
_KERNEL_COMMS = ("vhost-", "iou-wrk-", "iou-sqp-")
"""Names the kernel gives to threads that access memory on behalf of a VM (vhost since Linux 6.4, io_uring)."""

_LOOK_AGAIN = (Kind.UFFD_REGISTER, Kind.UFFD_UNREGISTER, Kind.KVM_SET_MEMSLOT, Kind.PROCESS_EXEC)
_NOTED = np.zeros(256, bool)
_NOTED[[*_LOOK_AGAIN, Kind.KVM_RUN_ENTER, Kind.UFFD_MSG, Kind.THREAD_NEW, Kind.KVM_UNMAP_HVA_RANGE]] = True


@dataclass
class Observer:
    """Collects what belongs into `meta.json` while batches pass by."""

    roles: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)  # (tgid, tid) -> role, vCPU
    memslots: dict[int, list[Memslot]] = field(default_factory=dict)
    zappers: dict[tuple[int, int], tuple[str, bool] | None] = field(default_factory=dict)
    """(tgid, tid) of who zapped guest memory -> name, and whether it is a kernel thread; None: the target's own."""
    processes: set[int] = field(default_factory=set)  # targets, also those that came later
    changed: set[int] = field(default_factory=set)  # targets whose mappings or descriptors changed

    def see(self, columns: Columns) -> None:
        """Take note of one batch; almost all events are passed over at the cost of one table look-up."""
        noted = np.flatnonzero(_NOTED[columns["kind"]])
        if not len(noted):
            return
        kind = columns["kind"][noted]

        def rows(wanted: npt.NDArray[np.bool_], *names: str) -> set[tuple[int, ...]]:
            at = noted[wanted]
            return set(zip(*(columns[name][at].tolist() for name in names), strict=True))

        for tgid, tid, vcpu in rows(kind == Kind.KVM_RUN_ENTER, "tgid", "tid", "vcpu"):
            self.roles[tgid, tid] = ("vcpu", vcpu)
        for tgid, tid in rows(kind == Kind.UFFD_MSG, "tgid", "tid"):
            self.roles.setdefault((tgid, tid), ("handler", -1))
        for tgid, tid in rows(kind == Kind.KVM_UNMAP_HVA_RANGE, "tgid", "tid"):
            if (tgid, tid) not in self.zappers:
                self.zappers[tgid, tid] = proc.outsider(tgid, tid)
        slots = rows(kind == Kind.KVM_SET_MEMSLOT, "ts_ns", "tgid", "code", "addr", "ip", "size", "value")
        for ts_ns, tgid, code, gpa, hva, size, failed in sorted(slots):
            if not failed:
                slot = Memslot(ts_ns, code & 0xFFFFFFFF, gpa, hva, size, code >> 32)
                self.memslots.setdefault(tgid, []).append(slot)
        for child, flags in rows(kind == Kind.THREAD_NEW, "value", "code"):
            if not flags & _CLONE_THREAD:
                self.processes.add(child)
                self.changed.add(child)
        self.changed.update(tgid for (tgid,) in rows(np.isin(kind, _LOOK_AGAIN), "tgid"))


def add_map(meta: Meta, entries: list[MapEntry]) -> None:
    """Add the mappings that are new or changed since they were last seen."""
    known = {(e.tgid, e.start, e.end): (e.page_bytes, e.uffd) for e in meta.memory_map}
    meta.memory_map.extend(e for e in entries if known.get((e.tgid, e.start, e.end)) != (e.page_bytes, e.uffd))


def complete_targets(meta: Meta, observer: Observer, vcpu_threads: Sequence[str] = ()) -> None:
    """Put roles, later threads and processes, and memslots into `meta.targets`.

    `vcpu_threads`: names or ids of threads that are vCPUs though they never call KVM_RUN; QEMU's TCG threads are, too.
    """
    by_tgid = {target.tgid: target for target in meta.targets}
    acted = {tgid for tgid, _ in observer.roles} | set(observer.memslots)  # may have come and gone unseen
    for tgid in sorted((observer.processes | acted) - set(by_tgid)):
        by_tgid[tgid] = proc.describe_target(tgid)
        by_tgid[tgid].name = vm_identity(by_tgid[tgid].cmdline)[0] if by_tgid[tgid].role == "vm" else ""
        meta.targets.append(by_tgid[tgid])
    for (tgid, tid), (role, vcpu) in sorted(observer.roles.items()):
        target = by_tgid[tgid]
        thread = next((t for t in target.threads if t.tid == tid), None)
        if thread is None:
            thread = Thread(tid)
            target.threads.append(thread)
        thread.role = "vcpu" if role == "vcpu" else "handler"
        thread.vcpu = vcpu
        if role == "vcpu":
            target.role = "vm"
    for tgid, slots in observer.memslots.items():
        by_tgid[tgid].memslots = slots
    for (tgid, tid), outsider in sorted(observer.zappers.items()):
        if outsider is not None and outsider[1] and tgid in by_tgid:
            by_tgid[tgid].threads.append(Thread(tid, outsider[0], "kernel"))
    for target in meta.targets:
        _add_later_threads(target)
        for thread in target.threads:
            if thread.role == "other" and thread.comm.startswith(_KERNEL_COMMS):
                thread.role = "kernel"
            elif thread.role == "other" and target.role == "vm":
                thread.role = "vmm"
    _name_vcpus(meta, vcpu_threads)


def _name_vcpus(meta: Meta, vcpu_threads: Sequence[str]) -> None:
    """Threads that stand for vCPUs without KVM."""
    named: list[int] = []
    for target in meta.targets:
        numbered = numbers(target, vcpu_threads)
        for thread in target.threads:
            if thread.tid in numbered and thread.role != "vcpu":
                thread.role, thread.vcpu = "vcpu", numbered[thread.tid]
                named.append(thread.tid)
    if named:
        meta.extra[NAMED] = named


def _add_later_threads(target: Target) -> None:
    """Threads born while recording, where the process still lives; and the names they have now."""
    now = {thread.tid: thread.comm for thread in proc.describe_target(target.tgid).threads}
    known = {thread.tid: thread for thread in target.threads}
    for tid, comm in now.items():
        if tid in known:
            known[tid].comm = comm
        else:
            target.threads.append(Thread(tid, comm))
