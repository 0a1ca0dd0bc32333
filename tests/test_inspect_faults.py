"""`inspect --faults`, `--timeline`, `--top`: every number is also counted the slow way, fault by fault."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from made_traces import BEGIN_NS, uffd_faults, write_trace

import faultreplay
from faultreplay.analysis.views.chosen import Choice
from faultreplay.analysis.views.faults import faults_of
from faultreplay.analysis.views.timeline import round_step_ns, stood_still_ns, timeline_of
from faultreplay.analysis.views.top import GAP_BYTES, top_of
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import MapEntry, Memslot, Target, Thread, WindowSpan
from faultreplay.faulttrace.store import Trace, open_trace

Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    made: Rows = uffd_faults(each=40)
    for row in made[5::9]:
        row.update(end_ns=None, stall_ns=None, queue_ns=None, service_ns=None, resolve_ns=None, wake_ns=None)
    for row in made[3::10]:
        row.update(cause="minor", resolution="continue", ip=0x400000 + 16 * (row["fault_id"] % 3))
    made[7].update(granule=0)
    made[11].update(page=(1 << 30) + 5 * GAP_BYTES)
    return made


@pytest.fixture
def trace(rows: Rows, tmp_path: Path) -> Trace:
    threads = [Thread(200, "CPU 0/KVM", "vcpu", 0), Thread(300, "handler", "handler")]
    window = WindowSpan("freeze", BEGIN_NS + 2_000_000, BEGIN_NS + 3_000_000)
    return open_trace(
        write_trace(tmp_path / "m.trace", rows, targets=[Target(100, "vmm", threads=threads)], windows=[window])
    )


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert _exit_code(["inspect", *words, "--format", "json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def within(row: dict[str, Any], low: int, high: int) -> int:
    """What a fault stood still between two times of the trace."""
    if row["stall_ns"] is None:
        return 0
    return max(min(row["end_ns"] - BEGIN_NS, high) - max(row["start_ns"] - BEGIN_NS, low), 0)


def test_timeline_counts_stall_where_it_was_suffered(trace: Trace, rows: Rows) -> None:
    line = timeline_of(trace, step_ns=700_000)
    steps = line.steps.to_dicts()
    assert steps[0]["from_ns"] == 0
    assert all(a["until_ns"] == b["from_ns"] for a, b in itertools.pairwise(steps))
    for step in steps:
        low, high = step["from_ns"], step["until_ns"]
        began = [r for r in rows if low <= r["start_ns"] - BEGIN_NS < high]
        spent = sum(within(r, low, high) for r in rows)
        assert (step["faults"], step["stall_ns"]) == (len(began), spent)
        assert step["unended"] == sum(r["stall_ns"] is None for r in began)
        assert step["longest_ns"] == max((r["stall_ns"] for r in began if r["stall_ns"]), default=None)
        assert step["stalled"] == pytest.approx(spent / (high - low))
        assert step["windows"] == ("freeze" if low < 3_000_000 and high > 2_000_000 else "")
    assert line.steps["faults"].sum() == len(rows)
    assert line.steps["stall_ns"].sum() == sum(r["stall_ns"] or 0 for r in rows)


def test_timeline_of_a_time_holds_what_began_before(trace: Trace, rows: Rows) -> None:
    low, high = 3_000_000, 5_000_000
    line = timeline_of(trace, Choice(vcpus=[1], from_ns=low, until_ns=high))
    mine = [r for r in rows if r["vcpu"] == 1]
    assert line.steps["stall_ns"].sum() == sum(within(r, low, high) for r in mine)
    assert line.steps["faults"].sum() == sum(low <= r["start_ns"] - BEGIN_NS < high for r in mine)


@given(
    faults=some.lists(some.tuples(some.integers(0, 10**15), some.integers(0, 10**12)), max_size=30),
    edges=some.lists(some.integers(0, 2 * 10**15), min_size=2, max_size=12, unique=True).map(sorted),
)
@settings(max_examples=60, deadline=None)
def test_time_stood_still_between_edges(faults: list[tuple[int, int]], edges: list[int]) -> None:
    import numpy as np

    start = np.array([s for s, _ in faults], np.int64)
    end = start + np.array([n for _, n in faults], np.int64)
    found = np.diff(stood_still_ns(start, end, np.array(edges, np.int64)))
    slow = [sum(max(min(s + n, high) - max(s, low), 0) for s, n in faults) for low, high in itertools.pairwise(edges)]
    assert found.tolist() == slow


def test_steps_are_round_and_at_most_forty() -> None:
    assert [round_step_ns(n) for n in (1, 40, 41, 1_900_000_000, 10**15)] == [1, 1, 2, 50_000_000, 5 * 10**13]


@pytest.mark.parametrize("limit", [None, 4])
def test_top_pages(trace: Trace, rows: Rows, limit: int | None) -> None:
    top = top_of(trace, "pages", limit=limit)
    stall: dict[int, list[int | None]] = {}
    for row in rows:
        if row["granule"]:
            stall.setdefault(row["page"], []).append(row["stall_ns"])
    sums = {page: sum(v for v in values if v is not None) for page, values in stall.items()}
    assert top.groups == len(stall)
    assert top.unknown == 1
    found = {r["page"]: r for r in top.rows.to_dicts()}
    assert len(found) == (limit or len(stall))
    assert {p: r["stall_ns"] or 0 for p, r in found.items()} == {p: sums[p] for p in found}
    assert all(r["threads"] == 1 for r in found.values())
    assert min(r["stall_ns"] or 0 for r in found.values()) >= max((sums[p] for p in sums if p not in found), default=0)
    assert all((r["stall_ns"] is None) == (r["unended"] == r["faults"]) for r in found.values())


def test_top_threads_and_who_served(trace: Trace, rows: Rows) -> None:
    found = {r["tid"]: r for r in top_of(trace, "threads").rows.to_dicts()}
    assert set(found) == {200, 201, 300}
    mine = [r for r in rows if r["tid"] == 200]
    assert found[200]["stall_ns"] == sum(r["stall_ns"] or 0 for r in mine)
    assert (found[200]["faults"], found[200]["name"], found[200]["role"]) == (len(mine), "CPU 0/KVM", "vcpu")
    handler = found[300]
    assert (handler["faults"], handler["served"]) == (0, len(rows))
    assert handler["served_ns"] == sum(r["service_ns"] or 0 for r in rows)


def test_top_instructions(trace: Trace, rows: Rows) -> None:
    top = top_of(trace, "ips")
    counted: dict[int, int] = {}
    for row in rows:
        if row.get("ip") is not None:
            counted[row["ip"]] = counted.get(row["ip"], 0) + 1
    assert dict(top.rows.select("ip", "faults").rows()) == counted
    assert top.unknown == len(rows) - sum(counted.values())


def test_top_ranges_by_gap_mapping_and_slot(rows: Rows, tmp_path: Path) -> None:
    loose = top_of(open_trace(write_trace(tmp_path / "a.trace", rows)), "ranges").rows
    assert loose.select("start", "pages", "name").rows() == [
        (1 << 30, 78, "touched pages"),
        ((1 << 30) + 5 * GAP_BYTES, 1, "touched pages"),
    ]
    target = Target(100, "vmm", memslots=[Memslot(0, 3, 0, 1 << 30, 40 * 4096)])
    maps = [MapEntry(0, 100, (1 << 30) + 30 * 4096, (1 << 30) + end * 4096, name="mine") for end in (50, 60)]
    path = write_trace(tmp_path / "b.trace", rows, targets=[target], memory_map=maps)
    ranges = top_of(open_trace(path), "ranges").rows.to_dicts()
    found = {r["name"]: r for r in ranges}
    assert set(found) == {"slot 3", "mine", "touched pages"}
    assert sum(r["faults"] for r in ranges) == len(rows) - 1
    assert found["mine"]["pages"] == sum(30 <= (r["page"] - (1 << 30)) // 4096 < 60 for r in rows if r["granule"])


def test_choice(trace: Trace, rows: Rows) -> None:
    choice = Choice(vcpus=[0], causes=["missing"], longer_ns=250_000, from_ns=1_000_000, until_ns=15_000_000)
    chosen = faults_of(trace, choice)
    began = [r for r in rows if 1_000_000 <= r["start_ns"] - BEGIN_NS < 15_000_000 and r["vcpu"] == 0]
    began = [r for r in began if r["cause"] == "missing"]
    slow = [r["fault_id"] for r in began if r["stall_ns"] is not None and r["stall_ns"] > 250_000]
    assert chosen.frame["fault_id"].to_list() == slow
    assert 0 < len(slow) < len(rows)
    assert chosen.unjudged == sum(r["stall_ns"] is None for r in began) > 0
    longest = faults_of(trace, longest_first=True).frame["stall_ns"].drop_nulls()
    assert longest.to_list() == sorted(longest, reverse=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--faults", "--cause", "mising"], "did you mean 'missing'"),
        (["--faults", "--vcpu", "7"], "those that did: 0, 1"),
        (["--faults", "--vcpu", "x"], "whole number"),
        (["--faults", "--time", "9s-"], "ends after"),
        (["--timeline", "--step", "1ns"], "at most 1,000,000"),
        (["--cause", "missing"], "--cause goes with --faults, --timeline, --top"),
        (["--timeline", "--limit", "3"], "--limit goes with --faults, --top"),
        (["--top", "pages", "--sort", "stall"], "--sort goes with --faults"),
        (["--top", "pages", "--faults"], "one view at a time"),
    ],
)
def test_what_cannot_be_shown(trace: Trace, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["inspect", str(trace.path), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--faults"], ["--timeline"], *(["--top", by] for by in ("pages", "ips", "threads", "ranges"))]
)
def test_every_format_has_the_same_stall(
    trace: Trace, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(trace.path)
    records = told(capsys, path, *words)["records"]
    total = sum(r["stall_ns"] or 0 for r in records)
    assert total > 0
    assert _exit_code(["inspect", path, *words, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(r["stall_ns"] or 0) for r in lines) == total
    assert _exit_code(["inspect", path, *words, "-o", str(tmp_path / "x.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "x.parquet")["stall_ns"].sum() == total
    assert _exit_code(["inspect", path, *words, "--format", "md"]) == 0
    assert capsys.readouterr().out.startswith("**")


@pytest.mark.parametrize("words", [["--faults"], ["--timeline"], ["--top", "threads"], ["--top", "ranges"]])
def test_tables_keep_to_the_terminal_and_say_what_is_left_out(
    trace: Trace, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert _exit_code(["inspect", str(trace.path), *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "have no end" in out
    if words == ["--faults"]:
        assert "60 more faults" in out


def test_library(trace: Trace, rows: Rows) -> None:
    line = faultreplay.timeline(trace, faultreplay.Choice(causes=["minor"]))
    assert line.steps["faults"].sum() == sum(r["cause"] == "minor" for r in rows)
    assert faultreplay.top(trace, "threads", limit=1).rows.height == 1
    with pytest.raises(UsageError, match="no such cause"):
        faultreplay.top(trace, "pages", faultreplay.Choice(causes=["huge"]))


def test_a_synthetic_trace_has_no_stall_to_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

    write_synthetic(SynthSpec("demand-paging", 2, 20, Think(20_000)), tmp_path / "s.trace")
    for words in (["--faults"], ["--timeline"], ["--top", "threads"]):
        assert _exit_code(["inspect", str(tmp_path / "s.trace"), *words]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "the trace is synthetic: no stall was measured" in out
        assert "have no end" not in out


def test_a_trace_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_trace(tmp_path / "e.trace", []))
    for words in (["--faults"], ["--timeline"], *(["--top", by] for by in ("pages", "ips", "threads", "ranges"))):
        assert _exit_code(["inspect", path, *words]) == 0
        assert "0 of 0 faults" in capsys.readouterr().out.replace("\n", " ")
