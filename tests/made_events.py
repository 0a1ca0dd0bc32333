"""Events made by hand: faults of a process and of a guest, and what joins of them must add up to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from faultreplay.faulttrace.meta import Host, Memslot, Meta, Target
from faultreplay.faulttrace.schema import CAUSES, EVENTS, FAULTS, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch import Stitched, stitch_events
from faultreplay.faulttrace.writer import TraceWriter

VM, HANDLER, FAULTER, OTHER = 100, 101, 102, 103
FD, PAGE = 7, 0x7F00_0000_1000
PF = 0x12
ASLEEP, PREEMPTED = 1, 0
WRITE = 1
PARTS = {
    "think_asleep_ns": "think_ns", "think_preempted_ns": "think_ns", "read_run_ns": "queue_ns",
    "read_preempted_ns": "queue_ns", "resolve_ns": "service_ns", "service_preempted_ns": "service_ns",
    "wake_run_ns": "wake_ns", "preempted_ns": "offcpu_ns", "offcpu_ns": "stall_ns",
}  # fmt: skip
"""Column -> the one that it is a part of."""


def frame(*events: dict[str, Any]) -> pl.DataFrame:
    """Events with the columns that matter; the others are as an event without them has them."""
    blank = {name: 0 for name in EVENTS.names} | {"tgid": VM, "fd": -1, "vcpu": -1}
    table = pa.Table.from_pylist([blank | event for event in events], EVENTS)
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result.sort("ts_ns", maintain_order=True)


def at(ts_ns: int, kind: Kind, tid: int, **columns: int) -> dict[str, Any]:
    return {"ts_ns": ts_ns, "kind": int(kind), "tid": tid, **columns}


def message(
    ts_ns: int, page: int = PAGE, *, tid: int = FAULTER, handler: int = HANDLER, flags: int = 0
) -> dict[str, Any]:
    return at(ts_ns, Kind.UFFD_MSG, handler, fd=FD, addr=page, code=flags, value=tid, ip=PF, size=1)


def placed(
    ts_ns: int, dur_ns: int, page: int = PAGE, *, kind: Kind = Kind.UFFD_COPY, pages: int = 1, **columns: int
) -> dict[str, Any]:
    size = 4096 * pages
    whole = {"tid": HANDLER, "fd": FD, "addr": page, "size": size, "dur_ns": dur_ns, "value": size} | columns
    return at(ts_ns, kind, whole.pop("tid"), **whole)


def sleep(out_ns: int, in_ns: int, tid: int = FAULTER, *, woken_ns: int = 0, by: int = HANDLER) -> list[dict[str, Any]]:
    events = [at(out_ns, Kind.SCHED_OUT, tid, code=ASLEEP), at(in_ns, Kind.SCHED_IN, tid)]
    if woken_ns:
        events.insert(1, at(woken_ns, Kind.SCHED_WAKING, tid, value=by))
    return events


def userfault(
    start_ns: int, page: int = PAGE, tid: int = FAULTER, *, named: bool = True, flags: int = 0
) -> list[dict[str, Any]]:
    """A process fault that takes 100: asleep at 10, read at 30, placed 60-80 with the wake at 70, running at 90."""
    return [
        at(start_ns, Kind.PAGE_FAULT_USER, tid, addr=page + 8, code=2),
        *sleep(start_ns + 10, start_ns + 90, tid, woken_ns=start_ns + 70),
        message(start_ns + 30, page, tid=tid if named else 0, flags=flags),
        placed(start_ns + 80, 20, page),
        at(start_ns + 100, Kind.MMAP_LOCK_RELEASED, tid),
    ]


def same(events: pl.DataFrame, rows: int, meta: Meta | None = None) -> None:
    """By stretches of about so many events the stitch gives what it gives of the whole."""
    whole, cut = stitch_events(events, meta), stitch_events(events, meta, rows=rows)
    assert cut.faults.equals(whole.faults), (rows, cut.faults, whole.faults)
    assert cut.windows == whole.windows
    assert asdict(cut.report) == asdict(whole.report)


def only(result: Stitched) -> dict[str, Any]:
    assert len(result.faults) == 1, result.faults
    return result.faults.row(0, named=True)


def split(fault: dict[str, Any]) -> tuple[int, int, int]:
    return fault["queue_ns"], fault["service_ns"], fault["wake_ns"]


def check(result: Stitched) -> None:
    """What holds for every stitch."""
    faults = result.faults
    assert faults.columns == FAULTS.names
    faults.to_arrow().cast(FAULTS)
    assert set(faults["cause"]) <= set(CAUSES)
    assert set(faults["resolution"]) <= set(RESOLUTIONS)
    whole = faults.filter(pl.all_horizontal(pl.col("queue_ns", "service_ns", "wake_ns", "stall_ns").is_not_null()))
    assert (whole["queue_ns"] + whole["service_ns"] + whole["wake_ns"] == whole["stall_ns"]).all()
    assert ((faults["end_ns"].is_null()) == (faults["join"] == "none")).all()
    for part, whole_ns in PARTS.items():
        assert faults[part].fill_null(0).is_between(0, faults[whole_ns].fill_null(0)).all(), (part, whole_ns)
    asleep_and_not = faults["think_asleep_ns"] + faults["think_preempted_ns"]
    assert (asleep_and_not.fill_null(0) <= faults["think_ns"].fill_null(0)).all()
    for run, after in (("read_run_ns", "read_after_tid"), ("wake_run_ns", "wake_after_tid")):
        assert (faults[run].is_null() == faults[after].is_null()).all()
    report = result.report
    assert report.messages == report.messages_joined + sum(report.messages_unjoined.values())
    assert sum(report.faults_by_cause.values()) == len(faults)
    assert sum(report.unjoined_by_cause.values()) == faults["end_ns"].null_count()


def run_enter(ts_ns: int, tid: int = FAULTER) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_RUN_ENTER, tid, fd=12)


def run_exit(ts_ns: int, dur_ns: int, tid: int = FAULTER, value: int = 0) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_RUN_EXIT, tid, fd=12, dur_ns=dur_ns, value=value)


GPA = 0x1_0000_1000
META = Meta(
    host=Host(kvm_flavour="pvm"),
    targets=[Target(VM, role="vm", memslots=[Memslot(0, 1, GPA - 0x1000, PAGE - 0x1000, 64 * 4096)])],
)


def guest_userfault(
    start_ns: int, page: int = PAGE, *, tid: int = FAULTER, vcpu: int = FAULTER
) -> list[dict[str, Any]]:
    """A guest's fault under shadow paging that takes 110."""
    return [
        run_enter(start_ns - 50, vcpu),
        at(start_ns, Kind.KVM_MMU_WALK, vcpu, addr=0xDEAD000),
        *sleep(start_ns + 10, start_ns + 90, vcpu, woken_ns=start_ns + 70),
        message(start_ns + 30, page, tid=tid),
        placed(start_ns + 80, 20, page),
        at(start_ns + 100, Kind.MMAP_LOCK_RELEASED, vcpu),
        at(start_ns + 110, Kind.KVM_MMU_SET_SPTE, vcpu, addr=GPA + page - PAGE, size=1),
        run_exit(start_ns + 400, 450, vcpu),
    ]


def write(path: Path, events: list[dict[str, Any]], meta: Meta | None = None) -> Path:
    with TraceWriter(path, meta or Meta(host=Host(cpu_model="A CPU", kernel="6.18", kvm_flavour="pvm"))) as writer:
        writer.append_events(frame(*events).to_arrow())
    return path
