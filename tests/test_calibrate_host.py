"""Costs of a host are measured twice: their range is how the passes differ, and a busy host is refused or marked."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.calibrate import host as host_module
from faultreplay.analysis.calibrate.contention import fit_contention
from faultreplay.analysis.calibrate.growth import SERIES, Growth, growing_runs, planned, spec_of
from faultreplay.analysis.calibrate.host import calibrate_host
from faultreplay.analysis.calibrate.microruns import MicroTraces
from faultreplay.analysis.calibrate.quiet import Conditions, Watch, worst
from faultreplay.analysis.calibrate.saturated import Row, saturated_rate
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Host, fingerprint_of
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.filed import filed_dir
from faultreplay.replay.language.names import CONTENTION

HOST = Host(kernel="6.18", cpu_model="A CPU", kvm_flavour="pvm")
QUIET = "cpu  100 0 50 5000 0 0 0 0 0 0\n"


def grown(cpus: int, **known: float) -> Growth:
    """The lab's growing runs as a host with these costs of contention would make them."""
    runs, left_out = planned(cpus)
    costs = load_costs().with_constants(**known)
    growth = Growth(left_out=left_out)
    for series, n in runs:
        row = Row(series.name, series.mechanism, n, (1.0,), series.params(n))
        growth.rows.append(replace(row, faults_per_s=(saturated_rate(row, costs),)))
    return growth


def passes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: float,
    conditions: Conditions,
    growth: Growth | None = None,
) -> None:
    """The lab's runs are made traces: in the second pass every stage takes `slower` times as long."""
    monkeypatch.setattr(host_module, "growing_runs", lambda say: growth or Growth())
    HOST.fingerprint = fingerprint_of(HOST)
    made = 0

    @contextmanager
    def micro_traces(say: Callable[[str], None]) -> Iterator[MicroTraces]:
        nonlocal made
        made += 1
        rows = uffd_faults(each=100, vcpus=1, seed=made)
        for row in rows if made == 2 else ():
            for key in ("wake_ns", "resolve_ns"):
                row[key] = round(int(str(row[key])) * slower)
        path = write_trace(tmp_path / f"{made}.trace", rows, host=HOST)
        yield MicroTraces([open_trace(path)], [])

    monkeypatch.setattr(host_module, "micro_traces", micro_traces)

    class Told(Watch):
        def __exit__(self, *_: object) -> None:
            self.conditions = conditions

    monkeypatch.setattr(host_module, "Watch", Told)


def test_the_range_of_a_cost_holds_runs_that_slept_and_runs_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes(tmp_path, monkeypatch, 1, Conditions(0, 0, 0, 0.0))
    made = 0

    @contextmanager
    def micro_traces(say: Callable[[str], None]) -> Iterator[MicroTraces]:
        nonlocal made
        made += 1
        traces = []
        for fetch, times in (("200us", 3), ("0us", 1)):
            rows = uffd_faults(each=100, vcpus=1, seed=made)
            for row in rows:
                row["wake_ns"] = int(str(row["wake_ns"])) * times
            path = tmp_path / f"{made}-{fetch}.trace"
            lab = {"spec": {"mechanism": "uffd-missing", "fetch": fetch}}
            traces.append(open_trace(write_trace(path, rows, host=HOST, lab=lab)))
        yield MicroTraces(traces, [])

    monkeypatch.setattr(host_module, "micro_traces", micro_traces)
    wake, entry = (calibrate_host(words).fit.costs[name] for name in ("wake", "fault_entry"))
    assert wake.low < 30_000, "asleep it is three times as long: both are in the range"
    assert wake.high > 90_000
    assert wake.distribution.mean == pytest.approx(60_000, rel=0.02)
    assert entry.high / entry.low < 1.1, "the passes agree on what the way does not change"


def words(_: str) -> None:
    pass


