"""Nothing in a trace changes unseen: flipped bits, files of other traces, files gone, doubled, renamed, edited."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import events

from faultreplay.faulttrace.directory import part_name
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData
from faultreplay.faulttrace.files import check_footer, read_parquet, write_parquet
from faultreplay.faulttrace.meta import Clock, Meta, Target, Thread
from faultreplay.faulttrace.remote import open_address
from faultreplay.faulttrace.schema import EVENTS, FAULTS, TRUTH, Kind
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.verify import verify_trace
from faultreplay.faulttrace.writer import TraceWriter, update_meta, write_truth

SAMPLES = sorted((Path(__file__).parent.parent / "sample-traces").glob("*.trace"))
TRUTH_ROW = {"accessor": "vcpu", "tid": 1, "vcpu": 0, "seq": 0, "page": 0, "access": "r", "start_ns": 1, "end_ns": 3}


@pytest.fixture(autouse=True)
def _never_waits() -> Iterator[None]:
    """A reader that waits forever ends the run, not the night."""
    signal.alarm(300)
    yield
    signal.alarm(0)


def process_events(count: int, first_ns: int = 1000) -> pa.Table:
    """Page faults of one thread, each resolved after 50 ns."""
    rows = np.arange(count)
    kind = np.where(rows % 2 == 0, int(Kind.PAGE_FAULT_USER), int(Kind.MMAP_LOCK_RELEASED)).astype(np.uint8)
    columns = {"kind": kind, "tid": np.full(count, 7, np.int32), "tgid": np.full(count, 7, np.int32)}
    columns["ts_ns"] = first_ns + rows * 50
    columns["addr"] = (rows // 2 * 4096).astype(np.uint64)
    return events(count, **columns)


def small(path: Path, parts: int = 3, rows: int = 40) -> Path:
    """A whole trace with parts, losses, truth and kept faults."""
    meta = Meta(clock=Clock(start_ns=900, end_ns=100_000), targets=[Target(7, threads=[Thread(7, "t")])])
    with TraceWriter(path, meta, part_rows=rows) as writer:
        for number in range(parts):
            writer.append_events(process_events(rows, 1000 + number * rows * 50))
        writer.append_losses([{"ts_ns": 950, "cpu": 1, "probe": "p", "lost": 3}])
    write_truth(path, pa.Table.from_pylist([TRUTH_ROW], TRUTH))
    assert open_trace(path).faults().height == parts * rows // 2
    return path


def everything(path: Path) -> tuple[Any, ...]:
    """All that can be read from a trace, and whether it is said to be whole."""
    trace = open_trace(path)
    truth = trace.truth()
    return (
        trace.meta, trace.notes, trace.events().rows(), trace.losses().rows(), trace.faults().rows(),
        truth.rows() if truth is not None else None,
    )  # fmt: skip


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def _silent(path: Path, bits_of: Callable[[Path], list[int]]) -> tuple[list[str], int]:
    """Flips that change what is read without a word, and how many were tried."""
    whole = everything(path)
    silent, flips = [], 0
    for file in _files(path):
        good = file.read_bytes()
        for bit in bits_of(file):
            _flip(file, bit)
            flips += 1
            try:
                same = everything(path) == whole
            except FaultreplayError as error:
                assert "\n" not in str(error)
                same = True  # noticed
            if not same:
                silent.append(f"{file.name} bit {bit}")
            file.write_bytes(good)
    return silent, flips


@pytest.fixture(params=["whole", "killed"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small trace; or what a killed recorder leaves of one."""
    path = small(tmp_path / "a.trace")
    if request.param == "killed":
        return killed(tmp_path / "k.trace")
    return path


def killed(path: Path, parts: int = 3) -> Path:
    """A trace whose recorder was killed after so many parts."""
    writer = TraceWriter(path, Meta(clock=Clock(start_ns=900)), part_rows=40)
    writer.append_losses([{"ts_ns": 950, "cpu": 1, "probe": "p", "lost": 3}])
    for number in range(parts):
        writer.append_events(process_events(40, 1000 + number * 2000))
    assert open_trace(path).faults().height == parts * 20
    return path


