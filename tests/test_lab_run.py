"""Real lab runs: exact counts, stalls no shorter than the fetch, memory that holds what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabResult, LabSpec

pytestmark = pytest.mark.lab

FETCH_NS = 200_000


def stalls_ns(result: LabResult) -> np.ndarray:
    return result.truth["end_ns"].to_numpy() - result.truth["start_ns"].to_numpy()


@pytest.mark.parametrize("target", ["kvm", "process"])
@pytest.mark.parametrize("order", ["seq", "random"])
def test_every_first_access_waits_for_its_page_and_finds_it(target: str, order: str) -> None:
    spec = LabSpec(target=target, vcpus=2, pages=211, order=order, access="mixed", fetch="200us", seed=3)
    result = run(spec)
    assert result.problem == ""
    assert result.truth.num_rows == 2 * 211
    assert stalls_ns(result).min() >= FETCH_NS
    assert result.lab["services"]["resolved"] == 2 * 211
    assert result.lab["verified"] == {
        "pages_touched": 422, "pages_present": 422, "absent": 0, "wrong_content": 0, "wrong_values": 0,
        "lost_writes": 0, "lost_updates": 0,
    }  # fmt: skip
    assert result.lab["clock_error_ns"] < 10_000


def test_later_accesses_to_a_page_do_not_wait() -> None:
    result = run(LabSpec(vcpus=1, pages=101, accesses=404, fetch="200us"))
    stalls = stalls_ns(result)
    assert (stalls[:101] >= FETCH_NS).all()
    assert np.median(stalls[101:]) < 5_000


def test_think_time_passes_between_accesses() -> None:
    truth = run(LabSpec(vcpus=1, pages=64, think="50us", fetch="0")).truth
    start, end = truth["start_ns"].to_numpy(), truth["end_ns"].to_numpy()
    think = start[1:] - end[:-1]
    assert (think >= 50_000 - 100).all()
    assert np.median(think) < 60_000


def test_a_trace_without_events_holds_the_truth_and_who_the_threads_are(tmp_path: Path) -> None:
    out = tmp_path / "x.trace"
    result = run(LabSpec(vcpus=2, pages=53, fetch="100us"), out, record=False)
    trace = open_trace(out)
    truth = trace.truth()
    assert truth is not None
    assert truth.height == 106
    assert truth["page"].n_unique() == 106
    assert trace.meta.origin == "lab"
    assert trace.meta.mechanism is not None
    assert trace.meta.mechanism.name == "uffd-missing"
    roles = sorted(t.role for t in trace.meta.targets[0].threads)
    assert roles == ["handler", "vcpu", "vcpu", "vmm"]
    vcpus = {t.tid for t in trace.meta.targets[0].threads if t.role == "vcpu"}
    assert set(truth["tid"]) == vcpus
    assert trace.meta.lab["run_time_ns"] == result.run_time_ns
