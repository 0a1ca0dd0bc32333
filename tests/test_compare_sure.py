"""Errors add up, verdicts warn, intervals hold what is unsure: on traces whose every cost is known."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_traces import RESOLVE, uffd_faults, write_trace
from pyarrow import parquet

from faultreplay.analysis.compare.compare import Comparison, compare
from faultreplay.analysis.compare.judged import ERROR_FIELDS, Trust
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.ranges import (
    FOREIGN_FACTOR,
    LEVEL,
    OWN_PERCENT,
    RUN_PERCENT,
    FitSamples,
    factors,
    placements,
    spread_of,
    stated_width,
)
from faultreplay.analysis.compare.sources import HOST, TRACE, CostSource, Origin, with_host_parts
from faultreplay.analysis.judge.bootstrap import mean_sd
from faultreplay.cli import compare_view, render
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.meta import Host
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.costs import Cost, CostTable, Distribution

SCALE = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("t") / "made.trace", uffd_faults())


def compared(path: Path, names: tuple[str, ...] = ("uffd-missing", "kvm-exit"), **setup: Any) -> Comparison:
    return compare(open_case(open_trace(path), Setup(**setup)), names)


def printed(text: str) -> tuple[float, float]:
    """The least and the greatest that a printed time can stand for, ns."""
    number, unit = text.split(" ")
    step = 10.0 ** -len(number.partition(".")[2]) / 2
    return (float(number) - step) * SCALE[unit], (float(number) + step) * SCALE[unit]


CELL = re.compile(r"[-+]?[\d.]+ (?:ns|us|ms|s|%)(?!\S)")


def cells_of(line: str) -> dict[int, str]:
    """Place of a column -> its cell: by number in Markdown, else by where right-aligned cells end."""
    if line.startswith("|"):
        return {n: cell.strip() for n, cell in enumerate(line.split("|")) if CELL.fullmatch(cell.strip())}
    return {match.end(): match[0] for match in CELL.finditer(line)}


def check_lines(lines: list[str]) -> int:
    """Every printed error is one of the two numbers above it; how many there were."""
    found = 0
    for number, line in enumerate(lines):
        if not re.match(r"\|?\s+error on [\d,]+", line):
            continue
        predicted, measured, errors = (cells_of(text) for text in lines[number - 2 : number + 1])
        for place, error in errors.items():
            (p_low, p_high), (m_low, m_high) = printed(predicted[place]), printed(measured[place])
            low, high = 100 * (p_low / m_high - 1), 100 * (p_high / m_low - 1)
            assert low - 0.06 <= float(error[:-2]) <= high + 0.06, (predicted[place], measured[place], error)
            found += 1
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.integers(1, 99), seeds=st.integers(1, 4), seed=st.integers(0, 5), fetch_ns=st.sampled_from([300, 200_000])
)
def test_errors_are_of_the_numbers_that_are_printed(
    tmp_path_factory: pytest.TempPathFactory, data: int, seeds: int, seed: int, fetch_ns: int
) -> None:
    folder = tmp_path_factory.mktemp("p")
    path = write_trace(folder / "x.trace", uffd_faults(each=40, seed=data, fetch_ns=fetch_ns))
    report = compare_view.report(compared(path, ("uffd-missing",), seeds=seeds, seed=seed))
    render.emit(report, "parquet", folder / "x.parquet")
    whole = json.loads(render.to_json(report))["records"]
    by_csv: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(render.to_csv(report))))
    for records in (whole, by_csv, parquet.read_table(folder / "x.parquet").to_pylist()):
        measured, predicted = (next(r for r in records if r["row"] == row) for row in ("measured", "predicted"))
        for name in ERROR_FIELDS:
            error = predicted.get("error_percent", {}).get(name, predicted.get(f"error_percent.{name}"))
            expected = 100 * (float(predicted[name]) / float(measured[name]) - 1)
            assert float(error) == pytest.approx(expected, abs=1e-6), name
    assert check_lines(render.to_table(report, 200)[0].splitlines()) >= 8
    assert check_lines(render.to_text(report).splitlines()) >= 2
    assert check_lines(render.to_markdown(report).splitlines()) >= 4


def test_another_setting_than_the_recorded_is_a_what_if(trace: Path) -> None:
    for setup, words in (
        ({"settings": {"uffd-missing": {"handlers": "2"}}}, "handlers 2 (recorded 1)"),
        ({"cpus": 2}, "2 host CPUs"),
        ({"loop": "open"}, "open loop"),
        ({"retouch": "working-set"}, "retouch working-set"),
        ({"fetch_ns": 5_000}, "fetch 5.00 us"),
    ):
        got = compared(trace, **setup)
        assert words in got.rows[0].differs, setup
        text = render.to_table(compare_view.report(got), 200)[0]
        assert "error on" not in text
        assert "What if" in text
        assert not any("error_percent" in record for record in compare_view.report(got).records)
        assert got.judged is not None, "what the model is worth is still judged, as it was recorded"
        assert got.judged.in_sample.total == pytest.approx(0, abs=3)
    asked = compare(open_case(open_trace(trace), Setup(), windows=[(1_000_000, 1_000, "freeze")]), ["uffd-missing"])
    assert asked.rows[0].differs == ("windows as asked for",)
    assert not compared(trace).rows[0].differs
    assert not compared(trace, seed=3, seeds=2).rows[0].differs


def drifting(path: Path, factor: float) -> Path:
    """Two halves of which the second waits longer for content."""
    rows = uffd_faults(vcpus=1, each=400)
    late = 0
    for number, row in enumerate(rows):
        more = round(200_000 * factor) if number >= 200 else 0
        row["start_ns"] = int(str(row["start_ns"])) + late
        late += more
        row["end_ns"] = int(str(row["end_ns"])) + late
        for key in ("stall_ns", "service_ns", "offcpu_ns"):
            row[key] = int(str(row[key])) + more
    return write_trace(path, rows)


def test_the_verdict_says_what_rows_are_worth(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = compared(trace)
    assert good.trust is Trust.REPRODUCED
    lines = render.to_table(compare_view.report(good), 200)[0].splitlines()
    assert lines[1].startswith("Verdict: uffd-missing, as recorded, is reproduced. Held out: ")
    assert "on 600 faults" in lines[1]
    assert any(line.startswith("* depends on") and "kvm-exit" in line and "exit_userspace" in line for line in lines)
    drift = compared(drifting(tmp_path / "d.trace", 2))
    assert drift.trust is Trust.ROUGHLY
    assert "costs changed during the recording" in " ".join(compare_view.report(drift).lead)
    few = compared(write_trace(tmp_path / "few.trace", uffd_faults(each=20)))
    assert few.trust is Trust.UNJUDGED
    assert "not judged: 40 faults are too few" in compare_view.report(few).lead[0]
    assert _exit_code(["compare", str(trace), "--strict"]) == 0
    assert _exit_code(["compare", str(tmp_path / "few.trace"), "--strict"]) == 3
    assert "--strict" in capsys.readouterr().err


def test_rows_beside_a_recording_that_is_not_reproduced_are_no_prediction(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = compare(open_case(open_trace(trace), Setup(), fit=False), ["uffd-missing"])
    assert got.trust is Trust.NOT, "30 us of assumed fetch where 200 us were recorded"
    lines = render.to_table(compare_view.report(got), 200)[0].splitlines()
    assert lines[1].startswith("THE ROWS BELOW ARE NO PREDICTION. Verdict: uffd-missing")
    assert _exit_code(["compare", str(trace), "--no-fit"]) == 0
    assert _exit_code(["compare", str(trace), "--no-fit", "--strict"]) == 3
    assert "not reproduced" in capsys.readouterr().err


def test_each_row_has_its_difference_to_the_recorded_mechanism(trace: Path) -> None:
    got = compared(trace, ("as-recorded", "uffd-missing", "kvm-exit", "ideal"))
    rows = {row.mechanism: row.uncertainty for row in got.rows}
    assert got.baseline == "uffd-missing"
    assert all(rows.values())
    base, exits = rows["uffd-missing"], rows["kvm-exit"]
    assert base is not None and exits is not None
    assert base.change_percent == 0
    assert base.change is None
    totals = {row.mechanism: row.metrics.total_stall_ns for row in got.rows}
    assert exits.change_percent == pytest.approx(100 * (totals["kvm-exit"] / totals["uffd-missing"] - 1))
    assert exits.change is not None and exits.change.low < exits.change_percent < exits.change.high
    assert exits.total_ns.low < totals["kvm-exit"] < exits.total_ns.high
    assert exits.foreign is not None
    assert rows["as-recorded"] is not None and rows["as-recorded"].within_noise
    assert rows["ideal"] is not None and rows["ideal"].change_percent == -100
    text = render.to_table(compare_view.report(got), 200)[0]
    assert re.search(r"kvm-exit \* .* -\d+ % \(-\d+ to -\d+\)", text)
    assert "noise (" in text
    assert "baseline" in text


def test_the_baseline_is_the_recording_whatever_is_set(trace: Path) -> None:
    got = compared(trace, ("uffd-missing",), settings={"uffd-missing": {"handlers": "2"}})
    sure = got.rows[0].uncertainty
    assert sure is not None and sure.change_percent is not None
    assert sure.change_percent < -20
    case = open_case(open_trace(trace), Setup())
    asked = compare(case, ["uffd-missing"], baseline="kvm-exit")
    assert asked.baseline == "kvm-exit"
    assert asked.rows[0].uncertainty is not None and asked.rows[0].uncertainty.change_percent > 0  # type: ignore[operator]


def test_intervals_grow_with_what_is_unsure(tmp_path: Path) -> None:
    def width(path: Path, name: str, files: tuple[str, ...] = ()) -> float:
        (row,) = compared(path, (name,), cost_files=files).rows
        assert row.uncertainty is not None
        return row.uncertainty.total_ns.high / row.uncertainty.total_ns.low

    def costs(name: str, more: str) -> str:
        file = tmp_path / f"{name}.toml"
        entry = '[costs.{}]\nvalue = "50us"\nprovenance = "assumed"\nsource = "s"\n{}'
        file.write_text('title = "t"\n' + "".join(entry.format(c, more) for c in ("exit_userspace", "reenter")))
        return str(file)

    short = write_trace(tmp_path / "short.trace", uffd_faults(each=60, fetch_ns=20_000))
    sure, unsure = costs("sure", ""), costs("unsure", 'low = "10us"\nhigh = "250us"\n')
    assert width(short, "kvm-exit", (unsure,)) > 1.5 * width(short, "kvm-exit", (sure,))
    quick = write_trace(tmp_path / "quick.trace", uffd_faults(each=600, fetch_ns=2_000_000, think_ns=1_000))
    assert width(quick, "uffd-missing") < width(short, "uffd-missing"), "2 ms of fetch are surer than kernel costs"
    drift = drifting(tmp_path / "d.trace", 2)
    assert width(drift, "uffd-missing") > 1.5, "another run may meet the first half's costs, or the second's"


def test_both_bounds_stand_in_one_row(tmp_path: Path) -> None:
    rows = uffd_faults(vcpus=4, each=100, handlers=4, fetch_ns=2_000, think_ns=200_000)
    for row in rows:
        row["think_asleep_ns"] = 0
    path = write_trace(tmp_path / "x.trace", rows, params={"handlers": 4}, host=Host(cpus=1))
    got = compared(path, ("uffd-missing", "ideal"), bounds=frozenset({"cpus", "retouch"}))
    sure = got.rows[0].uncertainty
    assert sure is not None
    (bound,) = sure.bounds
    assert (bound.what, bound.setting) == ("host CPUs", "--cpus 1")
    assert bound.total_ns > 1.1 * got.rows[0].metrics.total_stall_ns
    assert sure.total_ns.high > bound.total_ns
    report = compare_view.report(got)
    text = render.to_table(report, 200)[0]
    assert re.search(r"uffd-missing +(?:\* +)?[\d.]+-[\d.]+ ms", text) or re.search(
        r"uffd-missing +(?:\* +)?[\d.]+ ms-[\d.]+ s", text
    )
    assert any("(--cpus 1 gives the other bound)" in words for words in report.lead)
    assert not compared(path, ("uffd-missing",), cpus=1, bounds=frozenset()).rows[0].uncertainty.bounds  # type: ignore[union-attr]


def test_spreads_of_costs() -> None:
    cost = Cost(Distribution.constant(1000), "assumed", "s")
    foreign = CostSource(Origin.PUBLISHED)
    assert spread_of("wake", cost, foreign).foreign == pytest.approx(math.log(FOREIGN_FACTOR) / 1.645, rel=1e-3)
    stated = Cost(Distribution.constant(1000), "assumed", "s", low=500, high=2000)
    assert spread_of("wake", stated, foreign).foreign == stated_width(stated)
    assert spread_of("wake", stated, foreign).stated
    assert spread_of("wake", cost, CostSource(Origin.FILE)).own == 0, "who wrote it down answers for it"
    noisy = np.random.default_rng(1).exponential(1000, 50).astype(np.int64)
    fitted = FitSamples()
    fitted.take({"wake": noisy, "fetch": noisy + (1 << 40)})
    assert spread_of("wake", cost, HOST).own < spread_of("wake", cost, HOST, fitted).own
    assert fitted.mean_sd("wake") == fitted.mean_sd("wake") == mean_sd(noisy) / noisy.mean()
    assert fitted.mean_sd("fetch") == mean_sd(noisy + (1 << 40)) / (noisy + (1 << 40)).mean()
    assert not fitted.mean_sd("reenter"), "not fitted"
    assert spread_of("fetch", cost, HOST).own < spread_of("wake", cost, HOST).own
    drawn = factors({"wake": spread_of("wake", stated, foreign)}, 400, 3)["wake"][1]
    inside = ((drawn >= 0.5) & (drawn <= 2)).mean()
    assert inside == pytest.approx(LEVEL, abs=0.03), "low and high hold nine of ten draws"
    again = factors(
        {"wake": spread_of("wake", stated, foreign), "fault_entry": spread_of("fault_entry", cost, HOST)}, 400, 3
    )
    assert (again["wake"][1] == drawn).all(), "rows that share a cost move together"


def test_own_costs_of_another_run_are_faster_or_slower_together() -> None:
    cost = Cost(Distribution.constant(50_000), "measured-host", "s")
    own = {name: spread_of(name, cost, HOST) for name in ("fault_entry", "wake", "fetch")}
    drawn = {name: np.log(both[0]) for name, both in factors(own, 2000, 1).items()}
    assert drawn["fault_entry"].std() == pytest.approx(math.hypot(RUN_PERCENT, OWN_PERCENT) / 100, rel=0.05)
    together = np.cov(drawn["fault_entry"], drawn["wake"])[0, 1]
    assert together == pytest.approx((RUN_PERCENT / 100) ** 2, rel=0.2)
    assert abs(np.corrcoef(drawn["fault_entry"], drawn["fetch"])[0, 1]) < 0.1, "a timer does not care"
    there = spread_of("wake", cost, HOST, elsewhere=True)
    assert there.own > own["wake"].own, "another mechanism's costs are less sure"
    short, long = (Cost(Distribution.constant(ns), "measured-trace", "s") for ns in (2_000, 200_000))
    work = [spread_of("fetch", c, TRACE, elsewhere=True).own for c in (short, long)]
    assert work[0] > 10 * work[1], "a fetch that is only a handler's work differs with the handler"


def test_a_trace_without_idle_wakes_takes_them_from_its_own_host_alone() -> None:
    seen = Cost(Distribution.constant(13_000), "measured-trace", "s", on_busy_cpu=Distribution.constant(8_000))
    host = Cost(
        Distribution.constant(30_000), "measured-host", "s",
        on_idle_cpu=Distribution.constant(35_000), on_busy_cpu=Distribution.constant(11_000),
    )  # fmt: skip
    fitted, table = CostTable({"wake": seen}), CostTable({"wake": host})
    own = with_host_parts(fitted, table, {"wake": HOST})["wake"]
    assert own.distribution == seen.distribution
    assert own.on_busy_cpu == seen.on_busy_cpu, "what the trace shows stays"
    assert own.on_idle_cpu == host.on_idle_cpu
    assert with_host_parts(fitted, table, {"wake": CostSource(Origin.OTHER_HOST)})["wake"] == seen
    assert with_host_parts(fitted, CostTable({}), {})["wake"] == seen


def test_where_threads_wake_up_is_in_the_interval_of_other_mechanisms(tmp_path: Path) -> None:
    """Half of the wakes found a busy CPU: those of another mechanism may all do, or none."""
    wakes = {"wake": Cost(Distribution.constant(20_000), "measured-trace", "s")}
    assert placements(wakes) == ({}, {}), "not seen both ways"
    both = replace(wakes["wake"], on_idle_cpu=Distribution.constant(30_000), on_busy_cpu=Distribution.constant(10_000))
    assert placements({"wake": both}) == ({"wake": 0.5}, {"wake": 1.5})
    rows = uffd_faults(vcpus=2, each=300)
    for number, row in enumerate(rows):
        row["wake_after_tid"] = 0 if number % 2 else row["handler_tid"]
        row["wake_run_ns"] = int(str(row["wake_ns"])) // (1 if number % 2 else 3)
        row["wake_ns"] = int(str(row["wake_run_ns"]))
    got = compared(write_trace(tmp_path / "t.trace", rows), ("uffd-missing", "uffd-minor"))
    own, other = (row.uncertainty for row in got.rows)
    assert own is not None and other is not None
    case = open_case(open_trace(tmp_path / "t.trace"), Setup())
    wake = case.costs()["wake"]
    assert wake.on_idle_cpu is not None and wake.on_busy_cpu is not None
    doubt = {row.mechanism: (row.uncertainty.total_ns.low / row.metrics.total_stall_ns) for row in got.rows}  # type: ignore[union-attr]
    assert doubt["uffd-minor"] < doubt["uffd-missing"], "the recorded mechanism's threads are placed as they were"


def test_the_bootstraps_own_deviation_is_that_of_its_draws() -> None:
    rng = np.random.default_rng(2)
    series = np.zeros(600)
    for n in range(1, 600):
        series[n] = 0.6 * series[n - 1] + rng.normal()
    from faultreplay.analysis.judge.bootstrap import intervals

    (got,) = intervals([[series]], lambda g: np.array([g[0].mean()]), replicates=4000, level=0.9)
    assert mean_sd(series) == pytest.approx((got.high - got.low) / (2 * 1.645), rel=0.1)
    assert mean_sd(np.ones(50)) == 0
    assert mean_sd([3]) == 0


def test_a_slower_resolve_shows_in_sample(tmp_path: Path) -> None:
    """What a fit cannot see is an error: the trace says its placing took no time."""
    rows = uffd_faults(each=100, fetch_ns=10_000)
    for row in rows:
        row["service_ns"] = int(str(row["service_ns"])) - RESOLVE
    got = compared(write_trace(tmp_path / "x.trace", rows), ("uffd-missing",))
    record = next(r for r in compare_view.report(got).records if r["row"] == "predicted")
    assert record["error_percent"]["total_stall_ns"] < -5


def test_three_notes_unless_all_are_asked_for(trace: Path) -> None:
    got = compared(trace)
    assert len(got.notes) > 4
    brief, whole = (render.to_table(compare_view.report(got, verbose=v), 100)[0] for v in (False, True))
    assert f"{len(got.notes) - 3} more notes with -v" in brief
    assert "with -v" not in whole
    assert got.notes[-1].split()[-1] in whole
    assert "with -v" in render.to_markdown(compare_view.report(got, verbose=False))
    assert json.loads(render.to_json(compare_view.report(got, verbose=False)))["notes"] == list(got.notes)


def test_text_is_ready_for_a_mail(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["compare", str(trace), "--format", "text", "--seed", "7"]) == 0
    seen = capsys.readouterr()
    lines = seen.out.splitlines()
    command = [line for line in lines if str(trace) in line]  # a path has no place to break
    assert all(len(line) <= 72 for line in lines if line not in command)
    assert seen.out.isascii()
    foot = seen.out[seen.out.index("\n-- \n") :]
    assert "faultreplay 0." in foot
    assert re.search(r"trace .*\(([0-9a-f]{12})\), seed 7", foot.replace("\n  ", " "))
    assert "columns that do not fit" in seen.out
    assert "do not fit" not in seen.err


def test_what_finds_no_room_is_named_in_the_output_itself(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fmt in ("table", "md", "text"):
        assert _exit_code(["compare", str(trace), "--format", fmt]) == 0
        seen = capsys.readouterr()
        (words,) = re.findall(r"columns that do not fit: ([^(]+)", seen.out.replace("\n  ", " "))
        assert "faults/s" in words
        assert "do not fit" not in seen.err
        if fmt == "table":
            assert max(map(len, seen.out.splitlines())) in range(90, 121), "a pipe is no terminal of 80 columns"
        if fmt == "md":
            head = next(line for line in seen.out.splitlines() if line.startswith("| mechanism"))
            assert len(head) <= 120


def test_json_says_what_made_it(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _exit_code(["compare", str(trace), "--format", "json", "--set", "uffd-missing.handlers=2", "--seed", "4"]) == 0
    )
    whole = json.loads(capsys.readouterr().out)
    assert whole["schema_version"] == render.JSON_VERSION
    assert whole["tool"]["name"] == "faultreplay"
    assert whole["options"]["settings"] == ["uffd-missing.handlers=2"]
    assert whole["seed"] == 4
    assert len(whole["trace_id"]) == 32
    assert whole["verdict"].startswith("Verdict:")
    predicted = next(r for r in whole["records"] if r["mechanism"] == "uffd-missing" and r["row"] == "predicted")
    assert predicted["what_if"] == ["handlers 2 (recorded 1)"]
    assert predicted["change_low_percent"] < predicted["change_percent"] < predicted["change_high_percent"]
    assert sum(predicted["where_ns"].values()) == predicted["total_stall_ns"]


def test_a_number_and_its_unit_stay_on_one_line() -> None:
    words = "the stall is 12.3 ms and 4 % of 5 KiB, 6 things"
    for width in range(20, 60):
        text = render.to_table(render.Report((), (render.Column("a", "a"),), notes=[words]), width)[0]
        assert not re.search(r"\d\n\s*(ms|%|KiB)", text)
        assert " ".join(text.split()).endswith(words)


def test_load_of_other_processes_is_said_and_in_the_interval(tmp_path: Path) -> None:
    def made(after_tid: int) -> Comparison:
        rows = uffd_faults(vcpus=1, each=100)
        for row in rows:
            row |= {"wake_after_tid": after_tid, "wake_run_ns": 1_000}
            for key in ("wake_ns", "stall_ns", "end_ns"):
                row[key] = int(str(row[key])) + 200_000
        late = 0
        for row in rows:
            row["start_ns"] = int(str(row["start_ns"])) + late
            row["end_ns"] = int(str(row["end_ns"])) + late
            late += 200_000
        return compared(write_trace(tmp_path / f"{after_tid}.trace", rows))

    idle, busy = made(0), made(999)
    assert idle.others_share == 0
    assert made(300).others_share == 0, "its own handler is no other process"
    assert busy.others_share == pytest.approx(230 / 440, abs=0.05)
    assert "host was busy" in " ".join(compare_view.report(busy).lead)
    quiet, unsure = idle.rows[0].uncertainty, busy.rows[0].uncertainty
    assert quiet is not None and unsure is not None
    assert unsure.total_ns.low < 0.6 * quiet.total_ns.low
    assert unsure.total_ns.high > 1.8 * quiet.total_ns.high


def test_an_emulated_host_is_said_to_be_one(tmp_path: Path) -> None:
    emulated = Host(cpu_model="QEMU TCG CPU version 2.5+", cpus=2)
    got = compared(write_trace(tmp_path / "tcg.trace", uffd_faults(each=60), host=emulated))
    assert any("emulated (QEMU TCG)" in note for note in got.notes[:3]), "among the three that are shown"
    plain = compared(write_trace(tmp_path / "hw.trace", uffd_faults(each=60), host=Host(cpu_model="AMD EPYC", cpus=2)))
    assert not any("emulated" in note for note in plain.notes)
