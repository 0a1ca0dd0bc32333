"""What contention added to a trace's own costs is not charged a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.compare.compare import compare
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.uncontended import share_uncontended, uncontended
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import make_workload

SHIPPED = load_costs().with_constants(fetch=0)
SHOWN = CostTable(
    {name: SHIPPED[name] for name in ("fault_entry", "reader_wakeup", "wake", "resolve", "handler_loop", "fetch")}
)


def total(costs: CostTable, vcpus: int = 8) -> int:
    work = make_workload([{"think_ns": np.full(100, 20_000)} for _ in range(vcpus)])
    return simulate(work, load_mechanism("uffd-missing").with_params({"handlers": 2}), costs).total_stall_ns


def test_with_contention_the_recorded_mechanism_takes_what_it_took() -> None:
    share = share_uncontended(SHIPPED, SHOWN, total)
    assert 0.3 < share < 0.95
    once = total(SHIPPED.merge(uncontended(SHOWN, share)))
    measured = total(SHIPPED.without_contention())
    assert once == pytest.approx(measured, rel=0.01)
    assert total(SHIPPED) > 1.1 * measured, "charged twice"
    assert uncontended(SHOWN, share)["fetch"] == SHOWN["fetch"], "a network does not know of it"


def test_nothing_is_taken_off_where_nothing_contends() -> None:
    assert share_uncontended(SHIPPED.without_contention(), SHOWN, total) == 1.0
    assert share_uncontended(SHIPPED, CostTable({"fetch": SHIPPED["fetch"]}), total) == 1.0
    assert uncontended(SHOWN, 1.0) is SHOWN


def test_a_recording_of_many_vcpus_is_met_and_says_so(tmp_path: Path) -> None:
    """16 vCPUs, 16 handlers: 60 us a fault as recorded; contention of other hosts would come on top."""
    faults = uffd_faults(vcpus=16, each=60, handlers=16, fetch_ns=20_000)
    path = write_trace(tmp_path / "many.trace", faults, params={"handlers": 16})
    case = open_case(open_trace(path), Setup())
    before = case.shipped.merge(case.fitted())
    assert case.uncontended_share < 1.0
    assert case.costs()["wake"].distribution.mean < before["wake"].distribution.mean
    twice = simulate(case.read, load_mechanism("uffd-missing").with_params({"handlers": 16}), before).total_stall_ns
    recorded = int(case.workload.recorded_stall_ns.sum())
    assert twice > 1.1 * recorded
    got = compare(case, ["uffd-missing", "kvm-exit"])
    assert got.judged is not None
    assert got.judged.in_sample.total == pytest.approx(0, abs=3)
    assert any("contain the contention of the recording" in note for note in got.notes)
