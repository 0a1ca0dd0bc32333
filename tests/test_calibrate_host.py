"""Costs of a host are measured twice: their range is how the passes differ, and a busy host is refused or marked."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.calibrate import host as host_module
from faultreplay.analysis.calibrate.host import calibrate_host
from faultreplay.analysis.calibrate.microruns import MicroTraces
from faultreplay.analysis.calibrate.quiet import Conditions, Watch, worst
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Host, fingerprint_of
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.filed import filed_dir

HOST = Host(kernel="6.18", cpu_model="A CPU", kvm_flavour="pvm")
QUIET = "cpu  100 0 50 5000 0 0 0 0 0 0\n"


def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: float, conditions: Conditions) -> None:
    """The lab's runs are made traces: in the second pass every stage takes `slower` times as long."""
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


def words(_: str) -> None:
    pass


def test_the_range_of_a_cost_is_how_two_passes_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes(tmp_path, monkeypatch, 1.5, Conditions(1, 0, 5, 0.1))
    got = calibrate_host(words, left_out=("fetch",))
    wake, trap = got.fit.costs["wake"], got.fit.costs["trap"]
    assert wake.n == 200
    assert wake.low < 30_000
    assert wake.high > 45_000
    assert wake.distribution.mean == pytest.approx(37_500, rel=0.02)
    assert trap.high / trap.low < 1.1
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
