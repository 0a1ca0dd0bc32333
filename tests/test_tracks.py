"""*.pftrace: what Perfetto reads from it are our own totals. Read back with the package's messages, slice by slice."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_traces import BEGIN_NS, write_trace
from test_explain import rows

import faultreplay
from faultreplay.analysis.tracks.model import Slice, Track, spread_out
from faultreplay.analysis.tracks.recording import Recording
from faultreplay.analysis.tracks.timeline_file import write_timeline
from faultreplay.analysis.views.explain import situation
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.meta import Meta, Target, Thread, WindowSpan
from faultreplay.faulttrace.schema import EVENTS, Kind
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.writer import TraceWriter

MECHANISMS = ["uffd-missing", "kvm-exit"]
PROCESSOR = os.environ.get("FAULTREPLAY_TRACE_PROCESSOR") or next(
    filter(None, map(shutil.which, ("trace_processor_shell", "trace_processor"))), None
)


@dataclass
class Seen:
    """A slice as it stands in the file."""

    track: int
    name: str
    category: str
    start_ns: int
    depth: int
    flows: tuple[int, ...]
    args: dict[str, Any]
    end_ns: int = -1

    @property
    def dur_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass
class File:
    """A file read back."""

    names: dict[int, str] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    slices: list[Seen] = field(default_factory=list)
    instants: list[Seen] = field(default_factory=list)

    def under(self, track: int) -> str:
        """The name of the outermost group."""
        while self.parents.get(track):
            track = self.parents[track]
        return self.names[track]

    def total(self, category: str, group: str) -> int:
        return sum(s.dur_ns for s in self.slices if s.category == category and self.under(s.track) == group)


def read(path: Path) -> File:
    """Parse, and pair begins with ends on each track; what breaks a rule fails here."""
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = protos.Trace()
    trace.ParseFromString(path.read_bytes())
    found = File()
    words: dict[tuple[str, int], str] = {}
    open_: dict[int, list[Seen]] = {}
    last: dict[int, int] = {}
    for packet in trace.packet:
        for table in ("event_names", "event_categories", "debug_annotation_names"):
            for entry in getattr(packet.interned_data, table):
                assert (table, entry.iid) not in words
                words[table, entry.iid] = entry.name
        if packet.HasField("track_descriptor"):
            told = packet.track_descriptor
            assert told.uuid not in found.names
            assert not told.parent_uuid or told.parent_uuid in found.names  # a parent comes first
            found.names[told.uuid] = told.name or told.thread.thread_name or told.process.process_name
            found.parents[told.uuid] = told.parent_uuid
            continue
        event = packet.track_event
        assert event.track_uuid in found.names
        if event.type == protos.TrackEvent.TYPE_SLICE_END:
            mine = open_[event.track_uuid].pop()
            mine.end_ns = packet.timestamp
            assert mine.end_ns >= mine.start_ns
            last[event.track_uuid] = mine.end_ns
            continue
        args = {
            words["debug_annotation_names", a.name_iid]: a.int_value if a.HasField("int_value") else a.string_value
            for a in event.debug_annotations
        }
        seen = Seen(
            event.track_uuid,
            words["event_names", event.name_iid],
            words["event_categories", event.category_iids[0]],
            packet.timestamp,
            len(open_.get(event.track_uuid, [])),
            tuple(event.flow_ids),
            args,
        )
        if event.type == protos.TrackEvent.TYPE_INSTANT:
            found.instants.append(seen)
            continue
        assert packet.timestamp >= last.get(event.track_uuid, 0)  # slices of a track nest or do not touch
        last[event.track_uuid] = packet.timestamp
        open_.setdefault(event.track_uuid, []).append(seen)
        found.slices.append(seen)
    assert not any(open_.values())
    return found


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    threads = [Thread(200, "CPU 0/KVM", "vcpu", 0), Thread(300, "h", "handler")]
    window = WindowSpan("freeze", BEGIN_NS + 5_000_000, BEGIN_NS + 6_000_000)
    path = tmp_path_factory.mktemp("tracks") / "m.trace"
    targets = [Target(100, "vmm", threads=threads)]
    return open_trace(write_trace(path, rows(), windows=[window], targets=targets))


@pytest.fixture(scope="module")
def written(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tracks") / "x.pftrace"
    pytest.importorskip("perfetto")
    write_timeline(trace, path, MECHANISMS)
    return path


@pytest.fixture(scope="module")
def file(written: Path) -> File:
    return read(written)


def stall_of(trace: Trace, name: str) -> int:
    """What a replay's row says."""
    (row,) = faultreplay.compare(trace, [name], weigh=False).rows
    return int(row.result.accessor_stall_ns.sum())


