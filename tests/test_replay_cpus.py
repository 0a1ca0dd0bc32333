"""Host CPUs as run queues: small cases worked out by hand, and what must hold for any workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_mechanisms import HEAD, write_mechanism

from faultreplay.replay.engine.cpus import SLICE_NS
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.costs import Cost, CostTable, Distribution, load_costs
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

US, MS = 1_000, 1_000_000
IDEAL = load_mechanism("ideal")
COSTS = load_costs().without_contention().with_constants(
    fault_entry=1_000, reader_wakeup=0, fetch=20_000, resolve=2_000, wake=3_000, wake_per_waiter=0, handler_loop=500,
    preempt=0, kick=0, exit_userspace=1_500, reenter=4_500, host_fault=3_000, apf_inject=2_500, apf_ready=2_900,
    stage2_fault=2_700,
)  # fmt: skip


def thinks(*streams: list[int], asleep: list[int] | None = None, preempted: list[int] | None = None) -> Workload:
    """An accessor for each list of think times; `asleep` and `preempted` in the order of all rows."""
    work = make_workload([{"think_ns": np.array(stream, np.int64)} for stream in streams])
    return replace(work, asleep_ns=np.array(asleep or [], np.int64), preempted_ns=np.array(preempted or [], np.int64))


def starts(work: Workload, cpus: int = 1, pinned: bool = False) -> list[int]:
    return [int(ns) for ns in simulate(work, IDEAL, COSTS, cpus=cpus, pinned=pinned).start_ns]


def busy(result: Result) -> int:
    return result.resources["cpus"].busy_ns


def test_two_threads_alternate_by_slice() -> None:
    """0 runs a slice, 1 runs one, 0 does its rest, 1 does its own."""
    assert starts(thinks([5 * MS], [5 * MS])) == [2 * SLICE_NS + 5 * MS - SLICE_NS, 10 * MS]
    assert starts(thinks([5 * MS], [5 * MS]), cpus=2) == [5 * MS, 5 * MS]


def test_three_that_always_run_have_a_third_each() -> None:
    work = thinks(*[[100 * US] * 1_000] * 3)
    result = simulate(work, IDEAL, COSTS, cpus=1, until_ns=50 * MS)
    had = (result.start_ns.reshape(3, -1) >= 0).sum(axis=1) * 100 * US
    assert (abs(had - 50 * MS // 3) <= SLICE_NS).all()


def test_who_slept_with_less_than_its_share_takes_the_cpu_when_it_wakes() -> None:
    """1 runs 0.5 ms behind a slice of 0, and sleeps 1 ms 1.15 ms before V: it is owed that at its wake."""
    work = thinks([50 * MS], [500 * US, 1_200 * US], asleep=[0, 0, MS])
    assert starts(work)[1:] == [SLICE_NS + 500 * US, SLICE_NS + 500 * US + MS + 200 * US]


def test_who_takes_a_running_threads_cpu_pays_for_that() -> None:
    work, costs = thinks([50 * MS], [500 * US, 1_200 * US], asleep=[0, 0, MS]), COSTS.with_constants(preempt=7_000)
    plain, paid = (simulate(work, IDEAL, c, cpus=1) for c in (COSTS, costs))
    assert paid.start_ns[2] - plain.start_ns[2] == 7_000  # once: it takes the CPU from 0 when it wakes
    assert paid.costs_used["preempt"] == "assumed"
    assert busy(paid) - busy(plain) == 7_000
    assert "preempt" not in simulate(work, IDEAL, costs).costs_used


def test_who_slept_with_more_than_its_share_waits_for_the_slice() -> None:
    """0 runs 2 ms and sleeps 1 ms, 1 ms behind V: 1 has its slice whole."""
    work = thinks([2 * MS, 1_200 * US], [50 * MS], asleep=[0, MS, 0])
    assert starts(work)[:2] == [2 * MS, 2 * MS + SLICE_NS + 200 * US]


def test_who_comes_new_is_placed_at_v_and_waits_for_the_slice() -> None:
    work = thinks([50 * MS], [2 * MS], asleep=[0, MS])
    assert starts(work)[1] == SLICE_NS + MS


def test_pinned_threads_meet_only_those_of_their_cpu() -> None:
    rng = np.random.default_rng(3)
    ours, others, fewer = (rng.integers(1, 200 * US, 200).tolist() for _ in range(3))
    kvm = load_mechanism("kvm-exit")
    one, other = (
        simulate(thinks(ours, x, ours, x), kvm, COSTS, cpus=2, pinned=True) for x in (others, [9 * MS, *fewer[1:]])
    )
    for accessor in (0, 2):
        rows = slice(200 * accessor, 200 * accessor + 200)
        np.testing.assert_array_equal(one.start_ns[rows], other.start_ns[rows])
        np.testing.assert_array_equal(one.stall_ns[rows], other.stall_ns[rows])
    assert (one.start_ns != other.start_ns).any()


def test_a_cpu_works_while_anybody_waits_for_it() -> None:
    work = thinks([10 * MS], [], [10 * MS], [MS])
    assert max(starts(work, cpus=2, pinned=True)) == 20 * MS  # 0 and 2 on CPU 0
    assert max(starts(work, cpus=2)) <= 10 * MS + MS + SLICE_NS
    assert max(starts(work)) == 21 * MS


PARTS = CostTable(
    {
        name: Cost(
            Distribution.constant(5_000), "assumed", "test",
            on_idle_cpu=Distribution.constant(2_000), on_busy_cpu=Distribution.constant(9_000),
        )
        for name in ("reader_wakeup", "wake")
    }
)  # fmt: skip


def test_a_woken_thread_pays_for_an_idle_cpu_or_for_a_switch() -> None:
    """One accessor and one handler: on one CPU each of them wakes while the other still runs."""
    costs = COSTS.with_constants(handler_loop=0).merge(PARTS)
    uffd, work = load_mechanism("uffd-missing"), thinks([MS])
    base = 1_000 + 20_000 + 2_000
    stalls = [int(simulate(work, uffd, costs, cpus=n).stall_ns[0]) for n in (1, 2, None)]
    assert stalls == [base + 2 * 9_000, base + 2 * 2_000, base + 2 * 5_000]
    # pinned: accessor on CPU 0, handler on CPU 1
    assert simulate(work, uffd, costs, cpus=2, pinned=True).stall_ns.tolist() == [base + 2 * 2_000]


def small(tmp_path: Path, option: str) -> Mechanism:
    stages = ('delay = "fetch"\nasleep = true', f'wake = "wake"\n{option}')
    text = HEAD + "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)
    return load_mechanism(write_mechanism(tmp_path, text))


def test_who_did_it_itself_pays_neither(tmp_path: Path) -> None:
    costs = COSTS.merge(PARTS)
    alone, beside = thinks([500 * US]), thinks([50 * MS], [500 * US])
    for option, expected in (("awake = true", [5_000, 5_000]), ("", [2_000, 9_000])):
        mechanism = small(tmp_path, option)
        # beside one that had a slice before: it has the CPU at its wake
        got = [int(simulate(w, mechanism, costs, cpus=1).stall_ns[-1]) - 20_000 for w in (alone, beside)]
        assert got == expected


@pytest.mark.parametrize(("fetch", "worked"), [(4_999, 4_999), (5_000, 0), (5_001, 0)])
def test_a_short_fetch_is_waited_for_on_the_cpu(fetch: int, worked: int) -> None:
    costs = COSTS.with_constants(fetch=fetch)
    own = 1_500 + 2_000 + 4_500
    result = simulate(thinks([MS]), load_mechanism("kvm-exit"), costs, cpus=1)
    assert result.stall_ns.tolist() == [own + fetch]
    assert busy(result) == MS + own + worked
    spin = load_mechanism("kvm-exit").with_params({"spin": 100_000})
    assert busy(simulate(thinks([MS]), spin, costs, cpus=1)) == MS + own + fetch


def test_think_time_asleep_needs_no_cpu_and_waiting_is_not_work() -> None:
    work = thinks([10 * MS], [10 * MS], asleep=[10 * MS, 10 * MS])
    result = simulate(work, IDEAL, COSTS, cpus=1)
    assert (result.start_ns.tolist(), busy(result)) == ([10 * MS, 10 * MS], 0)
    half = thinks([10 * MS], preempted=[6 * MS])
    result = simulate(half, IDEAL, COSTS, cpus=1)
    assert (result.start_ns.tolist(), busy(result)) == ([4 * MS], 4 * MS)
    assert simulate(half, IDEAL, COSTS).start_ns.tolist() == [10 * MS]  # without CPUs it is think time


def test_two_who_are_done_in_one_instant_both_begin_their_faults_then() -> None:
    """The first one's event counts the second one's work, too."""
    result = simulate(thinks([MS], [MS]), load_mechanism("kvm-exit"), COSTS, cpus=2)
    assert result.start_ns.tolist() == [MS, MS]
    assert result.stall_ns.tolist() == [28_000, 28_000]


def test_a_recorded_stall_and_an_access_that_a_window_blocks_hold_no_cpu() -> None:
    own = make_workload([{"think_ns": [MS], "cause": "mmio", "recorded_stall_ns": [7 * MS]}])
    assert busy(simulate(own, load_mechanism("uffd-missing"), COSTS, cpus=1)) == MS
    writes = thinks([2 * MS], [4 * MS])
    window = Window(MS, 10 * MS, "uffd-wp")
    free, one = (simulate(writes, IDEAL, COSTS, cpus=n, windows=[window]) for n in (None, 1))
    assert (free.stall_ns > 0).all()
    assert one.start_ns.tolist() == [2 * MS, 6 * MS]
    assert one.end_ns.tolist() == free.end_ns.tolist()
    assert busy(one) == 6 * MS


def test_the_walk_over_sleepers_is_the_handlers_work() -> None:
    costs = COSTS.with_constants(wake_per_waiter=100 * US)
    work = thinks([MS], [MS])
    free, two = (simulate(work, load_mechanism("uffd-missing"), costs, cpus=n) for n in (None, 8))
    np.testing.assert_array_equal(free.stall_ns, two.stall_ns)
    assert busy(two) == 2 * MS + 2 * (1_000 + 2_000 + 3_000 + 500) + 100 * US


LEAST = {
    "uffd-missing": (26_000, 1_000 + 2_000 + 3_000 + 500),
    "uffd-sharded": (26_000, 1_000 + 2_000 + 3_000 + 500),
    "kvm-exit": (28_000, 1_500 + 2_000 + 4_500),
    "host-lazy": (3_000, 3_000),
    "async-pf": (2_500, 2_500 + 2_000 + 2_900),
}
"""Mechanism -> (stall of a fault alone, work on CPUs for each), with COSTS."""


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(LEAST)),
    streams=st.lists(st.lists(st.integers(0, 6 * MS), min_size=1, max_size=12), min_size=1, max_size=6),
    cpus=st.integers(1, 4),
    pinned=st.booleans(),
    loop=st.sampled_from(["closed", "closed", "open"]),
    kind=st.sampled_from(["", "pause", "memslot-destroy", "uffd-wp"]),
    retouch=st.sampled_from(["recorded", "working-set"]),
    seed=st.integers(0, 9),
)
def test_any_run_ends_having_done_its_work(  # noqa: PLR0917
    name: str, streams: list[list[int]], cpus: int, pinned: bool, loop: str, kind: str, retouch: str, seed: int
) -> None:
    work = thinks(*streams)
    windows = [Window(2 * MS, 3 * MS, kind), Window(9 * MS, MS, kind)] if kind else []

    def run(cpus: int, pinned: bool) -> Result:
        return simulate(
            work, load_mechanism(name), COSTS, cpus=cpus, pinned=pinned, loop=loop, windows=windows, retouch=retouch,
            seed=seed,
        )  # fmt: skip

    result, again = run(cpus, pinned), run(cpus, pinned)
    least, each = LEAST[name]
    assert (result.stall_ns >= least).all()
    thought = int(work.think_ns.sum()) if loop == "closed" else 0
    assert busy(result) == thought + each * work.faults + int(result.refaults.sum()) * 2_700
    assert busy(result) <= cpus * result.run_time_ns
    np.testing.assert_array_equal(result.stall_ns, again.stall_ns)
    np.testing.assert_array_equal(result.start_ns, again.start_ns)
    if not pinned:
        assert run(cpus + 1, False).run_time_ns <= result.run_time_ns * 1.05 + SLICE_NS
