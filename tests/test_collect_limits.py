"""Ceilings, rotation and trigger on made-up streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faultreplay.collect.recorder.keep import Retention, Rotation, Stall, StallWatch, Trigger
from faultreplay.collect.recorder.limits import Limits, Shedder
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import EVENTS, Kind
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter

S = 1_000_000_000


class FakeBackend:
    def __init__(self) -> None:
        self.now: tuple[str, ...] = ()

    def shed(self, groups: Any) -> None:
        self.now = tuple(groups)


class Clock:
    """Feeds a shedder with rates; the totals grow by what is kept."""

    def __init__(self, limits: Limits, rates: dict[str, float], cpu_share: float = 0.1) -> None:
        self.backend = FakeBackend()
        self.shedder = Shedder(self.backend, limits, ("faults", "kvm", "sched", "mm"))  # type: ignore[arg-type]
        self.rates, self.cpu_share = rates, cpu_share
        self.now_ns, self.totals = 0, dict.fromkeys(rates, 0)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.now_ns += S // 20
            for group, rate in self.rates.items():
                if group not in self.backend.now:
                    self.totals[group] += round(rate / 20)
            cpu_ns = round(self.now_ns * self.cpu_share)
            self.shedder.step(self.now_ns, sum(self.totals.values()), cpu_ns, self.totals)


def test_nothing_is_shed_below_the_ceiling() -> None:
    clock = Clock(Limits(max_rate=100_000), {"faults": 50_000, "sched": 40_000})
    clock.run(30)
    assert clock.shedder.spans == []


def test_the_group_worth_shedding_goes_first_and_the_interval_is_kept() -> None:
    clock = Clock(Limits(max_rate=100_000), {"faults": 80_000, "sched": 60_000, "mm": 10})
    clock.run(2)
    assert clock.backend.now == ("sched",)
    clock.shedder.end(clock.now_ns)
    (span,) = clock.shedder.spans
    assert 0 < span["start_ns"] <= 1.2 * S
    assert span["end_ns"] == 2 * S
    assert "140,0" in span["reason"]


def test_more_groups_go_while_it_is_not_enough() -> None:
    clock = Clock(Limits(max_rate=100_000), {"faults": 300_000, "sched": 300_000, "kvm": 200_000})
    clock.run(5)
    assert set(clock.backend.now) == {"sched", "kvm", "faults"}


def test_cpu_ceiling() -> None:
    clock = Clock(Limits(max_cpu_percent=20), {"faults": 1000, "sched": 1000}, cpu_share=0.3)
    clock.run(1)
    assert clock.backend.now == ("sched",)
    assert "30 % of a core, ceiling 20 %" in clock.shedder.spans[0]["reason"]


def test_a_group_is_taken_back_and_waits_longer_each_time_it_fails() -> None:
    clock = Clock(Limits(max_rate=100_000), {"faults": 80_000, "sched": 60_000})
    clock.run(120)
    lengths = [(span.get("end_ns", clock.now_ns) - span["start_ns"]) / S for span in clock.shedder.spans]
    assert [round(length) for length in lengths[:3]] == [10, 20, 40]
    clock.rates["sched"] = 100
    clock.run(200)
    assert clock.backend.now == ()


def _columns(*rows: tuple[int, Kind, int, int, int]) -> dict[str, Any]:
    """(ts_ns, kind, tid, code, value) rows as columns."""
    ts_ns, kind, tid, code, value = zip(*rows, strict=True)
    return {
        "ts_ns": np.array(ts_ns, np.int64),
        "kind": np.array(kind, np.uint8),
        "tid": np.array(tid, np.int32),
        "code": np.array(code, np.uint64),
        "value": np.array(value, np.int64),
    }


def test_a_long_page_fault_is_seen_also_across_batches() -> None:
    watch = StallWatch(50)
    watch.see(_columns((10, Kind.PAGE_FAULT_USER, 7, 4, 0), (12, Kind.PAGE_FAULT_USER, 8, 4, 0)))
    watch.see(_columns((20, Kind.MMAP_LOCK_RELEASED, 8, 0, 0)))
    assert watch.seen is None
    watch.see(_columns((100, Kind.MMAP_LOCK_RELEASED, 7, 0, 0)))
    assert watch.seen == Stall(7, 10, 90)


def test_a_sleep_counts_only_when_a_handler_ends_it() -> None:
    watch = StallWatch(50)
    watch.see(
        _columns(
            (1, Kind.UFFD_MSG, 99, 0, 0),
            (10, Kind.SCHED_OUT, 7, 1, 0),
            (11, Kind.SCHED_OUT, 8, 1, 0),
            (12, Kind.SCHED_OUT, 9, 0, 0),  # preempted
            (500, Kind.SCHED_WAKING, 8, 0, 3),  # a timer, say
            (510, Kind.SCHED_WAKING, 9, 0, 99),
        )
    )
    assert watch.seen is None
    watch.see(_columns((600, Kind.SCHED_WAKING, 7, 0, 99)))
    assert watch.seen == Stall(7, 10, 590)


def _write(writer: TraceWriter, retention: Retention, start_ns: int, end_ns: int) -> None:
    """One part of 100 events."""
    rows = {field.name: pa.array(np.zeros(100), pa.float64()).cast(field.type) for field in EVENTS}
    rows["ts_ns"] = pa.array(np.linspace(start_ns, end_ns, 100).astype(np.int64))
    before = writer.bytes_written
    writer.append_events(pa.RecordBatch.from_pydict(rows, schema=EVENTS))
    writer.flush()
    retention.after_part(writer, start_ns, end_ns, writer.bytes_written - before)


def test_rotation_by_time_keeps_the_last_segments_and_the_trace_opens(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        retention = Retention(Rotation(keep=2, segment_ns=2 * S), None)
        for i in range(11):
            _write(writer, retention, i * S + 1, (i + 1) * S)
    trace = open_trace(tmp_path / "a.trace", allow_incomplete=False)
    times = trace.events()["ts_ns"]
    assert writer.meta.extra["dropped"]["parts"] > 0
    assert 2 * S < times[-1] - times[0] <= 5 * S
    assert times[-1] == 11 * S


def test_rotation_by_size_bounds_the_disk(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        retention = Retention(Rotation(keep=3, segment_bytes=10_000), None)
        sizes = []
        for i in range(60):
            _write(writer, retention, i * S + 1, (i + 1) * S)
            sizes.append(writer.bytes_written)
    on_disk = sum(part.stat().st_size for part in (tmp_path / "a.trace" / "events").iterdir())
    assert on_disk == sizes[-1]
    assert 20_000 < max(sizes[20:]) < 50_000
    assert open_trace(tmp_path / "a.trace").event_rows % 100 == 0


def test_a_trigger_keeps_its_last_seconds(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        retention = Retention(None, Trigger(1, 3 * S))
        for i in range(20):
            _write(writer, retention, i * S + 1, (i + 1) * S)
    times = open_trace(tmp_path / "a.trace").events()["ts_ns"]
    assert 3 * S <= times[-1] - times[0] + 1 <= 4 * S