def test_no_flipped_bit_changes_anything_unseen(trace: Path) -> None:
    rng = random.Random(17)
    silent, flips = _silent(trace, lambda file: rng.sample(range(file.stat().st_size * 8), 40))
    assert flips > 200
    assert not silent


@pytest.mark.slow
def test_no_flipped_byte_at_all(trace: Path) -> None:
    """One bit in every eighth byte; FAULTREPLAY_EVERY_BYTE=1: in every byte, which takes 20 minutes."""
    signal.alarm(0)
    rng = random.Random(18)
    step = 1 if os.environ.get("FAULTREPLAY_EVERY_BYTE") else 8
    silent, flips = _silent(
        trace, lambda file: [n * 8 + rng.randrange(8) for n in range(rng.randrange(step), file.stat().st_size, step)]
    )
    assert flips > 20_000 // step
    assert not silent


def test_an_undamaged_trace_is_whole(trace: Path) -> None:
    assert not [file.problem for file in verify_trace(trace) if file.problem]
    assert all(file.checked for file in verify_trace(trace))
    assert not any("checksums" in note for note in open_trace(trace).notes)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.stem))
def test_a_sample_trace_is_sealed_and_a_flipped_bit_in_it_is_told(path: Path, tmp_path: Path) -> None:
    assert [(file.name, file.problem) for file in verify_trace(path) if file.problem or not file.checked] == []
    rng = random.Random(str(path.stem))
    for file in ("events/part-000000.parquet", "meta.json"):
        copy = tmp_path / file.partition("/")[0]
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("faults.parquet"))
        _flip(copy / file, rng.randrange(8 * (copy / file).stat().st_size))
        with pytest.raises(FaultreplayError):
            everything(copy)


def _doubled(path: Path) -> None:
    shutil.copy(path / part_name(2), path / part_name(3))


def _swapped(path: Path) -> None:
    first, second = path / part_name(0), path / part_name(1)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def _foreign(path: Path) -> None:
    other = small(path.parent / "other.trace")
    shutil.copy(other / part_name(1), path / part_name(1))


def _rewritten(path: Path) -> None:
    part = path / part_name(1)
    pq.write_table(pq.read_table(part), part)


def _edited(path: Path) -> None:
    """One address changed, with all checksums and marks right."""
    part = path / part_name(1)
    table, footer = pq.read_table(part), check_footer(part, EVENTS)
    addresses = table["addr"].to_numpy().copy()
    addresses[0] += 4096
    write_parquet(part, table.set_column(7, EVENTS.field("addr"), pa.array(addresses)).cast(EVENTS), footer.marks)


