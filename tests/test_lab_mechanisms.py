"""Each real mechanism and window: all faults resolved, memory right, nothing written where nothing may be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from busy_host import judged_in_time

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import MECHANISMS, LabResult, LabSpec, Window

pytestmark = pytest.mark.lab

PLACED_BY_US = (
    "uffd-missing",
    "uffd-minor",
    "uffd-sharded",
    "kvm-exit",
    "mmio-exit",
    "hugetlb-2m",
    "uffd-handler-process",
)
MS = 1_000_000


def run_or_skip(spec: LabSpec, out: Path | None = None) -> LabResult:
    try:
        return run(spec, out, record=False)
    except FaultreplayError as error:
        if error.exit_code == 5:
            pytest.skip(f"needs a kernel feature: {error}")
        raise


@pytest.mark.parametrize("target", ["kvm", "process"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanism_resolves_every_fault_once(mechanism: str, target: str) -> None:
    if target == "process" and not MECHANISMS[mechanism].process:
        with pytest.raises(UsageError, match="needs a guest"):
            LabSpec(mechanism=mechanism, target=target)
        return
    pages = 7 if mechanism == "hugetlb-2m" else 103
    spec = LabSpec(mechanism=mechanism, target=target, vcpus=2, pages=pages, access="mixed", fetch="50us", think="80us")

    # one fault brings all 16 pages of its 64 KiB; the accessors' ranges follow each other
    around = -(2 * pages // -16) if MECHANISMS[mechanism].around else 0

    def attempt() -> LabResult:
        result = run_or_skip(spec)
        assert result.problem == ""
        assert result.lab["verified"]["pages_touched"] == 2 * pages
        assert result.lab["services"]["resolved"] == (2 * pages if mechanism in PLACED_BY_US else around)
        return result

    def judge(result: LabResult) -> None:
        """The log is fetched every 10 ms by a thread that a busy host may let run only after the accessors."""
        if mechanism == "dirty-log":
            assert result.lab["dirty"]["pages"] > 0

    judged_in_time(attempt, judge)


def test_an_exit_to_userspace_is_taken_for_each_page() -> None:
    for mechanism, exits in (("kvm-exit", "efault_exits"), ("mmio-exit", "mmio_exits")):
        result = run(LabSpec(mechanism=mechanism, vcpus=1, pages=101, fetch="0"))
        assert result.lab["accessors"][0][exits] == 101


@pytest.mark.parametrize("mechanism", ["uffd-missing", "kvm-exit", "uffd-minor"])
@pytest.mark.parametrize("target", ["kvm", "process"])
def test_two_accessors_on_one_missing_page_make_one_resolution(mechanism: str, target: str) -> None:
    both = {"vcpus": 2, "order": "coalesce", "pages": 1009, "think": "300us", "fetch": "100us"}
    spec = LabSpec(mechanism=mechanism, target=target, **both)  # type: ignore[arg-type]
    result = run(spec)
    assert result.problem == ""
    assert result.truth.num_rows == 2 * 1009
    assert result.lab["services"]["resolved"] == 1009


def test_read_modify_writes_of_several_vcpus_are_all_counted() -> None:
    spec = LabSpec(vcpus=4, pages=31, shared=True, accesses=310, order="uniform", access="rmw", think="0", fetch="20us")
    result = run(spec)
    assert result.problem == ""
    assert result.truth.num_rows == 4 * 310


WINDOWS = [
    ("kvm", "host-lazy", "freeze"), ("kvm", "host-lazy", "pause"), ("kvm", "host-lazy", "memslot-destroy"),
    ("kvm", "uffd-missing", "freeze"), ("kvm", "uffd-minor", "freeze"), ("kvm", "uffd-sharded", "freeze"),
    ("kvm", "uffd-missing", "pause"), ("kvm", "kvm-exit", "pause"), ("kvm", "uffd-missing", "memslot-destroy"),
    ("process", "host-lazy", "freeze"), ("process", "uffd-missing", "freeze"), ("process", "uffd-missing", "pause"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "base", "kind"), WINDOWS)
def test_nothing_is_written_inside_a_window(target: str, base: str, kind: str) -> None:
    spec = LabSpec(
        mechanism=base, target=target, vcpus=2, pages=300, accesses=1500, order="uniform", access="w",
        think="20us", fetch="20us", windows=(Window(15 * MS, 8 * MS, kind),),
    )  # fmt: skip

    def attempt() -> LabResult:
        result = run(spec)
        assert result.problem == ""
        (window,) = result.lab["windows"]
        assert window["pages_changed"] == 0
        assert window["end_from_ns"] - window["begin_ns"] >= 8 * MS
        start_ns, end_ns = (result.truth[name].to_numpy() for name in ("start_ns", "end_ns"))
        inside = (start_ns > window["begin_ns"]) & (end_ns < window["end_from_ns"])
        assert not inside.any(), "a write began and ended inside the window"
        [(got, begin, end)] = result.windows
        assert got == kind
        assert begin < end
        return result

    def judge(result: LabResult) -> None:
        assert result.lab["windows"][0]["pages_checked"] > 0, "no page was there yet when the window began"

    judged_in_time(attempt, judge)


def test_the_comparison_of_memory_sees_writes_that_nothing_stops() -> None:
    spec = LabSpec(
        mechanism="host-lazy", vcpus=1, pages=300, accesses=1500, order="uniform", access="w",
        windows=(Window(15 * MS, 8 * MS, "watch"),),
    )  # fmt: skip
    (window,) = run(spec).lab["windows"]
    assert window["pages_changed"] > 50


def test_a_window_alone_holds_up_each_accessor_once() -> None:
    window = Window(20 * MS, 60 * MS, "freeze")  # long beside the slices of a busy host's scheduler
    result = run(LabSpec(mechanism="freeze", vcpus=2, pages=500, accesses=4000, access="w", windows=(window,)))
    (waiters,) = result.lab["waiters"]
    assert waiters["accesses"] == 2
    assert result.lab["services"]["waited_for_thaw"] >= 2
    stalls = result.truth["end_ns"].to_numpy() - result.truth["start_ns"].to_numpy()
    assert np.count_nonzero(stalls > 40 * MS) == 2


@pytest.mark.parametrize("fetch", ["unix", "tcp"])
def test_pages_come_from_a_server_no_faster_than_its_link(fetch: str) -> None:
    result = run(LabSpec(vcpus=2, pages=101, fetch=fetch, rate_bytes=20 << 20))
    assert result.problem == ""
    assert result.run_time_ns > 202 * 4096 * 1e9 / (20 << 20)


@pytest.mark.parametrize("target", ["kvm", "process"])
@pytest.mark.parametrize(
    ("fail", "says", "kept"), [("handler-exit@50", "never resolved", 50), ("source-exit@50", "died", 50)]
)
def test_what_dies_in_the_run_leaves_a_reason_and_a_readable_trace(
    tmp_path: Path, target: str, fail: str, says: str, kept: int
) -> None:
    out = tmp_path / "x.trace"
    how = {"fetch": "unix"} if "source" in fail else {"fetch": "50us", "timeout_ns": 700 * MS}
    result = run(LabSpec(target=target, pages=300, fail=fail, **how), out, record=False)  # type: ignore[arg-type]
    assert says in result.problem
    trace = open_trace(out)
    assert trace.meta.lab["problem"] == result.problem
    truth = trace.truth()
    assert truth is not None
    assert kept <= truth.height <= kept + 1
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "labhost" in Path(f"/proc/{pid}/comm").read_text()]


def test_no_huge_page_left_is_said(tmp_path: Path) -> None:
    spec = LabSpec(mechanism="hugetlb-2m", pages=8, fail="hugetlb-enomem", timeout_ns=500 * MS)
    result = run_or_skip(spec, tmp_path / "x.trace")
    assert "placing page" in result.problem
    assert result.truth.num_rows == 4
    assert open_trace(tmp_path / "x.trace").meta.lab["problem"]