def test_the_recordings_totals(trace: Trace, file: File) -> None:
    faults = trace.faults()
    assert file.total("fault", "vmm") == faults["stall_ns"].sum()
    assert file.total("service", "vmm") == faults["service_ns"].sum()
    assert sum(i.category == "fault" for i in file.instants) == faults["stall_ns"].null_count() == 1
    assert [(s.name, s.dur_ns) for s in file.slices if s.category == "window" and file.under(s.track) == "windows"] == [
        ("freeze", 1_000_000)
    ]
    stages = Counter[str]()
    for one in file.slices:
        mine = one.category == "stage" and one.depth == 1 and file.under(one.track) == "vmm"
        if mine and one.name in ("queue", "service", "wake"):
            stages[one.name] += one.dur_ns
    assert stages == {name: faults[f"{name}_ns"].sum() for name in ("queue", "service", "wake")}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_replays_totals_are_its_row(trace: Trace, file: File, name: str) -> None:
    group = f"{name} (replayed)"
    assert file.total("fault", group) == stall_of(trace, name)
    case = faultreplay.open_case(trace)
    how = situation(case, name)
    result = how.result()
    for resource, use in result.resources.items():
        if use.kind in ("servers", "lock"):
            prefix = "lock " if use.kind == "lock" else ""
            mine = [
                s
                for s in file.slices
                if file.under(s.track) == group and file.names[s.track].split(" (")[0] == f"{prefix}{resource}"
            ]
            assert sum(s.dur_ns for s in mine) == use.busy_ns, resource
    inside = {s.track for s in file.slices if s.category == "fault" and file.under(s.track) == group}
    names = {file.names[track].split(" (")[0] for track in inside}
    assert names == set(how.workload.accessor_name)
    assert all(s.start_ns >= BEGIN_NS for s in file.slices)


def test_flows_lead_from_a_fault_to_its_handler_and_its_wake(file: File) -> None:
    by: dict[int, list[Seen]] = {}
    for one in file.slices:
        for flow in one.flows:
            by.setdefault(flow, []).append(one)
    whole = 0
    for slices in by.values():
        ordered = sorted(slices, key=lambda s: s.start_ns)
        assert ordered[0].category == "fault"
        assert len({s.args["fault_id"] for s in slices if "fault_id" in s.args}) == 1
        if [s.category for s in ordered] == ["fault", "service", "stage"]:
            whole += 1
            assert ordered[2].name == "wake"
    assert whole > 100
    assert len({file.under(s.track) for slices in by.values() for s in slices}) == 1 + len(MECHANISMS)


def test_the_processor_counts_the_same(trace: Trace, written: Path) -> None:
    if PROCESSOR is None:
        pytest.skip("no trace_processor_shell on PATH, and FAULTREPLAY_TRACE_PROCESSOR is not set")
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    wanted = int(trace.faults()["stall_ns"].sum()) + sum(stall_of(trace, name) for name in MECHANISMS)
    with TraceProcessor(trace=str(written), config=TraceProcessorConfig(bin_path=PROCESSOR)) as processor:
        (row,) = processor.query("select sum(dur) as total, count(*) as n from slice where category = 'fault'")
        assert row.total == wanted
        (flows,) = processor.query("select count(*) as n from flow")
        assert flows.n > 100
        (errors,) = processor.query("select coalesce(sum(value), 0) as n from stats where severity = 'error'")
        assert errors.n == 0