def _renamed_copy(path: Path) -> None:
    shutil.copy(path / part_name(1), path / "events" / "part-000001 (1).parquet")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_doubled, r"part-000003\.parquet: was written as events/part-000002"),
        (_swapped, r"part-000000\.parquet: was written as events/part-000001"),
        (_foreign, r"part-000001\.parquet: of another recording"),
        (_rewritten, r"part-000001\.parquet: without checksums"),
        (_renamed_copy, r"part-000001 \(1\)\.parquet: not a name of a part"),
        (lambda path: (path / part_name(0)).unlink(), r"part-000000\.parquet: gone \(1 missing\)"),
        (lambda path: (path / part_name(1)).unlink(), r"part-000001\.parquet: gone \(1 missing\)"),
        (lambda path: (path / part_name(1)).rename(path / part_name(7)), r"part-000001\.parquet: gone|was written as"),
    ],
)
def test_parts_that_do_not_belong_are_named(trace: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(trace)
    with pytest.raises(IncompleteData, match=says) as raised:
        open_trace(trace)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 4
    assert any(file.problem for file in verify_trace(trace))


def test_the_last_part_gone_is_noticed_where_the_recorder_ended(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    (path / part_name(2)).unlink()
    with pytest.raises(IncompleteData, match=r"part-000002\.parquet: gone"):
        open_trace(path)


def test_an_edited_part_is_named_also_where_its_faults_are_kept(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    before = (path / part_name(1)).stat()
    _edited(path)
    os.utime(path / part_name(1), ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IncompleteData, match=r"part-000001\.parquet: (not the file that|\d+ bytes, )meta\.json lists"):
        open_trace(path).faults()
    assert sum(bool(file.problem) for file in verify_trace(path)) >= 1


@pytest.mark.parametrize("name", ["losses.parquet", "truth.parquet"])
def test_losses_and_truth_of_another_trace_are_named(tmp_path: Path, name: str) -> None:
    path, other = small(tmp_path / "a.trace"), small(tmp_path / "b.trace")
    shutil.copy(other / name, path / name)
    with pytest.raises(IncompleteData, match=rf"{name}: of another recording"):
        open_trace(path)
    (path / name).unlink()
    with pytest.raises(IncompleteData, match=rf"{name}: gone"):
        open_trace(path)


def test_a_truth_that_nobody_listed_is_named(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    meta = Meta.read(path / "meta.json")
    del meta.integrity.files["truth.parquet"]
    update_meta(path, meta)
    with pytest.raises(IncompleteData, match=r"truth.parquet: meta.json does not list it"):
        open_trace(path)


def test_meta_json_edited_by_hand_is_named(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    text = (path / "meta.json").read_text()
    for edited in (text.replace('"tgid": 7', '"tgid": 8'), text.replace('"meta_sha256"', '"meta_sha255"'), text + " "):
        (path / "meta.json").write_text(edited)
        with pytest.raises(IncompleteData, match=r"meta.json: changed since faultreplay wrote it"):
            open_trace(path)


def test_losses_must_agree_and_a_killed_recorders_are_the_files(tmp_path: Path) -> None:
    path = killed(tmp_path / "k.trace")
    assert open_trace(path).meta.losses.by_probe == {"p": 3}
    path = small(tmp_path / "a.trace")
    meta = Meta.read(path / "meta.json")
    meta.losses.total, meta.losses.by_probe = 0, {}
    update_meta(path, meta)
    with pytest.raises(IncompleteData, match=r"losses.parquet: 3 lost events, meta.json says 0"):
        open_trace(path)


# kept faults (faults.parquet)


def test_kept_faults_of_another_trace_are_named(tmp_path: Path) -> None:
    path, other = small(tmp_path / "a.trace"), small(tmp_path / "b.trace")
    shutil.copy(other / "faults.parquet", path / "faults.parquet")
    with pytest.raises(IncompleteData, match=r"faults.parquet: of another trace; or delete it"):
        open_trace(path).faults()
    assert any("of another trace" in file.problem for file in verify_trace(path))


def test_planted_faults_without_checksums_are_never_taken(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    right = open_trace(path).faults()
    table = right.to_arrow().cast(FAULTS)
    moved = table.set_column(5, FAULTS.field("start_ns"), pa.array(table["start_ns"].to_numpy() + 1))
    pq.write_table(moved.replace_schema_metadata({"stitch_version": "4"}), path / "faults.parquet")
    os.utime(path / "faults.parquet")
    assert open_trace(path).faults().rows() == right.rows()


@pytest.mark.parametrize("change", ["memslot", "thread", "shed"])
def test_kept_faults_are_made_anew_when_what_they_were_made_from_changes(tmp_path: Path, change: str) -> None:
    path = small(tmp_path / "a.trace")
    trace = open_trace(path)
    kept = (path / "faults.parquet").stat().st_mtime_ns
    assert trace.faults_are_kept()
    if change == "thread":
        trace.meta.targets[0].threads[0].vcpu = 3
    elif change == "shed":
        trace.meta.extra["shed"] = [{"group": "sched", "start_ns": 1, "end_ns": 2, "reason": "x"}]
    else:
        trace.meta.memory_map = []
        trace.meta.targets[0].name = "other"
    update_meta(path, trace.meta)
    again = open_trace(path)
    again.faults()
    assert any("made from other events or another meta.json" in note for note in again.notes)
    assert (path / "faults.parquet").stat().st_mtime_ns != kept
    assert open_trace(path).faults_are_kept()


def test_kept_faults_of_an_older_stitcher_are_made_anew_without_a_word(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    file = path / "faults.parquet"
    right = open_trace(path).faults()
    marks = replace(check_footer(file, FAULTS).marks, stitch_version="3")
    write_parquet(file, read_parquet(file, FAULTS).slice(0, 5), marks)
    trace = open_trace(path)
    assert trace.faults().rows() == right.rows()
    assert not trace.notes


def test_a_copy_far_away_is_held_against_its_meta(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    path, other = small(tmp_path / "a.trace"), small(tmp_path / "b.trace")
    right = open_trace(path).faults().rows()
    assert open_address(f"file://{path}").faults().rows() == right
    good = (path / "faults.parquet").read_bytes()
    for bit in range(0, len(good) * 8, 997):
        _flip(path / "faults.parquet", bit)
        with pytest.raises(IncompleteData):
            open_address(f"file://{path}")
        (path / "faults.parquet").write_bytes(good)
    shutil.copy(other / "faults.parquet", path / "faults.parquet")
    with pytest.raises(IncompleteData, match="of another trace"):
        open_address(f"file://{path}")


# older traces


def old(path: Path, rows: int = 40) -> Path:
    """As an older faultreplay wrote it: no checksums, no list of files."""
    small(path, 2, rows)
    meta = Meta.read(path / "meta.json")
    meta.integrity = Meta().integrity
    (path / "meta.json").write_bytes(meta.to_json().rsplit(b',\n "meta_sha256"', 1)[0] + b"\n}\n")
    for file in path.rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.replace_schema_metadata(None), file, compression="zstd")
    return path


def test_an_older_trace_is_read_with_a_note(tmp_path: Path) -> None:
    path = old(tmp_path / "a.trace")
    trace = open_trace(path)
    assert trace.faults().height == 40
    assert [note for note in trace.notes if "without checksums" in note]
    assert open_trace(path).faults_are_kept()
    assert not [file.problem for file in verify_trace(path) if file.problem]


def test_rows_of_an_older_trace_must_be_those_it_counted(tmp_path: Path) -> None:
    path = old(tmp_path / "a.trace")
    shutil.copy(path / part_name(1), path / part_name(2))
    with pytest.raises(IncompleteData, match=r"120 events, meta.json says 80: a part is not of this recording"):
        open_trace(path)


def test_kept_faults_of_an_older_trace_are_bound_to_its_bytes(tmp_path: Path) -> None:
    path = old(tmp_path / "a.trace")
    open_trace(path).faults()
    part = path / part_name(1)
    table, stamp = pq.read_table(part), part.stat()
    addresses = table["addr"].to_numpy().copy()
    addresses[0] = 4096 * 77
    pq.write_table(table.set_column(7, EVENTS.field("addr"), pa.array(addresses)), part, compression="zstd")
    os.utime(part, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert 4096 * 77 in open_trace(path).faults()["page"].to_list()


def test_a_part_with_checksums_in_an_older_trace_is_named(tmp_path: Path) -> None:
    path, other = old(tmp_path / "a.trace"), small(tmp_path / "b.trace")
    shutil.copy(other / part_name(1), path / part_name(1))
    with pytest.raises(IncompleteData, match=r"has checksums, meta\.json knows of none"):
        open_trace(path)


def test_synthetic_faults_are_the_original_and_listed(tmp_path: Path) -> None:
    path, other = tmp_path / "a.trace", tmp_path / "b.trace"
    for place, start in ((path, 5), (other, 6)):
        row: dict[str, object] = dict.fromkeys(FAULTS.names, 0)
        row |= {n: "" for n in FAULTS.names if FAULTS.field(n).type == pa.string()}
        row |= {n: False for n in FAULTS.names if FAULTS.field(n).type == pa.bool_()}
        with TraceWriter(place, Meta(origin="synthetic")) as writer:
            writer.write_faults([pa.Table.from_pylist([row | {"start_ns": start, "end_ns": start}], FAULTS)])
    assert open_trace(path).faults()["start_ns"].to_list() == [5]
    shutil.copy(other / "faults.parquet", path / "faults.parquet")
    with pytest.raises(IncompleteData, match="of another recording"):
        open_trace(path)


def test_verifying_tells_each_file_before_it_is_read(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    files = verify_trace(small(tmp_path / "a.trace"), lambda *what: told.append(what))
    assert [name for name, _, _ in told] == [file.file for file in files[1 : 1 + len(told)]]
    assert [number for _, number, _ in told] == list(range(len(told)))
    assert {count for _, _, count in told} == {len(told)}