def test_the_range_of_a_cost_is_how_two_passes_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes(tmp_path, monkeypatch, 1.5, Conditions(1, 0, 5, 0.1))
    got = calibrate_host(words, left_out=("fetch",))
    wake, entry = got.fit.costs["wake"], got.fit.costs["fault_entry"]
    assert wake.n == 200
    assert wake.low < 30_000
    assert wake.high > 45_000
    assert wake.distribution.mean == pytest.approx(37_500, rel=0.02)
    assert entry.high / entry.low < 1.1
    assert set(got.unsteady) == {"wake", "resolve"}
    assert got.unsteady["wake"] == pytest.approx(50, abs=1)
    assert "fetch" not in got.fit.costs
    assert not got.problems


def test_a_busy_host_is_refused_or_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes(tmp_path, monkeypatch, 1, Conditions(45, 0, 5, 2.0))
    with pytest.raises(IncompleteData, match="other processes took 45 %"):
        calibrate_host(words)
    got = calibrate_host(words, allow_busy=True)
    assert got.problems == ("other processes took 45 % of the CPUs",)
    wake = got.fit.costs["wake"]
    assert wake.high / wake.low > 3.9
    assert "on a busy host" in wake.source


def test_the_command_files_costs_of_a_quiet_host_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes(tmp_path, monkeypatch, 1, Conditions(0, 3.5, None, 0.0))
    assert _exit_code(["calibrate", "--lab"]) == 4
    assert "a hypervisor stole 3.5 % of the CPUs" in capsys.readouterr().err
    assert _exit_code(["calibrate", "--lab", "--allow-busy"]) == 0
    seen = capsys.readouterr()
    assert "spoiled: a hypervisor stole" in seen.out
    assert "not filed" in seen.err
    assert not filed_dir().exists()
    passes(tmp_path / "quiet", monkeypatch, 1, Conditions(0, 0, None, 0.0))
    (tmp_path / "quiet").mkdir()
    assert _exit_code(["calibrate", "--lab"]) == 0
    (path,) = filed_dir().iterdir()
    assert path.name == f"{HOST.fingerprint}.toml"
    filed = tomllib.loads(path.read_text())
    assert filed["fingerprint"] == HOST.fingerprint
    assert filed["costs"]["wake"]["low"] < filed["costs"]["wake"]["high"]
    assert "fetch" not in filed["costs"]
    assert _exit_code(["calibrate", "--allow-busy", str(tmp_path / "1.trace")]) == 2