def events(tmp_path: Path, *made: tuple[int, int, Kind, dict[str, int]]) -> Trace:
    """A trace of these (time, thread, kind, more)."""
    meta = Meta(targets=[Target(10, "vmm", threads=[Thread(11, "x", "vcpu", 0), Thread(12, "h", "handler")])])
    meta.clock.start_ns, meta.clock.end_ns = 1, 10_000
    table = [
        dict.fromkeys(EVENTS.names, 0) | {"ts_ns": at, "tgid": 10, "tid": tid, "kind": int(kind)} | more
        for at, tid, kind, more in made
    ]
    with TraceWriter(tmp_path / "e.trace", meta) as writer:
        writer.append_events(pa.Table.from_pylist(table, EVENTS))
    return open_trace(tmp_path / "e.trace")


def test_scheduling_and_locks(tmp_path: Path) -> None:
    trace = events(
        tmp_path,
        (100, 11, Kind.SCHED_IN, {"cpu": 3}),
        (250, 11, Kind.SCHED_OUT, {"cpu": 3, "code": 1}),
        (300, 12, Kind.LOCK_CONTENTION_BEGIN, {"addr": 0xAB}),
        (310, 11, Kind.LOCK_CONTENTION_BEGIN, {"addr": 0xAB}),
        (400, 11, Kind.SCHED_WAKING, {"value": 12}),
        (420, 11, Kind.SCHED_IN, {"cpu": 1}),
        (450, 11, Kind.LOCK_CONTENTION_END, {"addr": 0xAB}),
        (460, 12, Kind.LOCK_CONTENTION_END, {"addr": 0xAB}),
        (500, 11, Kind.SCHED_OUT, {"cpu": 1}),
        (600, 11, Kind.SCHED_IN, {"cpu": 1}),
    )
    tracks = Recording(trace).tracks()
    (mine,) = [t for t in tracks if t.name == "scheduling" and t.parent and t.parent.tid == 11]
    assert [(s.name, s.start_ns, s.end_ns, dict(s.args)) for s in mine.slices] == [
        ("running", 100, 250, {"cpu": 3}),
        ("asleep", 250, 400, {}),
        ("woken, waits for a CPU", 400, 420, {}),
        ("running", 420, 500, {"cpu": 1}),
        ("preempted", 500, 600, {}),
    ]
    locks = [(t.name, s.name, s.start_ns, s.end_ns) for t in tracks if t.name.startswith("lock 0xab") for s in t.slices]
    assert locks == [("lock 0xab", "h (12)", 300, 460), ("lock 0xab (2)", "x (11)", 310, 450)]


def test_what_overlaps_gets_a_track_of_its_own() -> None:
    track = Track("handler")
    spans = [(0, 10), (5, 8), (8, 12), (10, 20), (6, 7)]
    lanes = spread_out(track, [Slice(a, b, "s", "c") for a, b in spans])
    assert [[(s.start_ns, s.end_ns) for s in lane.slices] for lane in lanes] == [
        [(0, 10), (10, 20)],
        [(5, 8), (8, 12)],
        [(6, 7)],
    ]
    assert [lane.name for lane in lanes] == ["handler", "handler (2)", "handler (3)"]


def test_command(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("perfetto")
    out = tmp_path / "x.pftrace"
    assert _exit_code(["export", str(trace.path), "-o", str(out), "-m", "kvm-exit"]) == 0
    assert "wrote" in capsys.readouterr().err
    found = read(out)
    assert "kvm-exit (replayed)" in found.names.values()
    assert _exit_code(["export", str(trace.path), "-o", str(out)]) == 2  # it exists


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "x.json.gz", "-m", "kvm-exit"], "-m goes with *.pftrace"),
        (["-o", "x.pftrace", "--what", "events"], "*.pftrace shows faults"),
        (["-o", "x.pftrace", "-m", "no-such"], "no mechanism"),
        (["-o", "x.pftrace", "--vcpu", "0"], "--vcpu makes a trace"),
    ],
)
def test_command_refuses(
    trace: Trace, words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path / word) if word.startswith("x.") else word for word in words]
    assert _exit_code(["export", str(trace.path), *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_package(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    assert _exit_code(["export", str(trace.path), "-o", str(tmp_path / "x.pftrace")]) == 5
