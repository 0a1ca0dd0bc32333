"""Rows differ by the mechanism and nothing else, or say why they have no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_traces import BEGIN_NS, uffd_faults, write_trace

from faultreplay.analysis.compare.blackout import blackout
from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.compare import Comparison, Row, compare
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup, Used, load_with, run
from faultreplay.cli import compare_view, render
from faultreplay.cli.main import _exit_code
from faultreplay.collect.recorder import observe
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import Meta, Target, Thread, WindowSpan
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.vcpus import vcpu_threads
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.reading import first_touch, reading_of, without
from faultreplay.replay.workload.workload import Workload, make_workload

SAMPLES = Path(__file__).parent.parent / "sample-traces"
LINK = 1_250_000_000  # 10 Gbit/s


def opened(path: Path, **setup: Any) -> Case:
    return open_case(open_trace(path), Setup(**setup))


def row(comparison: Comparison, mechanism: str) -> Row:
    return next(row for row in comparison.rows if row.mechanism == mechanism)


def reason(comparison: Comparison, mechanism: str) -> str:
    return next(none.reason for none in comparison.unanswered if none.mechanism == mechanism)


def as_kind(rows: list[dict[str, object]], accessor: str) -> list[dict[str, object]]:
    for fault in rows:
        fault |= {"accessor": accessor, "vcpu": 0 if accessor == "vcpu" else -1}
    return rows


def stage2_faults(each: int = 200) -> list[dict[str, object]]:
    """The accesses of `uffd_faults`, each page touched twice, as faults that the kernel served alone."""
    rows = uffd_faults(each=each)
    for number, fault in enumerate(rows):
        fault |= {"cause": "stage2", "resolution": "kernel", "handler_tid": 0, "stall_ns": 3_000}
        fault |= {"queue_ns": None, "service_ns": None, "resolve_ns": None, "wake_ns": None}
        fault |= {"end_ns": int(str(fault["start_ns"])) + 3_000, "page": (number // 2) * 4096 + (1 << 30)}
    return rows


# served


def test_a_mechanism_that_serves_no_fault_has_a_reason_and_no_numbers(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", as_kind(uffd_faults(each=80), "vmm"))
    got = compare(opened(path), ["uffd-missing", "kvm-exit", "kvm-notify-wait"])
    assert [r.mechanism for r in got.rows] == ["uffd-missing"]
    assert "no vCPU in this trace" in reason(got, "kvm-exit")
    assert "no vCPU or kernel access in this trace" in reason(got, "kvm-notify-wait")
    text = render.to_table(compare_view.report(got), 80)[0]
    line = next(line for line in text.splitlines() if line.startswith("kvm-exit"))
    assert "no vCPU in this trace" in line
    assert " ms" not in line


def test_shares_of_own_fallback_and_recorded_are_told_apart(tmp_path: Path) -> None:
    rows = uffd_faults(each=100)
    for fault in rows[:30]:
        fault |= {"accessor": "kernel", "vcpu": -1}
    for fault in rows[30:40]:
        fault |= {"cause": "minor-host", "resolution": "kernel"}
    got = compare(opened(write_trace(tmp_path / "x.trace", rows)), ["kvm-exit", "uffd-missing", "as-recorded"])
    served = row(got, "kvm-exit").served
    assert (served.own_faults, served.fallback_faults, served.recorded_faults) == (160, 30, 10)
    assert served.fallbacks == ("uffd-missing",)
    assert served.own_stall_ns + served.fallback_stall_ns + served.recorded_stall_ns == served.stall_ns
    assert served.stall_ns == row(got, "kvm-exit").result.stall_ns.sum()
    report = compare_view.report(got)
    shown = {r["mechanism"].removesuffix(" *"): r.get("served_text") for r in report.rows or ()}
    assert (shown["kvm-exit"], shown["uffd-missing"], shown["as-recorded"]) == ("80 %", "95 %", None)
    assert any("its fall-back uffd-missing: 15.0 %" in note for note in report.notes)


def test_where_all_is_served_no_column_says_so(tmp_path: Path) -> None:
    report = compare_view.report(compare(opened(write_trace(tmp_path / "x.trace", uffd_faults(each=80)))))
    assert "served_text" not in [column.key for column in report.columns]


# inherits


@pytest.mark.parametrize("name", ["uffd-minor", "kvm-notify-wait", "guest-memfd", "uffd-missing"])
def test_kin_take_the_handlers_of_the_recording(name: str) -> None:
    used = Used("uffd-missing", {"handlers": 3, "granule": 4096, "bandwidth": 0}, inferred=False)
    assert load_with(name, Setup(), used).values["handlers"] == 3
    below = load_with("kvm-exit", Setup(), used).fallback["kernel"]
    assert below.values["handlers"] == 3
    assert load_with("hugetlb-2m", Setup(), used).granule_bytes == 2 << 20


def test_shards_share_the_recorded_threads_out() -> None:
    threads = Used("uffd-missing", {"handlers": 8}, inferred=False)
    assert load_with("uffd-sharded", Setup(), threads).values["handlers"] == 2
    in_hand = Used("uffd-missing", {"handlers": 8}, inferred=False, asynchronous=True)
    assert load_with("uffd-sharded", Setup(), in_hand).values["handlers"] == 8
    sharded = Used("uffd-sharded", {"handlers": 2, "shards": 3}, inferred=False)
    assert load_with("uffd-sharded", Setup(), sharded).values["shards"] == 3
    assert load_with("uffd-missing", Setup(), Used("kvm-exit", {"handlers": 0}, inferred=False)).values["handlers"] == 1


def test_a_fall_back_that_serves_all_equals_the_mechanism_itself(tmp_path: Path) -> None:
    """What fault 1 of the issue showed as 814 and 630 ms: the same path with another number of handlers."""
    path = write_trace(tmp_path / "x.trace", uffd_faults(handlers=2, vcpus=4, each=60), params={"handlers": 2})
    rows = uffd_faults(handlers=2, vcpus=4, each=60)
    rows[0] |= {"accessor": "kernel", "vcpu": -1}
    path = write_trace(tmp_path / "y.trace", rows, params={"handlers": 2})
    case = opened(path)
    assert load_with("kvm-exit", case.setup, case.used).fallback["kernel"].values["handlers"] == 2


# vCPUs without KVM


def test_tcg_threads_of_the_sample_are_its_vcpus() -> None:
    got = compare(opened(SAMPLES / "qemu-postcopy.trace"), ["uffd-missing", "kvm-exit"])
    assert got.vcpus == 2
    assert sorted(got.workload.accessor_name)[:2] == ["vcpu0", "vcpu1"]
    kvm_exit, uffd = row(got, "kvm-exit"), row(got, "uffd-missing")
    assert kvm_exit.served.own_share > 0.9
    assert kvm_exit.metrics.total_stall_ns < uffd.metrics.total_stall_ns


def test_threads_are_named_as_vcpus_by_id_or_pattern(tmp_path: Path) -> None:
    named = Target(100, threads=[Thread(200, "cpu-0"), Thread(201, "cpu-1")])
    path = write_trace(tmp_path / "x.trace", as_kind(uffd_faults(each=80), "vmm"), targets=[named])
    by_name = opened(path, vcpu_threads=("cpu-*",))
    assert by_name.workload.accessor_name == ("vcpu0", "vcpu1")
    one = opened(path, vcpu_threads=("201",))
    assert sorted(one.workload.accessor_name) == ["vcpu1", "vmm:200"]
    with pytest.raises(UsageError, match=r"--vcpu-threads nobody: no thread.*cpu-0"):
        opened(path, vcpu_threads=("nobody",))


def test_recorded_names_are_found_again() -> None:
    threads = [Thread(7, "CPU 1/TCG"), Thread(8, "CPU 0/TCG"), Thread(9, "worker"), Thread(10, "CPU 0/KVM", "vcpu", 0)]
    meta = Meta(targets=[Target(1, threads=threads)])
    assert vcpu_threads(meta) == {7: 1, 8: 0}
    meta.extra["vcpu_threads"] = [9]
    assert vcpu_threads(meta) == {7: 1, 8: 0, 9: 2}


# reading


def test_first_touches_are_missing_where_nothing_else_was(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", stage2_faults(), mechanism=None)
    got = compare(opened(path), ["uffd-missing", "kvm-exit"])
    assert row(got, "uffd-missing").served.own_faults == 200
    assert row(got, "uffd-missing").served.recorded_faults == 200
    assert row(got, "uffd-missing").metrics.total_stall_ns != row(got, "kvm-exit").metrics.total_stall_ns
    assert not any(r.recorded for r in got.rows)
    report = compare_view.report(got)
    assert "first touches taken as missing" in report.title
    assert any("--fetch" in note for note in report.notes)
    fetch = compare(opened(path, fetch_ns=1_000_000), ["uffd-missing"])
    assert not any("give yours with --fetch" in note for note in fetch.notes)
    assert fetch.rows[0].metrics.p50_ns > 1_000_000 or fetch.rows[0].metrics.max_ns > 1_000_000
    assert fetch.rows[0].costs["fetch"].origin.value == "set by you"
    plain = compare(opened(path, reading="recorded"), ["uffd-missing"])
    assert not plain.rows
    assert "--reading first-touch" in reason(plain, "uffd-missing")


def test_a_trace_of_missing_memory_is_read_as_it_was(tmp_path: Path) -> None:
    rows = uffd_faults(each=50)
    rows[3] |= {"cause": "stage2", "resolution": "kernel"}
    case = opened(write_trace(tmp_path / "x.trace", rows))
    assert case.reading == "recorded"
    assert case.read is case.workload


def test_what_a_window_emptied_had_been_touched(tmp_path: Path) -> None:
    rows = stage2_faults()
    windows = [WindowSpan("memslot-destroy", BEGIN_NS + 1, BEGIN_NS + 1_000_000)]
    got = compare(opened(write_trace(tmp_path / "x.trace", rows, mechanism=None, windows=windows)))
    assert not got.what_if
    assert "emptied stage 2" in reason(got, "uffd-missing")
    stills = {still.mechanism: still for still in got.blackouts}
    assert list(stills) == ["pause-only", "freeze", "memslot-destroy", "uffd-wp-freeze"]
    assert stills["freeze"].low.refaults == 0
    assert stills["memslot-destroy"].low.refaults > 300
    assert got.blackout_measured is not None
    assert got.blackout_measured.refaults > 300


PAGES = st.lists(st.tuples(st.sampled_from(["missing", "stage2", "minor-host"]), st.integers(0, 5)), max_size=25)


@given(PAGES)
def test_first_touch_changes_each_page_once_and_only_host_faults(faults: list[tuple[str, int]]) -> None:
    names = ["missing", "minor", "stage2", "mmio", "exit", "minor-host"]
    stream = {
        "think_ns": np.full(len(faults), 100, np.int64),
        "page": np.array([page for _, page in faults], np.int64),
        "cause": np.array([names.index(name) for name, _ in faults], np.uint8),
        "kind": "vmm",
    }
    before = make_workload([stream])
    after = first_touch(before)
    changed = np.flatnonzero(before.cause != after.cause)
    seen: set[int] = set()
    for number, (name, page) in enumerate(faults):
        first = page not in seen
        seen.add(page)
        assert (number in changed) == (first and name != "missing")
    assert reading_of(before) == (
        "first-touch" if faults and not any(n == "missing" for n, _ in faults) else "recorded"
    )


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=8), min_size=1, max_size=4))
def test_dropped_faults_leave_their_think_time(streams: list[list[tuple[int, bool]]]) -> None:
    made = make_workload([{"think_ns": np.array([t for t, _ in s], np.int64), "tail_ns": 7} for s in streams])
    drop = np.array([d for s in streams for _, d in s], np.bool_)
    left = without(made, drop)
    assert left.faults == int((~drop).sum())
    assert whole(left) == whole(made)
    for a, stream in enumerate(streams):
        kept = [t for t, d in stream if not d]
        assert left.accessor_start[a + 1] - left.accessor_start[a] == len(kept)


def whole(workload: Workload) -> list[int]:
    """Think time of each accessor, its end included."""
    bounds = zip(workload.accessor_start[:-1], workload.accessor_start[1:], workload.tail_ns, strict=True)
    return [int(workload.think_ns[a:b].sum() + tail) for a, b, tail in bounds]


# environment


def test_without_a_link_no_row_brings_bytes_for_nothing(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=80))
    names = ["uffd-missing", "hugetlb-2m", "hugetlb-1g", "precopy-push", "prefetch-working-set", "hgm"]
    bare = compare(opened(path), names)
    assert [r.mechanism for r in bare.rows] == ["uffd-missing", "hgm"]
    for name in names[1:5]:
        assert "--link" in reason(bare, name)
    got = compare(opened(path, link_bytes_per_s=LINK), names)
    assert not got.unanswered
    assert not any(r.recorded for r in got.rows), "another link than the recorded one: no error"
    huge = row(got, "hugetlb-2m").metrics
    assert huge.max_ns > (2 << 20) * 1_000_000_000 // LINK
    assert row(got, "precopy-push").metrics.total_stall_ns != row(got, "prefetch-working-set").metrics.total_stall_ns
    assert all(r.params["bandwidth"] == LINK for r in got.rows)


def test_the_time_of_a_page_is_not_paid_twice(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(vcpus=1, each=120))
    plain = row(compare(opened(path), ["uffd-missing"]), "uffd-missing").metrics
    linked = row(compare(opened(path, link_bytes_per_s=LINK), ["uffd-missing"]), "uffd-missing").metrics
    assert linked.total_stall_ns == pytest.approx(plain.total_stall_ns, rel=0.002)


def test_the_environments_fetch_is_every_rows(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=60))
    got = compare(opened(path, fetch_ns=3_000_000), ["uffd-missing", "kvm-exit", "kvm-userfault", "uffd-sigbus"])
    assert all(r.metrics.p50_ns >= 3_000_000 for r in got.rows)
    assert not any(r.recorded for r in got.rows)


# blackout


def test_a_windows_stop_is_in_max_and_in_no_other_rows_way(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=60))
    case = open_case(open_trace(path), Setup(), windows=[(1_000_000, 7_000_000, "freeze")])
    got = compare(case, ["uffd-missing"])
    assert row(got, "uffd-missing").metrics.max_ns >= 5_000_000
    assert [still.mechanism for still in got.blackouts] == ["freeze"]
    still = got.blackouts[0]
    assert still.base == "uffd-missing"
    assert 7_000_000 <= still.low.standstill_ns < 9_000_000
    assert still.low.make_undo_ns is not None
    assert 0 < still.low.make_undo_ns < 2_000_000
    sure = still.standstill
    assert sure is not None
    assert sure.low < still.low.standstill_ns <= still.high.standstill_ns < sure.high
    assert sure.low > 6_500_000, "the window itself is given"
    text = render.to_table(compare_view.report(got), 100)[0]
    assert f"{sure.low / 1e6:.2f}-{sure.high / 1e6:.2f} ms" in text
    assert still.as_record()["standstill_interval_high_ns"] == round(sure.high)
    assert blackout("freeze", case, case.costs()).standstill is None, "looked at only where rows are weighed"


def test_no_window_no_blackout_table(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=60))
    got = compare(opened(path))
    assert not got.blackouts
    assert "freeze" not in got.asked
    assert "Blackout" not in render.to_table(compare_view.report(got), 80)[0]
    asked = compare(opened(path), ["freeze", "memslot-destroy"])
    assert {still.base for still in asked.blackouts} == {"uffd-missing"}
    spans = [still.result.windows for still in asked.blackouts]
    assert spans[0][0][0] == spans[1][0][0], "the same window"
    text = render.to_table(compare_view.report(asked), 80)[0]
    for word in ("stand-still", "make and", "refaults", "hazards"):
        assert word in text


def test_stalls_and_latencies_share_no_column(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=60))
    got = compare(opened(path), ["async-pf", "uffd-missing"])
    apf = row(got, "async-pf").metrics
    assert apf.latency_p50_ns is not None
    assert apf.p50_ns < apf.latency_p50_ns
    assert row(got, "uffd-missing").metrics.latency_p50_ns is None
    assert "latency" in render.to_table(compare_view.report(got), 120)[0]


# several rows of one mechanism


def test_one_mechanism_stands_several_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(vcpus=4, each=60))
    names = ["-m", "uffd-missing:handlers=1", "-m", "uffd-missing:handlers=4", "--format", "json"]
    assert _exit_code(["compare", str(path), *names]) == 0
    got = {r["mechanism"]: r for r in json.loads(capsys.readouterr().out)["records"] if r["row"] == "predicted"}
    assert got["uffd-missing:handlers=4"]["params"]["handlers"] == 4
    assert got["uffd-missing:handlers=4"]["total_stall_ns"] < 0.6 * got["uffd-missing:handlers=1"]["total_stall_ns"]
    assert _exit_code(["compare", str(path), "-m", "uffd-missing:handlers"]) == 2
    assert "NAME:PARAMETER=VALUE" in capsys.readouterr().err


def test_own_answer_of_a_mechanism() -> None:
    mechanism = load_mechanism("kvm-exit")
    assert mechanism.answer("missing", "vcpu").by == "own"
    assert mechanism.answer("missing", "kernel").by == "fall-back"
    assert mechanism.answer("minor-host", "vcpu").by == "recorded"
    assert not load_mechanism("as-recorded").answer("missing", "vcpu").simulated


def test_the_first_fault_of_seed_0_draws_like_any_other() -> None:
    one = make_workload([{"think_ns": np.array([10], np.int64)}])
    costs = load_costs()
    stalls = [run(one, load_mechanism("uffd-missing"), costs, Setup(), seed=k).stall_ns[0] for k in range(20)]
    assert stalls[0] > min(stalls)


# what each mechanism pays


def test_mmio_pays_the_fetch_and_continue_is_no_copy(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(vcpus=1, each=120))
    got = compare(opened(path), ["mmio-exit", "uffd-minor", "uffd-missing", "hgm"])
    assert row(got, "mmio-exit").metrics.p50_ns > 200_000
    minor, missing = row(got, "uffd-minor"), row(got, "uffd-missing")
    assert minor.costs["resolve_continue"].foreign
    assert "resolve" not in minor.costs
    assert minor.metrics.total_stall_ns < missing.metrics.total_stall_ns
    assert "resolve_continue" in row(got, "hgm").costs


def test_continue_is_fitted_apart_from_copy(tmp_path: Path) -> None:
    rows = uffd_faults(vcpus=1, each=120)
    for fault in rows:
        fault |= {"cause": "minor", "resolution": "continue"}
    fitted = opened(write_trace(tmp_path / "x.trace", rows, mechanism="uffd-minor")).fitted()
    assert fitted["resolve_continue"].distribution.mean == pytest.approx(5_000)
    assert "resolve" not in fitted


def test_a_recorded_pause_is_a_stall_of_the_measured_row_too(tmp_path: Path) -> None:
    rows = uffd_faults(vcpus=1, each=60, think_ns=2_000_000)
    gap = next(i for i in range(30, 60) if int(str(rows[i]["think_ns"])) > 1_500_000)
    end = int(str(rows[gap]["start_ns"]))
    path = write_trace(tmp_path / "x.trace", rows, windows=[WindowSpan("pause", end - 1_400_000, end - 100_000)])
    case = opened(path)
    got = compare(case, ["as-recorded", "uffd-missing", "ideal"])
    assert got.measured.window_stall_ns == 1_300_000
    assert got.measured.max_ns == 1_300_000
    assert row(got, "as-recorded").metrics.total_stall_ns == got.measured.total_stall_ns
    assert row(got, "as-recorded").metrics.run_time_ns == got.measured.run_time_ns
    assert row(got, "uffd-missing").metrics.total_stall_ns == pytest.approx(got.measured.total_stall_ns, rel=0.03)
    assert row(got, "uffd-missing").metrics.run_time_ns == pytest.approx(got.measured.run_time_ns, rel=0.01)
    assert case.running.think_ns.sum() == case.workload.think_ns.sum() - 1_300_000


# what is shown


def test_columns_order_and_several_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_trace(tmp_path / "one.trace", uffd_faults(vcpus=4, each=60))
    two = write_trace(tmp_path / "two.trace", as_kind(uffd_faults(each=80), "vmm"))
    names = ["-m", "uffd-missing:handlers=4,kvm-exit,ideal,uffd-missing"]
    assert _exit_code(["compare", str(one), *names, "--columns", "p99,total-stall", "--sort", "-total-stall"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("mechanism"))
    assert head.split() == ["mechanism", "p99", "stall"]
    below = [line.split()[0] for line in lines[lines.index(head) :] if line.strip()]
    assert [name for name in below if name in {"kvm-exit", "ideal", "uffd-missing"}][-2:] == ["kvm-exit", "ideal"]
    assert _exit_code(["compare", str(one), str(two), "-m", "uffd-missing,kvm-exit", "--format", "json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert {(r["trace"], r["mechanism"], r["row"]) for r in whole["records"] if r["row"] != "measured"} == {
        ("one", "uffd-missing", "predicted"),
        ("one", "kvm-exit", "predicted"),
        ("two", "uffd-missing", "predicted"),
        ("two", "kvm-exit", "none"),
    }
    assert set(whole["traces"]) == {"one", "two"}
    assert _exit_code(["compare", str(one), str(two), "-m", "uffd-missing,kvm-exit"]) == 0
    text = capsys.readouterr().out
    assert "kvm-exit: no vCPU in this trace" in text
    assert "two: " in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-m", "uffd-mising"], "did you mean 'uffd-missing'?"),
        (["-m", "uffd-missing:handler=2"], "did you mean 'handlers'?"),
        (["--columns", "total-stal"], "did you mean 'total-stall'?"),
        (["--sort", "p9"], "did you mean 'p99'?"),
        (["-m", "ideal", "--set", "ideel.x=1"], "did you mean 'ideal'?"),
        (["--link", "10G"], "write bits or bytes a second, as 10Gbit"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    path = write_trace(tmp_path / "x.trace", uffd_faults(each=20))
    assert _exit_code(["compare", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert len(error.splitlines()) == 1


def test_a_stream_by_address_sends_the_guests_memory_a_prefetch_the_working_set() -> None:
    got = compare(
        opened(SAMPLES / "qemu-postcopy.trace", link_bytes_per_s=LINK // 10),
        ["precopy-push", "prefetch-working-set", "uffd-missing"],
        weigh=False,
    )
    push, prefetch = row(got, "precopy-push"), row(got, "prefetch-working-set")
    assert push.params["memory"] == pytest.approx(417 << 20, rel=0.01)
    assert prefetch.params["memory"] == 0
    assert prefetch.metrics.total_stall_ns * 10 < push.metrics.total_stall_ns
    assert push.metrics.total_stall_ns < row(got, "uffd-missing").metrics.total_stall_ns
    assert any("never call KVM_RUN" in note for note in got.notes)


def test_a_question_is_held_against_no_mechanism_of_the_recording(tmp_path: Path) -> None:
    got = compare(opened(write_trace(tmp_path / "x.trace", stage2_faults(), mechanism=None)))
    assert got.asked == ("as-recorded", "uffd-missing", "kvm-exit", "ideal")
    assert got.baseline == "uffd-missing"


def test_threads_that_stand_for_vcpus_are_told_when_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [Thread(11, "CPU 0/TCG"), Thread(12, "worker-1"), Thread(13, "CPU 1/KVM", "vcpu", 1)]
    monkeypatch.setattr(observe.proc, "describe_target", lambda tgid: Target(tgid, threads=list(threads)))
    meta = Meta(targets=[Target(10, threads=list(threads))])
    observe.complete_targets(meta, observe.Observer(), ("worker-*",))
    assert [(t.tid, t.role, t.vcpu) for t in meta.targets[0].threads] == [
        (11, "vcpu", 0),
        (12, "vcpu", 1),
        (13, "vcpu", 1),
    ]
    assert meta.extra["vcpu_threads"] == [11, 12]
