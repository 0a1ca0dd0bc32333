"""One run, several tools (tests/golden): what is imported from each agrees, and with faultreplay's own recording."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from faultreplay.collect.importers import import_file
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace

GOLDEN = Path(__file__).parent / "golden"
PAGES = 23
BY_CALL = (
    Kind.UFFD_API,
    Kind.UFFD_REGISTER,
    Kind.UFFD_COPY,
    Kind.KVM_SET_MEMSLOT,
    Kind.KVM_RUN_ENTER,
    Kind.KVM_RUN_EXIT,
)


def imported(kind: str, name: str, folder: Path) -> pl.DataFrame:
    """Events of a golden file, without those of the tools' own threads."""
    out = folder / f"{name}.trace"
    import_file(kind, GOLDEN / f"pvm-6.18.{name}.txt.gz", out)
    frame = open_trace(out).events()
    vcpu = frame.filter(pl.col("kind") == Kind.KVM_RUN_ENTER)["tid"][0]
    copying = frame.filter(pl.col("kind") == Kind.UFFD_COPY)["tid"][0]
    return frame.filter(pl.col("tid").is_in([vcpu, copying]))


def calls(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("kind").is_in([int(kind) for kind in BY_CALL]))


@pytest.mark.parametrize("name", ["perf-callgraph", "perf-ip-sym", "perf-few"])
def test_perf_script_with_other_columns_says_the_same(name: str, tmp_path: Path) -> None:
    whole, other = imported("perf-script", "perf", tmp_path), imported("perf-script", name, tmp_path)
    assert calls(whole).height == PAGES + 6
    told = ["ts_ns", "tid", "kind", "fd", "vcpu", "addr", "ip", "code", "size", "value", "dur_ns"]
    if name == "perf-ip-sym":  # whole microseconds
        told.remove("dur_ns")
        whole = whole.with_columns(pl.col("ts_ns") // 1000 * 1000)
    assert whole.select(told).equals(other.select(told))


def test_ftrace_says_what_perf_says(tmp_path: Path) -> None:
    perf, ftrace = (
        calls(imported("perf-script", "perf", tmp_path)),
        calls(imported("trace-cmd", "ftrace-perf", tmp_path)),
    )
    told = ["tid", "kind", "fd", "value"]
    assert perf.select(told).equals(ftrace.select(told))
    assert (perf["ts_ns"] - ftrace["ts_ns"]).abs().max() < 1_000_000


def test_the_latency_format_says_what_the_usual_one_says(tmp_path: Path) -> None:
    usual, latency = (imported("trace-cmd", name, tmp_path) for name in ("ftrace-perf", "ftrace-latency"))
    told = ["tid", "kind", "fd", "vcpu", "addr", "ip", "code", "size", "value"]
    assert usual.select(told).equals(latency.select(told))
    gaps = (frame["ts_ns"].diff().drop_nulls() for frame in (usual, latency))
    first, second = gaps
    assert (first - second).abs().max() <= 1000  # a rounding
    clock = open_trace(tmp_path / "ftrace-latency.trace").meta.clock.name
    assert clock.startswith("microseconds since the buffer began")


def test_ftrace_says_what_our_own_recording_says(tmp_path: Path) -> None:
    ftrace = imported("trace-cmd", "ftrace-own", tmp_path)
    own = open_trace(GOLDEN / "pvm-6.18-own").events()
    for kind in (*BY_CALL, Kind.KVM_USERSPACE_EXIT, Kind.KVM_UNMAP_HVA_RANGE):
        mine, theirs = (frame.filter(pl.col("kind") == kind) for frame in (own, ftrace))
        if kind == Kind.KVM_UNMAP_HVA_RANGE and not theirs.height:
            continue  # imports leave it out, and say so
        assert mine.select("tid", "kind").equals(theirs.select("tid", "kind")), kind
        assert (mine["ts_ns"] - theirs["ts_ns"]).abs().max() < 1_000_000, kind
    assert own.filter(pl.col("kind") == Kind.UFFD_COPY).height == PAGES


def test_stalls_under_svm_are_those_of_our_own_recording(tmp_path: Path) -> None:
    import_file("trace-cmd", GOLDEN / "svm-6.1.ftrace-own.txt.gz", tmp_path / "x.trace")
    shutil.copytree(GOLDEN / "svm-6.1-own", tmp_path / "own.trace")  # its faults are kept beside it
    theirs, own = (
        open_trace(tmp_path / name).faults().filter(pl.col("cause") == "stage2") for name in ("x.trace", "own.trace")
    )
    assert own.height == theirs.height == PAGES + 1  # and the page of code
    assert set(own["join"]) == set(theirs["join"]) == {"exit/entry"}
    assert own["tid"].to_list() == theirs["tid"].to_list()
    # Ours has host addresses, as it knows the memslots; the first fault is of the page of code, in a slot of its own.
    apart = own["page"].cast(pl.Int64) - theirs["page"].cast(pl.Int64)
    assert apart[1:].n_unique() == 1
    # ftrace's probe of an event runs before ours; once an interrupt came between the two.
    starts, ends = ((own[name] - theirs[name]) for name in ("start_ns", "end_ns"))
    assert ends.min() >= 0 and ends.max() < 40_000
    assert starts.min() > 0 and (starts > 40_000).sum() == 1
    assert (own["stall_ns"] - theirs["stall_ns"]).abs().sort()[-2] < 40_000


def test_an_overrun_of_the_real_ring_is_a_loss(tmp_path: Path) -> None:
    summary = import_file("trace-cmd", GOLDEN / "svm-6.1.ftrace-own.txt.gz", tmp_path / "x.trace")
    assert summary.lost == 82_896
