"""Exporters: what goes out is what the trace holds, and Chrome JSON keeps the rules that Perfetto reads it by."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_traces import keep

from faultreplay.cli.commands.export import command
from faultreplay.collect.importers import import_file
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.export import export
from faultreplay.faulttrace.meta import Meta, Target, Thread, WindowSpan
from faultreplay.faulttrace.schema import EVENTS, Kind
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.writer import TraceWriter

GOLDEN = Path(__file__).parent / "golden"
START = 5_000_000_000


@pytest.fixture
def recorded(tmp_path: Path) -> Trace:
    """A real recording, brought in by an importer: stage-2 faults of a guest."""
    import_file("trace-cmd", GOLDEN / "svm.trace-cmd.txt.gz", tmp_path / "r.trace")
    return open_trace(tmp_path / "r.trace")


@pytest.fixture
def made(tmp_path: Path) -> Trace:
    """Two faults with stages, one without an end; a window; a memslot; a loss; a name that needs quoting."""
    base = {"vm": 10, "accessor": "vcpu", "tid": 11, "vcpu": 0, "granule": 4096, "access": "w", "cause": "missing",
            "resolution": "copy", "handler_tid": 12, "join": "walk, spte",
            "think_ns": None, "offcpu_ns": None}  # fmt: skip
    stages = (
        {"queue_ns": 7, "service_ns": 1000, "wake_ns": 493},
        {"queue_ns": None, "service_ns": None, "wake_ns": None},
    )
    rows = [
        base
        | {"fault_id": 0, "start_ns": START, "end_ns": START + 1500, "stall_ns": 1500, "page": 1 << 63}
        | stages[0],
        base | {"fault_id": 1, "start_ns": START + 2001, "end_ns": START + 2002, "stall_ns": 1, "page": 0} | stages[1],
        base | {"fault_id": 2, "start_ns": START + 9000, "end_ns": None, "stall_ns": None, "page": 4096} | stages[1],
    ]
    meta = Meta(origin="lab", windows=[WindowSpan("freeze", START + 3000, START + 4000)])
    meta.clock.start_ns = START
    meta.targets = [Target(10, "vmm", role="vm", threads=[Thread(11, "x", "vcpu", 0), Thread(12, "h", "handler")])]
    event = dict.fromkeys(EVENTS.names, 0) | {
        "ts_ns": START + 5,
        "tgid": 10,
        "tid": 10,
        "kind": int(Kind.KVM_SET_MEMSLOT),
    }
    path = tmp_path / "m.trace"
    with TraceWriter(path, meta) as writer:
        writer.append_events(pa.Table.from_pylist([event], EVENTS))
        writer.append_losses([{"ts_ns": START, "cpu": 0, "probe": "kvm:kvm_exit", "lost": 3}])
    keep(path, [r | {"resolve_ns": None} for r in rows])
    return open_trace(path)


def chrome(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    document = json.loads(data)
    events = document["traceEvents"]
    assert isinstance(events, list)
    return events


def keeps_perfettos_rules(events: list[dict[str, Any]]) -> None:
    """Required keys a phase, no negative times, and on each track slices that nest or do not touch."""
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        assert {"ph", "pid", "tid", "name"} <= event.keys() and event["ph"] in "MXi"
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
            continue
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            end = start + round(event["dur"] * 1000)
            assert end >= start
            tracks.setdefault((event["pid"], event["tid"]), []).append((start, end))
    for spans in tracks.values():
        open_ends: list[int] = []
        for start, end in sorted(spans, key=lambda s: (s[0], -s[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def test_chrome_json_of_known_faults(made: Trace, tmp_path: Path) -> None:
    export(made, tmp_path / "x.json.gz")
    events = chrome(tmp_path / "x.json.gz")
    keeps_perfettos_rules(events)
    slices = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("missing w", 0.0, 1.5), ("queue", 0.0, 0.007), ("service", 0.007, 1.0), ("wake", 1.007, 0.493),
        ("missing w", 2.001, 0.001), ("window: freeze", 3.0, 1.0),
    ]  # fmt: skip
    instants = [e["name"] for e in events if e["ph"] == "i"]
    assert instants == ["missing w (end unseen)", "KVM_SET_MEMSLOT"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {11: "vCPU 0 (11)", 12: "h (12)"}
    first = next(e for e in events if e["ph"] == "X")
    assert first["args"]["page"] == hex(1 << 63) and first["args"]["handler_tid"] == 12


def test_chrome_json_of_a_real_recording(recorded: Trace, tmp_path: Path) -> None:
    for name in ("x.json", "x.json.gz"):
        count = export(recorded, tmp_path / name)
        events = chrome(tmp_path / name)
        assert len(events) == count
        stalls = [e for e in events if e.get("cat") == "fault" and e["ph"] == "X"]
        faults = recorded.faults().filter(pl.col("stall_ns").is_not_null())
        assert len(stalls) == faults.height > 0
        assert sum(round(e["dur"] * 1000) for e in stalls) == faults["stall_ns"].sum()


@pytest.mark.parametrize("what", ["faults", "events", "losses"])
def test_csv_and_parquet_hold_the_table(made: Trace, what: str, tmp_path: Path) -> None:
    export(made, tmp_path / "x.csv", what)
    export(made, tmp_path / "x.parquet", what)
    frame = {"faults": made.faults, "events": made.events, "losses": made.losses}[what]()
    table = pq.read_table(tmp_path / "x.parquet")
    back = pl.from_arrow(table)
    assert isinstance(back, pl.DataFrame)
    assert back.drop("kind_name", strict=False).equals(frame)
    assert Meta.from_json(table.schema.metadata[b"faultreplay.meta"]).windows == made.meta.windows
    with (tmp_path / "x.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == frame.height
    for column in frame.columns:
        wanted = ["" if value is None else str(value) for value in frame[column]]
        assert [row[column] for row in rows] == wanted
    if what == "events":
        assert rows[0]["kind_name"] == "KVM_SET_MEMSLOT"


def test_what_cannot_be(made: Trace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.json\.gz, \.json, \.csv, \.parquet"):
        export(made, tmp_path / "x.txt")
    with pytest.raises(UsageError, match="Chrome JSON shows faults"):
        export(made, tmp_path / "x.json", "events")
    with pytest.raises(UsageError, match="choose faults, events or losses"):
        export(made, tmp_path / "x.csv", "other")
    with pytest.raises(FaultreplayError, match="cannot write"):
        export(made, tmp_path / "none" / "x.csv")
    assert not list(tmp_path.glob(".x*"))


def test_the_command(made: Trace, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    done = CliRunner().invoke(command, [str(made.path), "-o", str(out)])
    assert done.exit_code == 0 and f"wrote {out}: 3 records" in done.output
    again = CliRunner().invoke(command, [str(made.path), "-o", str(out)])
    assert isinstance(again.exception, UsageError) and "--force" in str(again.exception)
    assert CliRunner().invoke(command, [str(made.path), "-o", str(out), "--force"]).exit_code == 0
