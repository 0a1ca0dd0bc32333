"""What the events themselves say about the targets: roles of threads, memslots, when to look at /proc again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from collect import proc
from collect.ring import Events
from faulttrace.meta import MapEntry, Memslot, Meta, Target, Thread
from faulttrace.schema import Kind

_CLONE_THREAD = 0x00010000
_LOOK_AGAIN = (Kind.UFFD_REGISTER, Kind.UFFD_UNREGISTER, Kind.KVM_SET_MEMSLOT, Kind.PROCESS_EXEC)
_NOTED = np.zeros(256, bool)
_NOTED[[*_LOOK_AGAIN, Kind.KVM_RUN_ENTER, Kind.UFFD_MSG, Kind.THREAD_NEW]] = True


@dataclass
class Observer:
    """Collects what belongs into `meta.json` while batches pass by."""

    roles: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)  # (tgid, tid) -> role, vCPU
    memslots: dict[int, list[Memslot]] = field(default_factory=dict)
    processes: set[int] = field(default_factory=set)  # targets, also those that came later
    changed: set[int] = field(default_factory=set)  # targets whose mappings or descriptors changed

    def see(self, events: Events) -> None:
        """Take note of one batch; almost all events are passed over at the cost of one table look-up."""
        events = events[_NOTED[events["kind"]]]
        kind = events["kind"]
        runs = events[kind == Kind.KVM_RUN_ENTER]
        for tgid, tid, vcpu in set(zip(*(runs[name].tolist() for name in ("tgid", "tid", "vcpu")), strict=True)):
            self.roles[tgid, tid] = ("vcpu", vcpu)
        reads = events[kind == Kind.UFFD_MSG]
        for key in np.unique(reads["tgid"].astype(np.int64) << 32 | reads["tid"]).tolist():
            self.roles.setdefault((key >> 32, key & 0xFFFFFFFF), ("handler", -1))
        for row in events[(kind == Kind.KVM_SET_MEMSLOT) & (events["value"] == 0)]:
            code = int(row["code"])
            slot = Memslot(
                int(row["ts_ns"]), code & 0xFFFFFFFF, int(row["addr"]), int(row["ip"]), int(row["size"]), code >> 32
            )
            self.memslots.setdefault(int(row["tgid"]), []).append(slot)
        for row in events[kind == Kind.THREAD_NEW]:
            if not int(row["code"]) & _CLONE_THREAD:
                self.processes.add(int(row["value"]))
                self.changed.add(int(row["value"]))
        self.changed.update(np.unique(events["tgid"][np.isin(kind, _LOOK_AGAIN)]).tolist())


def add_map(meta: Meta, entries: list[MapEntry]) -> None:
    """Add the mappings that are new or changed since they were last seen."""
    known = {(e.tgid, e.start, e.end): (e.page_bytes, e.uffd) for e in meta.memory_map}
    meta.memory_map.extend(e for e in entries if known.get((e.tgid, e.start, e.end)) != (e.page_bytes, e.uffd))


def complete_targets(meta: Meta, observer: Observer) -> None:
    """Put roles, later threads and processes, and memslots into `meta.targets`."""
    by_tgid = {target.tgid: target for target in meta.targets}
    for tgid in sorted(observer.processes - set(by_tgid)):
        by_tgid[tgid] = proc.describe_target(tgid)
        meta.targets.append(by_tgid[tgid])
    for (tgid, tid), (role, vcpu) in sorted(observer.roles.items()):
        target = by_tgid.setdefault(tgid, Target(tgid))
        thread = next((t for t in target.threads if t.tid == tid), None)
        if thread is None:
            thread = Thread(tid)
            target.threads.append(thread)
        thread.role = "vcpu" if role == "vcpu" else "handler"
        thread.vcpu = vcpu
        if role == "vcpu":
            target.role = "vm"
    for tgid, slots in observer.memslots.items():
        by_tgid.setdefault(tgid, Target(tgid)).memslots = slots
    for target in meta.targets:
        for thread in target.threads:
            if thread.role == "other" and target.role == "vm":
                thread.role = "vmm"