def test_what_a_host_did_besides(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    stat, pressure = tmp_path / "stat", tmp_path / "pressure" / "cpu"
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(QUIET)
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    with Watch(tmp_path) as watch:
        # user, idle and steal grow: a day of CPU time, so that what this process takes is nothing beside it
        day = 86_400 * ticks
        stat.write_text(f"cpu  {100 + day // 2} 0 50 {5000 + day // 4} 0 0 0 {day // 4} 0 0\n")
    assert watch.conditions is not None
    assert watch.conditions.others_percent == pytest.approx(50, abs=0.1)
    assert watch.conditions.stolen_percent == pytest.approx(25, abs=0.1)
    assert watch.conditions.waited_percent == 0
    assert len(watch.conditions.problems) == 2
    pressure.unlink()
    with Watch(tmp_path) as watch:
        pass
    assert watch.conditions is not None
    assert watch.conditions.waited_percent is None
    assert not watch.conditions.problems


def test_our_own_work_is_not_others() -> None:
    with Watch() as watch:
        begin = os.times()
        while os.times().user - begin.user < 0.2:
            pass
    conditions = watch.conditions
    assert conditions is not None
    spent = os.times()
    cpus = os.cpu_count() or 1
    ours = 100 * (spent.user + spent.system - begin.user - begin.system) / ((spent.elapsed - begin.elapsed) * cpus)
    assert conditions.others_percent <= 100 - ours + 15, "what we took was counted as others'"


def test_the_worst_of_several() -> None:
    one, other = Conditions(1, 2, None, 0.5, 30), Conditions(3, 0, 7, 0.1, 0)
    assert worst([one, other]) == Conditions(3, 2, 7, 0.5, 30)
    assert worst([one, other]).problems[-1] == "a thread was preempted in 30 % of the faults"


def test_contention_is_fitted_filed_and_said_to_be_extrapolated_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = grown(4, mm_once=700, mm_share=450)
    passes(tmp_path, monkeypatch, 1, Conditions(0, 0, None, 0.0), growth)
    assert _exit_code(["calibrate", "--lab", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["contention"]
    assert {"mm_once", "mm_share"} <= set(told["fitted"])
    assert "herd_per_reader" in told["not_told"]
    (path,) = filed_dir().iterdir()
    filed = load_costs(path)
    assert filed.fitted_to == told["fitted_to"] == 4
    assert filed["mm_share"].provenance == "measured-host"
    assert filed["mm_share"].low < 450 < filed["mm_share"].high
    assert filed["mm_once"].distribution.mean == pytest.approx(700, rel=0.3)
    assert "herd_per_reader" not in filed

    trace = str(tmp_path / "eight.trace")
    assert _exit_code(["synth", "demand-paging", "--vcpus", "8", "--pages", "20", "-o", trace]) == 0
    capsys.readouterr()
    asked = ["replay", trace, "-m", "kvm-exit", "--costs", str(path)]
    for ask in (asked, [*asked, "--rows", "--format", "csv"]):
        assert _exit_code(ask) == 0
        seen = capsys.readouterr()
        assert "extrapolated from 4 to 8 accessors" in " ".join((seen.out + seen.err).split())
    assert _exit_code(["calibrate", "--lab", "--require", "herd_per_reader"]) == 4
    assert "herd_per_reader (changes no run" in capsys.readouterr().err


def test_growing_runs_take_a_cpu_for_each_thread() -> None:
    runs, left_out = planned(2)
    assert [(series.name, n) for series, n in runs] == [
        (name, n) for name in ("plain faults", "KVM exits", "process, plain faults") for n in (1, 2)
    ]
    assert left_out["userfaultfd, one reader"] == "2 accessors and their readers need 3 CPUs"
    runs, left_out = planned(256)
    assert not left_out
    assert {series.name for series, n in runs if n == 64} == {series.name for series in SERIES}
    assert all(series.threads(n) <= 48 for series, n in planned(48)[0])
    assert planned(1)[0] == []


def test_what_a_process_does_alone_is_run_without_a_guest() -> None:
    """Each series can be asked of the lab, and those of a process are none of a guest's."""
    specs = {series.name: spec_of(series, 2) for series in SERIES}
    alone = {name for name, spec in specs.items() if spec.target == "process"}
    assert alone == {
        "process, plain faults",
        "process, one reader",
        "process, a reader each",
        "process, a userfaultfd each",
    }
    assert {specs[name].real_mechanism for name in alone} == {"host-lazy", "uffd-missing", "uffd-sharded"}
    assert all(spec.fetch == "0us" and spec.pin for spec in specs.values())


def test_a_run_that_one_pass_lacks_is_left_out() -> None:
    row = Row("plain faults", "host-lazy", 1, (10.0,))
    together = Growth.together([Growth([row, replace(row, accessors=2)]), Growth([replace(row, faults_per_s=(12.0,))])])
    assert [(r.accessors, r.faults_per_s) for r in together.rows] == [(1, (10.0, 12.0))]
    assert together.left_out == {"plain faults, 2": "not made each time"}


@pytest.mark.lab
def test_growing_runs_are_real() -> None:
    """Two CPUs: plain faults of a guest and a process, and exits. Of the rates only the order is judged."""
    growth = growing_runs(words, cpus=2)
    assert {(row.series, row.accessors) for row in growth.rows} == {
        (name, n) for name in ("plain faults", "KVM exits", "process, plain faults") for n in (1, 2)
    }
    rates = {(row.series, row.accessors): row.rate for row in growth.rows}
    assert all(1e3 < rate < 1e8 for rate in rates.values())
    assert rates["plain faults", 1] > rates["KVM exits", 1]
    got = fit_contention(Growth.together([growth, growing_runs(words, cpus=2)]).rows, load_costs(), source="here")
    assert got.costs.fitted_to in (0, 2)
    assert {*got.costs, *got.not_told} == set(CONTENTION)
