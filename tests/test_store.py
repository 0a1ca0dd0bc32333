"""The door to a trace: what goes in comes out, and every way of being damaged gets one clear line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultreplay.faulttrace import files
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.meta import Clock, Host, Meta, Probe
from faultreplay.faulttrace.schema import EVENTS, KINDS, TRUTH, Kind
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter, write_truth


def events(count: int, start_ns: int = 1000, **columns: Any) -> pa.Table:
    base: dict[str, Any] = {field.name: np.zeros(count, field.type.to_pandas_dtype()) for field in EVENTS}
    base["ts_ns"] = np.arange(start_ns, start_ns + count, dtype=np.int64)
    base["kind"] = np.full(count, int(Kind.UFFD_MSG), np.uint8)
    return pa.table({**base, **columns}, schema=EVENTS)


def make_trace(path: Path, count: int = 100, part_rows: int = 30) -> Path:
    with TraceWriter(path, Meta(), part_rows=part_rows) as writer:
        for first in range(0, count, 10):
            writer.append_events(events(10, 1000 + first))
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    meta = Meta(host=Host(kernel="6.18", cpus=2), clock=Clock(start_ns=5), probes=[Probe("x", "kvm", "missing", "no")])
    with TraceWriter(path, meta) as writer:
        writer.append_events(events(7, addr=np.arange(7, dtype=np.uint64) + 2**63))
        writer.append_losses(
            [{"ts_ns": 9, "cpu": 1, "probe": "p", "lost": 3}, {"ts_ns": 9, "cpu": 1, "probe": "p", "lost": 2}]
        )
    trace = open_trace(path)
    frame = trace.events()
    assert frame["addr"].to_list() == [2**63 + n for n in range(7)]
    assert frame.columns == EVENTS.names
    assert trace.meta.host.cpus == 2
    assert trace.meta.probes[0].reason == "no"
    assert trace.meta.losses.total == 5
    assert trace.meta.losses.by_probe == {"p": 5}
    assert trace.losses()["lost"].to_list() == [3, 2]
    assert trace.meta.complete
    assert not trace.notes


@given(st.lists(st.integers(0, 10**15), max_size=200), st.integers(1, 50))
@settings(max_examples=25, deadline=None)
def test_any_order_comes_out_sorted_and_whole(times: list[int], part_rows: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "a.trace"
        with TraceWriter(path, Meta(), part_rows=part_rows) as writer:
            for first in range(0, len(times), 7):
                chunk = np.array(times[first : first + 7], np.int64)
                writer.append_events(events(len(chunk), ts_ns=chunk))
        assert open_trace(path).events()["ts_ns"].to_list() == sorted(times)


def test_numpy_records_wider_than_the_schema(tmp_path: Path) -> None:
    dtype = np.dtype([(f.name, f.type.to_pandas_dtype()) for f in EVENTS] + [("pad", "u1", 5)])
    records = np.zeros(3, dtype)
    records["ts_ns"] = [3, 1, 2]
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        writer.append_events(records)
    assert open_trace(tmp_path / "a.trace").events()["ts_ns"].to_list() == [1, 2, 3]


def test_filters_leave_no_extra_columns(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        kinds = np.array([1, 2, 1, 3], np.uint8)
        writer.append_events(events(4, kind=kinds, tgid=np.array([5, 5, 6, 6], np.int32)))
    frame = open_trace(tmp_path / "a.trace").events([Kind.UFFD_MSG], ["addr"], tgid=6)
    assert frame.columns == ["ts_ns", "addr"]
    assert frame.height == 1


def test_files_are_private(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace")
    assert path.stat().st_mode & 0o777 == 0o700
    for file in [*path.glob("*.*"), *path.glob("events/*")]:
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_no_overwrite_without_force(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace")
    with pytest.raises(UsageError, match="--force"):
        TraceWriter(path, Meta())
    TraceWriter(path, Meta(), force=True).close()
    assert open_trace(path).event_rows == 0


def test_force_never_deletes_what_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="not a trace"):
        TraceWriter(tmp_path / "home", Meta(), force=True)
    assert (tmp_path / "home" / "letter").exists()


def test_truncated_part_is_named(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace")
    part = path / "events" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(IncompleteData, match=r"part-000001.parquet: not a whole Parquet file"):
        open_trace(path)


def test_flipped_bytes_inside_a_part_are_named(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace", 5000, 5000)
    part = path / "events" / "part-000000.parquet"
    data = bytearray(part.read_bytes())
    data[40:400] = b"\xff" * 360
    part.write_bytes(bytes(data))
    with pytest.raises(IncompleteData, match=r"part-000000\.parquet: damaged"):
        open_trace(path).events()


@pytest.mark.parametrize("lost", [1, 3])
def test_a_part_that_is_gone_is_noticed(tmp_path: Path, lost: int) -> None:
    path = make_trace(tmp_path / "a.trace")
    (path / "events" / f"part-{lost:06d}.parquet").unlink()
    with pytest.raises(IncompleteData, match=r"gone|parts are missing"):
        open_trace(path)


def test_wrong_column_type_is_named(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace")
    part = path / "events" / "part-000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(0, "ts_ns", table["ts_ns"].cast(pa.float64())), part)
    with pytest.raises(IncompleteData, match="ts_ns is double, the schema says int64"):
        open_trace(path)


def test_impossible_time_is_named(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        writer.append_events(events(2, ts_ns=np.array([-4, 1], np.int64)))
    with pytest.raises(IncompleteData, match="impossible time -4 ns"):
        open_trace(tmp_path / "a.trace").events()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[1]", "no schema_version"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b'{"schema_version": "one"}', "schema_version"),
        (b'{"schema_version": 1, "host": {"cpus": "many"}}', r"\$.host.cpus"),
        (b'{"schema_version": 1, "losses": []}', r"\$.losses"),
        (b'{"schema_version": 1, "probes": [{"name": 3}]}', r"\$.probes"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema_version": 1, "clock": {"start_ns": 1e400}}', "damaged|start_ns"),
    ],
)
def test_hostile_meta(tmp_path: Path, text: bytes, says: str) -> None:
    path = make_trace(tmp_path / "a.trace")
    (path / "meta.json").write_bytes(text)
    with pytest.raises(IncompleteData, match=says) as raised:
        open_trace(path)
    assert "\n" not in str(raised.value)


def test_no_such_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such trace"):
        open_trace(tmp_path / "none.trace")
    (tmp_path / "empty.trace").mkdir()
    with pytest.raises(IncompleteData, match="not a trace"):
        open_trace(tmp_path / "empty.trace")


def test_unfinished_trace_says_so(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.trace", Meta())
    writer.append_events(events(5))
    writer.flush()
    writer.append_events(events(5))
    trace = open_trace(tmp_path / "a.trace")
    assert trace.events().height == 5
    assert "did not finish" in trace.notes[0]
    with pytest.raises(IncompleteData, match="did not finish"):
        open_trace(tmp_path / "a.trace", allow_incomplete=False)


def test_a_killed_writer_leaves_whole_parts(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_store import *\n"
        f"w = TraceWriter(Path({str(tmp_path / 'a.trace')!r}), Meta(), part_rows=2000)\n"
        "n = 0\n"
        "while True:\n    w.append_events(events(1000, n)); n += 1000\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "a.trace" / "events").glob("part-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    times = open_trace(tmp_path / "a.trace").events()["ts_ns"].to_list()
    assert len(times) >= 10_000
    assert times == list(range(len(times)))


def test_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.trace"
    writer = TraceWriter(path, Meta(), part_rows=10)
    writer.append_events(events(10))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.pq, "ParquetWriter", full)
    with pytest.raises(FaultreplayError, match="no space left"):
        writer.append_events(events(10, 5000))
    assert open_trace(path).events().height == 10
    assert not list((path / "events").glob(".*"))


def test_old_parts_can_be_dropped(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.trace", Meta(extra={"rotated": True}), part_rows=10)
    for first in range(0, 50, 10):
        writer.append_events(events(10, first))
    assert writer.drop_parts_before(25) == 2
    writer.close()
    assert open_trace(tmp_path / "a.trace").events()["ts_ns"].min() == 20


def test_truth_round_trip(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a.trace")
    assert open_trace(path).truth() is None
    row = {"accessor": "vcpu", "tid": 1, "vcpu": 0, "seq": 0, "page": 4096, "access": "r", "start_ns": 1, "end_ns": 3}
    write_truth(path, pa.Table.from_pylist([row], TRUTH))
    truth = open_trace(path).truth()
    assert truth is not None
    assert truth.to_dicts() == [row]


def test_every_kind_is_explained_in_terms_of_the_schema() -> None:
    assert set(KINDS) == set(Kind)
    for kind, info in KINDS.items():
        assert set(info.columns) <= set(EVENTS.names), kind
        assert ":" in info.source or "tracepoints" in info.source, kind


def test_meta_json_survives_a_round_trip() -> None:
    meta = Meta(lab={"data_pages": 3, "spec": {"nested": [1, {"a": None}]}}, extra={"nested": [1, {"a": None}]})
    assert Meta.from_json(meta.to_json()) == meta
    assert json.loads(meta.to_json())["schema_version"] == 1


def test_a_wrong_type_in_what_the_lab_says_names_its_place() -> None:
    data = Meta(lab={"windows": []}).to_json().replace(b'"windows": []', b'"windows": 7')
    with pytest.raises(IncompleteData, match=r"meta.json: damaged: .*windows"):
        Meta.from_json(data)


def test_faults_without_a_column_that_came_later_are_read(tmp_path: Path) -> None:
    from faultreplay.faulttrace.files import read_parquet, write_parquet
    from faultreplay.faulttrace.schema import FAULTS

    row = {field.name: "" if field.type == pa.string() else 0 for field in FAULTS if not field.nullable}
    old = pa.Table.from_pylist([row], FAULTS).drop_columns(["rounds", "ip"])
    write_parquet(tmp_path / "faults.parquet", old)
    read = read_parquet(tmp_path / "faults.parquet", FAULTS)
    assert read.schema.names == FAULTS.names
    assert read["rounds"].to_pylist() == read["ip"].to_pylist() == [None]
    write_parquet(tmp_path / "faults.parquet", old.drop_columns(["cause"]))
    with pytest.raises(IncompleteData, match="column cause is missing"):
        read_parquet(tmp_path / "faults.parquet", FAULTS)


def test_versions_have_a_log() -> None:
    from faultreplay.faulttrace.schema import SCHEMA_LOG, SCHEMA_VERSION, STITCH_LOG, STITCH_VERSION

    for log, version in ((SCHEMA_LOG, SCHEMA_VERSION), (STITCH_LOG, STITCH_VERSION)):
        assert list(log) == [*range(1, version + 1)]
        assert all(log.values())
