"""From stitched faults to the engine's arrays, and what is known of pages before the run."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.words import VERBS
from faultreplay.replay.workload.faults import workload_from_faults
from faultreplay.replay.workload.pages import pages_of
from faultreplay.replay.workload.workload import make_workload

BEGIN = 1_000_000
ROOT = Path(__file__).parent.parent
DOC = ROOT / "docs" / "mechanism-language.md"
SAMPLES = ROOT / "sample-traces"


def faults(*rows: tuple[str, int, int, int | None, int], cause: str = "missing") -> pl.DataFrame:
    """(accessor, tid, start, end, page) after BEGIN."""
    return pl.DataFrame(
        [
            {
                "fault_id": n, "vm": 7, "accessor": who, "tid": tid, "vcpu": tid - 100 if who == "vcpu" else -1,
                "start_ns": BEGIN + start, "end_ns": None if end is None else BEGIN + end,
                "stall_ns": None if end is None else end - start, "page": page * 4096, "access": "w", "cause": cause,
            }
            for n, (who, tid, start, end, page) in enumerate(rows)
        ],
        schema_overrides={"page": pl.UInt64, "end_ns": pl.Int64, "stall_ns": pl.Int64},
    )  # fmt: skip


TWO = faults(
    ("vcpu", 101, 500, 700, 4), ("vcpu", 100, 100, 300, 1), ("vmm", 9, 250, 260, 3), ("vcpu", 100, 450, 650, 2)
)


def test_streams_are_sorted_and_think_times_are_between_resume_and_fault() -> None:
    work = workload_from_faults(TWO, begin_ns=BEGIN, end_ns=BEGIN + 1_000)
    assert work.accessor_name == ("vcpu0", "vcpu1", "vmm:9")
    assert work.accessor_kind.tolist() == [0, 0, 1]
    assert work.accessor_start.tolist() == [0, 2, 3, 4]
    assert work.think_ns.tolist() == [100, 150, 500, 250]
    assert work.recorded_stall_ns.tolist() == [200, 200, 200, 10]
    assert work.recorded_start_ns.tolist() == [100, 450, 500, 250]
    assert work.tail_ns.tolist() == [350, 300, 740]
    assert work.page.tolist() == [1, 2, 4, 3]
    assert work.notes == ()


def test_as_recorded_gives_the_recording_back() -> None:
    work = workload_from_faults(TWO, begin_ns=BEGIN, end_ns=BEGIN + 1_000)
    for loop in ("closed", "open"):
        result = simulate(work, load_mechanism("as-recorded"), load_costs(), loop=loop)
        assert result.start_ns.tolist() == work.recorded_start_ns.tolist()
        assert result.stall_ns.tolist() == work.recorded_stall_ns.tolist()
    assert simulate(work, load_mechanism("as-recorded"), load_costs()).run_time_ns == 1_000


def test_what_cannot_be_replayed_is_left_out_and_counted() -> None:
    frame = pl.concat(
        [faults(("vcpu", 100, 0, 10, 1), ("vcpu", 100, 20, None, 2)), faults(("vcpu", 100, 40, 50, 3), cause="ksm")]
    )
    work = workload_from_faults(frame, begin_ns=BEGIN)
    assert work.faults == 1
    assert work.notes[0].startswith("1 faults left out: their end was not seen")
    assert work.notes[1].startswith("1 faults left out: their cause")


def test_stitched_times_that_overlap_have_no_think_time() -> None:
    work = workload_from_faults(faults(("vcpu", 100, 0, 100, 1), ("vcpu", 100, 90, 200, 2)), begin_ns=BEGIN)
    assert work.think_ns.tolist() == [0, 0]
    assert "1 faults begin before" in work.notes[0]


def test_write_protect_faults_in_a_recorded_window_are_its_effect() -> None:
    class Recording:
        clock = None
        origin = "lab"
        windows = ({"kind": "uffd-wp", "start_ns": BEGIN + 50, "end_ns": BEGIN + 150},)

    frame = faults(
        ("vcpu", 100, 10, 20, 1), ("vcpu", 100, 60, 160, 2), ("vcpu", 100, 200, 210, 3), cause="write-protect"
    )
    work = workload_from_faults(frame, meta=Recording(), begin_ns=BEGIN)
    assert [CAUSES[c] for c in work.cause] == ["write-protect", "window", "write-protect"]


def one_by_one(frame: pl.DataFrame, meta: Meta) -> dict[str, list[object]]:
    """The same workload, fault by fault and in plain words."""
    streams: dict[tuple[int, int, int, int], list[dict[str, Any]]] = {}
    for row in frame.iter_rows(named=True):
        if row["end_ns"] is not None and row["cause"] in CAUSES:
            key = (ACCESSORS.index(row["accessor"]), row["vcpu"], row["vm"], row["tid"])
            streams.setdefault(key, []).append(row)
    begin, end = meta.clock.start_ns, max(meta.clock.end_ns, *(r["end_ns"] for s in streams.values() for r in s))
    out: dict[str, list[object]] = {}
    for key in sorted(streams):
        resume = begin
        for row in sorted(streams[key], key=lambda r: (r["start_ns"], r["fault_id"])):
            inside = any(w.start_ns <= row["start_ns"] < w.end_ns for w in meta.windows)
            cause = "window" if inside and row["cause"] == "write-protect" else row["cause"]
            values = {
                "think_ns": max(row["start_ns"] - resume, 0), "page": row["page"] // 4096,
                "access": "rwx".index(row["access"]), "cause": CAUSES.index(cause),
                "recorded_stall_ns": row["stall_ns"], "recorded_start_ns": row["start_ns"] - begin,
            }  # fmt: skip
            for name, value in values.items():
                out.setdefault(name, []).append(value)
            resume = row["end_ns"]
        out.setdefault("sizes", []).append(len(streams[key]))
        out.setdefault("accessor_kind", []).append(key[0])
        out.setdefault("tail_ns", []).append(max(end - resume, 0))
    return out


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.trace")), ids=lambda p: p.stem)
@pytest.mark.parametrize("shuffled", [False, True])
def test_whole_columns_say_what_each_fault_says(path: Path, shuffled: bool) -> None:
    trace = open_trace(path)
    frame = trace.faults()
    work = workload_from_faults(frame.sample(fraction=1, shuffle=True, seed=1) if shuffled else frame, meta=trace.meta)
    expected = one_by_one(frame, trace.meta)
    assert np.diff(work.accessor_start).tolist() == expected.pop("sizes")
    for name, values in expected.items():
        assert getattr(work, name).tolist() == values, name


def test_a_large_trace_takes_little_more_memory_than_its_workload() -> None:
    count = 200_000
    start = np.arange(count) * 1_000 + BEGIN
    columns = {
        "fault_id": np.arange(count), "vm": np.full(count, 7),
        "tid": np.arange(count) % 16, "vcpu": np.arange(count) % 16,
        "start_ns": start, "end_ns": start + 500, "stall_ns": np.full(count, 500),
        "page": np.arange(count, dtype=np.uint64) * 4096,
    }  # fmt: skip
    words = {"accessor": "vcpu", "access": "w", "cause": "missing"}
    frame = pl.DataFrame(columns).with_columns(pl.lit(word).alias(name) for name, word in words.items())
    workload_from_faults(frame.head(10))
    tracemalloc.start()
    work = workload_from_faults(frame)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert work.faults == count
    assert peak_bytes < 72 * count  # 30 of them are the workload


def test_a_split_keeps_time_and_faults() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for tid in (100, 101, 102):
        clock = 0
        for _ in range(50):
            start = clock + int(rng.integers(1, 1_000))
            clock = start + int(rng.integers(1, 500))
            rows.append(("vcpu", tid, start, clock, len(rows)))
    work = workload_from_faults(faults(*rows), begin_ns=BEGIN)
    first, second = work.split(0.4)
    assert (first.faults, second.faults) == (60, 90)
    assert first.recorded_start_ns.max() < second.recorded_start_ns.min() + second.clock_start_ns - first.clock_start_ns
    mechanism = load_mechanism("as-recorded")
    for part, recorded in ((first, first.recorded_start_ns), (second, second.recorded_start_ns)):
        result = simulate(part, mechanism, load_costs())
        np.testing.assert_array_equal(result.start_ns, recorded)
    with pytest.raises(UsageError):
        work.split(1.5)
    with pytest.raises(IncompleteData):
        workload_from_faults(faults(("vcpu", 100, 0, 10, 1)), begin_ns=BEGIN).split(0.5)


def test_pages_touched_once_are_not_looked_up_and_the_granule_decides() -> None:
    work = make_workload([{"think_ns": [1, 1, 1], "page": [0, 1, 9]}, {"think_ns": [1, 1], "page": [1, 512]}])
    small = pages_of(work, 4096, track=True, everything=False, refill_bytes=0)
    assert (small.flags & 1).tolist() == [0, 1, 0, 1, 0]
    assert small.tracked == 1
    large = pages_of(work, 2 << 20, track=True, everything=False, refill_bytes=2 << 20)
    assert (large.flags & 1).tolist() == [1, 1, 1, 1, 0]
    assert (large.flags >> 1).tolist() == [1, 0, 0, 1, 1]
    assert pages_of(work, 4096, track=False, everything=False, refill_bytes=0).tracked == 0


def test_sparse_addresses_are_counted_as_dense_ones() -> None:
    rng = np.random.default_rng(5)
    page = rng.integers(0, 300, 400)
    dense = make_workload([{"think_ns": np.ones(400), "page": page}])
    sparse = make_workload([{"think_ns": np.ones(400), "page": page * 1_000_003}])
    flags = [pages_of(w, 4096, track=True, everything=False, refill_bytes=0) for w in (dense, sparse)]
    np.testing.assert_array_equal(flags[0].flags, flags[1].flags)
    assert flags[0].tracked == flags[1].tracked


def test_a_page_that_faulted_again_later_is_missing_again() -> None:
    again = faults(("vcpu", 100, 0, 100, 1), ("vcpu", 101, 50, 100, 1), ("vcpu", 100, 500, 600, 1))
    work = workload_from_faults(again, begin_ns=BEGIN)
    pages = pages_of(work, 4096, track=True, everything=False, refill_bytes=0)
    assert pages.tracked == 1
    result = simulate(work, load_mechanism("uffd-missing"), load_costs())
    by_start = result.stall_ns[[0, 2, 1]]  # first, the one that overlapped it, the later one
    assert by_start[2] > 10_000
    assert result.bytes_moved == 2 * 4096


def test_joining_faults_wake_with_the_one_that_brings_the_page() -> None:
    work = make_workload(
        [{"think_ns": [1_000], "page": [5]}, {"think_ns": [9_000], "page": [5]}, {"think_ns": [10**9], "page": [5]}]
    )
    costs = load_costs()
    costs = costs.with_constants(**{name: round(cost.distribution.mean) for name, cost in costs.items()})
    result = simulate(work, load_mechanism("uffd-missing"), costs)
    assert result.end_ns[0] + 60 >= result.end_ns[1] >= result.end_ns[0]
    assert result.stall_ns[2] == 0
    assert result.bytes_moved == 4096


def test_a_page_that_only_the_vmm_touched_costs_a_vcpu_a_stage_2_fault() -> None:
    streams = [{"think_ns": [10**7, 10**7], "page": [5, 6]}, {"think_ns": [1_000], "page": [5], "kind": "vmm"}]
    result = simulate(make_workload(streams), load_mechanism("uffd-missing"), load_costs())
    assert result.stall_ns[0] == round(load_costs()["stage2_fault"].distribution.mean)


def test_the_reference_names_every_stage_and_cost() -> None:
    text = DOC.read_text()
    assert set(re.findall(r"^\| `([a-z_]+)` \| (?:a |`)", text, re.M)) >= set(VERBS)
    for name, cost in COST_NAMES.items():
        assert f"| `{name}` | {cost.meaning} | {cost.begin} | {cost.end} | {cost.payer} |" in text
    for name, verb in VERBS.items():
        assert verb.meaning in text, name


def _of_hardware(**columns: object) -> dict[str, object]:
    whole = {"fault_id": 0, "vm": 1, "accessor": "vcpu", "tid": 2, "vcpu": 1, "start_ns": 1000, "end_ns": 1010}
    whole |= {"stall_ns": 10, "page": 0, "granule": 0, "access": "w", "cause": "stage2", "rounds": 1, "ip": 64}
    return whole | columns


def test_each_fault_on_an_unknown_page_has_a_page_of_its_own() -> None:
    rows = [_of_hardware(fault_id=n, start_ns=1000 * n, end_ns=1000 * n + 10) for n in range(1, 4)]
    rows.append(_of_hardware(fault_id=4, start_ns=9000, end_ns=9010, page=8192, granule=4096))
    work = workload_from_faults(pl.DataFrame(rows))
    assert len(set(work.page.tolist())) == 4
    assert work.page[3] == 2
    assert any("3 faults on unknown pages" in note for note in work.notes)


def test_an_access_without_progress_is_left_out_and_said() -> None:
    stuck = _of_hardware(start_ns=5000, end_ns=None, stall_ns=None, page=0x2594000, granule=4096, rounds=5, ip=0x771AA2)
    work = workload_from_faults(pl.DataFrame([_of_hardware(granule=4096), stuck], infer_schema_length=None))
    assert work.faults == 1
    (note,) = [note for note in work.notes if note.startswith("no progress")]
    assert "vcpu 1 faulted 5 times at rip 0x771aa2 on page 0x2594000" in note
