"""A recording as tracks: its vCPUs, handlers, locks, scheduling, windows and what took memory away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.tracks.model import Instant, Slice, Track, Value, spread_out
from faultreplay.faulttrace.schema import Kind

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

STAGES: Final = ("queue", "service", "wake")
_FAULT_COLUMNS: Final = (
    "fault_id", "vm", "tid", "vcpu", "start_ns", "end_ns", "stall_ns", "page", "granule", "access", "cause",
    "resolution", "handler_tid", "queue_ns", "service_ns", "resolve_ns", "wake_ns", "join",
)  # fmt: skip
_SCHED: Final = (Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING)
_LOCKS: Final = (Kind.LOCK_CONTENTION_BEGIN, Kind.LOCK_CONTENTION_END)
_INSTANTS: Final = (Kind.KVM_SET_MEMSLOT, Kind.KVM_UNMAP_HVA_RANGE, Kind.KVM_MMU_ZAP_ALL, Kind.MADVISE, Kind.FALLOCATE)


class Recording:
    """The tracks of one trace; times are the trace's own (CLOCK_MONOTONIC)."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        meta = trace.meta
        self._threads = {t.tid: (target.tgid, t) for target in meta.targets for t in target.threads}
        names = {target.tgid: target.name or target.comm or str(target.tgid) for target in meta.targets}
        self._processes = {tgid: Track(name, pid=tgid) for tgid, name in names.items()}
        self._tracks: dict[int, Track] = {}
        self._more: list[Track] = []
        self.base_ns = 0
        """when it began"""

    def tracks(self) -> list[Track]:
        """All of them; a parent stands before what is in it."""
        faults = self._trace.faults(columns=_FAULT_COLUMNS)
        self.base_ns = self._trace.meta.clock.start_ns or int(faults["start_ns"].min() or 0)  # type: ignore[arg-type]
        self._faults(faults)
        self._scheduling()
        self._locks()
        self._instants()
        self._windows()
        return [*self._processes.values(), *self._tracks.values(), *self._more]

    def _thread(self, tid: int, tgid: int, vcpu: int = -1) -> Track:
        """The track of a thread; `tgid`: its process, where the trace does not say."""
        if tid not in self._tracks:
            known = self._threads.get(tid)
            tgid = known[0] if known else tgid
            number = known[1].vcpu if known and known[1].vcpu >= 0 else vcpu
            comm = known[1].comm if known else ""
            name = " ".join(part for part in (f"vCPU {number}" if number >= 0 else "", comm) if part)
            process = self._processes.setdefault(tgid, Track(str(tgid), pid=tgid))
            self._tracks[tid] = Track(name or f"thread {tid}", process, pid=tgid, tid=tid)
        return self._tracks[tid]

    def _faults(self, faults: pl.DataFrame) -> None:
        accessors: dict[tuple[int, int], list[Slice]] = {}
        handlers: dict[int, list[Slice]] = {}
        for row in faults.iter_rows(named=True):
            track = self._thread(row["tid"], row["vm"], row["vcpu"])
            if row["stall_ns"] is None:
                name = f"{row['cause']} {row['access']} (end unseen)"
                track.instants.append(Instant(row["start_ns"], name, "fault", _args(row)))
                continue
            accessors.setdefault((row["tid"], row["vm"]), []).append(_fault(row))
            if (served := _served(row)) is not None:
                self._thread(row["handler_tid"], row["vm"])
                handlers.setdefault(row["handler_tid"], []).append(served)
        for (tid, _), slices in accessors.items():
            self._more += spread_out(self._tracks[tid], slices)[1:]
        for tid, slices in handlers.items():
            # A handler's own faults are on its thread's track: what it serves stands below.
            below = Track("serves", self._tracks[tid])
            self._more += spread_out(below, slices)

    def _scheduling(self) -> None:
        """Below each thread: on which CPU it ran, and why it did not."""
        events = self._trace.events(_SCHED, ["cpu", "tid", "tgid", "kind", "code"]).sort("tid", maintain_order=True)
        for (tid,), mine in events.group_by("tid", maintain_order=True):
            if tid not in self._tracks and tid not in self._threads:
                continue
            slices = list(_ran(mine.iter_rows(named=True)))
            if slices:
                thread = self._thread(int(tid), int(mine["tgid"][0]))
                self._more += spread_out(Track("scheduling", thread), slices)

    def _locks(self) -> None:
        events = self._trace.events(_LOCKS, ["tid", "kind", "addr"])
        if not len(events):
            return
        group = Track("locks (who waits)")
        waits: dict[int, list[Slice]] = {}
        since: dict[tuple[int, int], int] = {}
        for row in events.iter_rows(named=True):
            key = (row["tid"], row["addr"])
            if row["kind"] == Kind.LOCK_CONTENTION_BEGIN:
                since[key] = row["ts_ns"]
            elif (start := since.pop(key, None)) is not None:
                waits.setdefault(row["addr"], []).append(Slice(start, row["ts_ns"], self._who(row["tid"]), "lock"))
        self._more.append(group)
        for addr, slices in sorted(waits.items()):
            self._more += spread_out(Track(f"lock {addr:#x}", group), slices)

    def _who(self, tid: int) -> str:
        known = self._threads.get(tid)
        return f"{known[1].comm} ({tid})" if known and known[1].comm else f"thread {tid}"

    def _instants(self) -> None:
        for row in self._trace.events(_INSTANTS, ["tid", "tgid", "kind", "addr", "size"]).iter_rows(named=True):
            args: list[tuple[str, Value]] = [("addr", hex(row["addr"])), ("size", row["size"])]
            instant = Instant(row["ts_ns"], Kind(row["kind"]).name, "memory", args)
            self._thread(row["tid"], row["tgid"]).instants.append(instant)

    def _windows(self) -> None:
        spans = [*self._trace.meta.windows, *self._trace.stitch_facts().windows]
        if spans:
            slices = [Slice(span.start_ns, span.end_ns, span.kind, "window") for span in spans]
            self._more += spread_out(Track("windows"), slices)


