"""What pictures show adds up to what the tables say, and does not grow with the recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_traces import BEGIN_NS, uffd_faults, write_trace

import faultreplay
from faultreplay.analysis.explore.along import along, fetch_axis
from faultreplay.analysis.explore.axes import Axis
from faultreplay.analysis.explore.crossover import crossings
from faultreplay.analysis.picture import pages, spread, times, waits
from faultreplay.analysis.picture.curves import best_on_grid, curves
from faultreplay.analysis.picture.still import standstills
from faultreplay.analysis.picture.ticks import round_values
from faultreplay.analysis.picture.times import Seen, Stalls, seen
from faultreplay.cli.report.charts_sweep import Swept, sweep_pictures
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import FAULTS

SAMPLES = Path(__file__).parent.parent / "sample-traces"
spans = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3_000)), min_size=1, max_size=40)


def stalls(pairs: list[tuple[int, int]], stops: list[tuple[int, int]] | None = None) -> Seen:
    one, two = (np.array(p or [], np.int64).reshape(-1, 2) for p in (pairs, stops))
    end = max((a + b for a, b in [*pairs, *(stops or [])]), default=0)
    return seen(Stalls(one[:, 0], one[:, 1], two[:, 0], two[:, 1], end))


def frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    import pyarrow as pa

    made = pl.from_arrow(pa.Table.from_pylist(rows, FAULTS))
    assert isinstance(made, pl.DataFrame)
    return made


@given(pairs=spans, bins=st.integers(1, 50))
def test_stall_over_time_is_neither_lost_nor_made(pairs: list[tuple[int, int]], bins: int) -> None:
    found = times.stalled_over_time({"m": stalls(pairs)}, bins)
    assert found["stall_ns"].sum() == sum(length for _, length in pairs)
    assert len(found) <= bins
    for row in found.to_dicts():
        inside = sum(max(min(a + b, row["until_ns"]) - max(a, row["from_ns"]), 0) for a, b in pairs)
        assert row["stall_ns"] == inside


def test_a_series_ends_with_its_run_and_holds_its_windows_stops() -> None:
    found = times.stalled_over_time({"long": stalls([(0, 1_000)]), "short": stalls([(0, 10)], [(100, 50)])}, 100)
    ends = dict(found.group_by("series").agg(pl.col("until_ns").max()).iter_rows())
    assert (ends["long"], ends["short"]) == (1_000, 150)
    assert found.filter(pl.col("series") == "short")["stall_ns"].sum() == 60


@given(pairs=spans)
def test_quantiles_happened_rise_and_end_with_the_longest(pairs: list[tuple[int, int]]) -> None:
    every = [length for _, length in pairs]
    found = spread.distributions({"m": stalls(pairs)})
    if not any(every):
        assert not len(found)
        return
    assert set(found["stall_ns"]) <= set(every)
    assert found["stall_ns"].is_sorted() and found["nines"].is_sorted()
    assert found["stall_ns"][-1] == max(every)
    assert len(found) <= spread.POINTS + len(spread.MARKS) + 1


def test_marks_of_the_tail_are_the_tables_quantiles() -> None:
    done = faultreplay.compare(SAMPLES / "guest-uffd-missing.trace", ["uffd-missing"], weigh=False)
    case = faultreplay.open_case(SAMPLES / "guest-uffd-missing.trace")
    found = spread.distributions(times.series_of(done, case))
    (row,) = [row for row in done.rows if row.mechanism == "uffd-missing"]
    for series, metrics in (("uffd-missing", row.metrics), ("measured", done.measured)):
        mine = found.filter(pl.col("series") == series)
        for share, name in spread.MARKS[:4]:
            (ns,) = mine.filter((pl.col("share") - share).abs() < 1e-12)["stall_ns"].unique()
            assert ns == getattr(metrics, f"{name.replace('.', '_')}_ns"), (series, name)
        assert mine["stall_ns"].max() == metrics.max_ns


def test_blackouts_stops_are_in_every_picture() -> None:
    case = faultreplay.open_case(SAMPLES / "guest-freeze.trace")
    done = faultreplay.compare(case, weigh=False)
    series = times.series_of(done, case)
    drawn = times.stalled_over_time(series)
    for still in done.blackouts:
        assert drawn.filter(pl.col("series") == still.mechanism)["stall_ns"].sum() == still.metrics.total_stall_ns
    longest = {row["mechanism"]: row["standstill_ns"] for row in standstills(done).to_dicts()}
    assert longest == {b.mechanism: b.low.standstill_ns for b in done.blackouts} | {
        "measured": done.blackout_measured.standstill_ns  # type: ignore[union-attr]
    }


@pytest.mark.parametrize("vcpus", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("handlers", [1, 3])
def test_each_accessors_waits_add_up_to_its_stall(vcpus: int, handlers: int) -> None:
    faults = frame(uffd_faults(vcpus=vcpus, each=30, handlers=handlers))
    found = waits.who_waited(faults, Meta())
    assert (found["stall_ns"] > 0).all()
    assert found["stall_ns"].sum() == faults["stall_ns"].sum()
    mine = dict(found.group_by("accessor").agg(pl.col("stall_ns").sum()).iter_rows())
    assert len(mine) == min(vcpus, waits.MOST_SHOWN + 1)
    if vcpus <= waits.MOST_SHOWN:
        recorded = faults.group_by("vcpu").agg(pl.col("stall_ns").sum())
        assert mine == {f"vCPU {vcpu}": ns for vcpu, ns in recorded.iter_rows()}
    if handlers == 1 and vcpus > 1:  # the only handler is at others' faults for nearly all of the queueing
        others = found.filter(pl.col("waited_for").str.contains("fault of vCPU|of others"))["stall_ns"].sum()
        assert 0.7 * faults["queue_ns"].sum() < others <= faults["queue_ns"].sum()


def test_who_is_waited_for_is_the_one_that_was_served() -> None:
    place = {"accessor": "vcpu", "vm": 100, "granule": 4096, "access": "w", "cause": "missing", "resolution": "copy"}
    place |= {"handler_tid": 300, "resolve_ns": 1, "offcpu_ns": 0, "join": "made", "think_ns": 0}

    def fault(number: int, vcpu: int, start: int, queue: int, service: int) -> dict[str, object]:
        own = {"fault_id": number, "tid": 200 + vcpu, "vcpu": vcpu, "start_ns": BEGIN_NS + start, "page": 4096 * number}
        stall = {"queue_ns": queue, "service_ns": service, "wake_ns": 5, "stall_ns": queue + service + 5}
        return place | own | stall | {"end_ns": BEGIN_NS + start + queue + service + 5}

    # vCPU 0 is served from 10 to 110, vCPU 1 waits for that from 50 on, and is then served.
    faults = frame([fault(1, 0, 0, 10, 100), fault(2, 1, 50, 70, 100)])
    found = {(a, w): ns for a, w, ns in waits.who_waited(faults, Meta()).iter_rows()}
    assert found["vCPU 1", "handler: fault of vCPU 0"] == 60
    assert found["vCPU 1", waits.HANDLER_IDLE] == 10
    assert found["vCPU 1", waits.SERVED] == 100
    assert found["vCPU 0", waits.HANDLER_IDLE] == 10


@given(
    rows=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 40), st.sampled_from(["missing", "wp"])), min_size=1),
    bins=st.integers(1, 12),
)
def test_a_map_counts_every_fault_once(rows: list[tuple[int, int, str]], bins: int) -> None:
    faults = pl.DataFrame(
        [{"cause": c, "start_ns": 100 + t, "page": 4096 * p, "stall_ns": 3, "granule": 4096} for t, p, c in rows],
        schema_overrides={"page": pl.UInt64},
    )
    found = pages.heat(faults, 100, time_bins=bins, page_bins=bins)
    assert found["faults"].sum() == len(rows) and found["stall_ns"].sum() == 3 * len(rows)
    assert len(found) <= 2 * bins * bins
    for row in found.to_dicts():
        ranks = sorted({p for _, p, _ in rows})[row["first"] : row["beyond"]]
        assert row["address"] == 4096 * ranks[0]
        inside = [1 for t, p, c in rows if row["from_ns"] <= t < row["until_ns"] and p in ranks and c == row["cause"]]
        assert len(inside) == row["faults"]


def test_causes_over_time_hold_the_measured_stall_and_the_rare_are_one() -> None:
    rows = uffd_faults(each=60)
    for n, row in enumerate(rows):
        row["cause"] = "minor-host" if n % 3 else "missing"
    rows[5] |= {"cause": "wp", "stall_ns": 40}
    found = times.by_cause(frame(rows), BEGIN_NS)
    assert set(found["cause"]) == {"minor-host", "missing", "other"}
    assert found["stall_ns"].sum() == sum(int(str(row["stall_ns"])) for row in rows)


def test_stall_along_fetch_grows_and_meets_the_table(tmp_path: Path) -> None:
    case = faultreplay.open_case(write_trace(tmp_path / "a.trace", uffd_faults(each=80)))
    axis = fetch_axis(case)
    assert axis.values[-1] / axis.values[0] == pytest.approx(100, rel=0.01)
    values, _ = along(case, ["as-recorded", "uffd-missing", "kvm-exit", "ideal"], axis)
    for name in ("uffd-missing", "kvm-exit"):
        line = [at[name] for at in values.values()]
        assert line == sorted(line) and line[0] < line[-1]
    assert set(next(iter(values.values()))) == {"uffd-missing", "kvm-exit"}  # references are no choice
    factor = Axis("", "fetch", "factor", (1.0,))
    (at,) = along(case, ["uffd-missing", "kvm-exit"], factor)[0].values()
    done = faultreplay.compare(case, ["uffd-missing", "kvm-exit"], weigh=False)
    assert at == {row.mechanism: row.metrics.total_stall_ns for row in done.rows}


def test_curves_and_maps_of_a_sweep() -> None:
    fetch, handlers = Axis("", "fetch", "ns", (1e3, 1e4, 1e5)), Axis("m", "handlers", "number", (1, 2))
    values = {
        (("fetch", x), ("m.handlers", h)): {"m": 2e6 / h, "n": 10 * x + 5e5, "ideal": 0.0}
        for x in fetch.values
        for h in handlers.values
    }
    line = curves(fetch, [fetch, handlers], values)
    assert len(line) == 2 * 3 * 2 and set(line["others"]) == {"m.handlers=1", "m.handlers=2"}
    assert line.filter(pl.col("mechanism") == "n")["value"][0] == "1.00 us"
    wide = {(("fetch", x), ("m.handlers", h)): {"m": 1.0} for x in (1e4, 1e6) for h in (1.0, 2.0)}
    others = curves(handlers, [fetch, handlers], wide)["others"]
    assert list(dict.fromkeys(others)) == ["fetch=10.0 us", "fetch=1.00 ms"]  # in the axis's order, not the words'
    grid = best_on_grid(fetch, handlers, values)
    best = {(x, y): name for x, y, name in grid.select("x", "y", "best").iter_rows()}
    assert best[1e3, 1] == "n" and best[1e5, 2] == "m"
    found = crossings("t", [fetch, handlers], values)
    drawn = sweep_pictures(Swept([fetch, handlers], values, found))
    assert [p.name for p in drawn][:3] == ["sweep-best", "sweep-fetch-m.handlers-1", "sweep-fetch-m.handlers-2"]
    assert "Dashed" in drawn[2].words and "Dashed" not in drawn[1].words  # with two handlers m overtakes n


@pytest.mark.parametrize(("low", "high"), [(1, 2), (90, 110_000), (1e3, 1e9), (123, 456)])
def test_axis_values_are_few_and_inside(low: float, high: float) -> None:
    values = round_values(low, high)
    assert 1 <= len(values) <= 6
    assert all(low <= v <= high for v in values)