def _args(row: dict[str, Any]) -> list[tuple[str, Value]]:
    keys = ("fault_id", "resolution", "granule", "join")
    page = [("page", hex(row["page"]))] if row["granule"] else []
    return [(key, row[key]) for key in keys] + page


def _fault(row: dict[str, Any]) -> Slice:
    """One stall with its stages inside, as far as they are known from its start on."""
    inner: list[Slice] = []
    at, end = row["start_ns"], row["start_ns"] + row["stall_ns"]
    flow = (row["fault_id"] + 1,)
    for stage in STAGES:
        length = row[f"{stage}_ns"]
        if length is None or length < 0 or at + length > end:
            break
        if length:
            inner.append(Slice(at, at + length, stage, "stage", flows=flow if stage == "wake" else ()))
        at += length
    return Slice(row["start_ns"], end, f"{row['cause']} {row['access']}", "fault", inner, flow, _args(row))


def _served(row: dict[str, Any]) -> Slice | None:
    """What its handler did for a fault, from reading its message to placing the page; None where that is not known."""
    if not row["handler_tid"] or row["queue_ns"] is None or row["service_ns"] is None or row["service_ns"] < 0:
        return None
    start = row["start_ns"] + row["queue_ns"]
    end, ioctl = start + row["service_ns"], row["resolve_ns"]
    inner = [Slice(end - ioctl, end, row["resolution"], "stage")] if ioctl and ioctl <= end - start else []
    who = f"vCPU {row['vcpu']}" if row["vcpu"] >= 0 else f"thread {row['tid']}"
    return Slice(
        start, end, f"fault of {who}", "service", inner, (row["fault_id"] + 1,), [("fault_id", row["fault_id"])]
    )


def _ran(events: Iterator[dict[str, Any]]) -> Iterator[Slice]:
    """A thread's scheduling: running, wanting a CPU, asleep. What lies before its first event is not known."""
    since, state, cpu = -1, "", -1
    for row in events:
        at = row["ts_ns"]
        if row["kind"] == Kind.SCHED_WAKING:
            if state != "asleep":
                continue
            following = "woken, waits for a CPU"
        elif row["kind"] == Kind.SCHED_IN:
            following = "running"
        else:
            following = "asleep" if row["code"] else "preempted"
        if since >= 0 and at > since:
            yield Slice(since, at, state, "scheduling", args=[("cpu", cpu)] if state == "running" else ())
        since, state, cpu = at, following, row["cpu"]
