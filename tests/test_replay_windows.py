"""Windows: who is stopped, who waits, what is touched again, which writes get through. And host CPUs as a resource."""

from __future__ import annotations

import numpy as np
import pytest

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.cpus import SLICE_NS
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.windows import Window, parse_window
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

MS = 1_000_000
NOTHING = load_costs().without_contention().with_constants(
    kick=0, resume=0, protect_fixed=0, protect_per_page=0, unprotect_fixed=0, unprotect_per_page=0, memslot_delete=0,
    memslot_add=0, wake=0, preempt=0,
)  # fmt: skip
FREEZE = Window(50 * MS, 10 * MS)


def steady(kinds: str = "vcpu vcpu vcpu", access: str = "w", cause: str = "missing", gap: int = MS) -> Workload:
    """An access a millisecond by each accessor, without recorded stall."""
    streams = [
        {
            "think_ns": np.full(100, gap),
            "kind": kind,
            "access": access,
            "cause": cause,
            "recorded_stall_ns": np.zeros(100),
        }
        for kind in kinds.split()
    ]
    return make_workload(streams)


def run(
    name: str, work: Workload, costs: CostTable = NOTHING, retouch: str = "recorded", window: Window = FREEZE
) -> Result:
    return simulate(work, load_mechanism(name), costs, windows=[window], retouch=retouch)


@pytest.mark.parametrize("name", ["pause-only", "freeze", "memslot-destroy"])
def test_stopped_vcpus_lose_the_window_and_nothing_else(name: str) -> None:
    result = run(name, steady())
    assert result.windows == ((50 * MS, 60 * MS),)
    assert result.window_stall_ns.tolist() == [10 * MS] * 3
    assert result.stall_ns.sum() == 0
    inside = (result.start_ns > 50 * MS) & (result.start_ns < 60 * MS)
    assert not inside.any()
    assert result.run_time_ns == 110 * MS


def test_the_costs_of_entering_and_leaving_lengthen_the_window() -> None:
    costs = NOTHING.with_constants(kick=10_000, memslot_delete=300_000, memslot_add=90_000, resume=5_000)
    result = run("memslot-destroy", steady(), costs)
    assert result.windows == ((50 * MS, 60 * MS + 400_000),)
    assert result.window_stall_ns.tolist() == [10 * MS + 405_000] * 3


def test_think_time_goes_on_where_the_window_cut_it() -> None:
    work = steady("vcpu", gap=7 * MS)  # thinks from 49 ms to 56 ms
    result = run("pause-only", work)
    assert result.start_ns[6] == 49 * MS
    assert result.start_ns[7] == 66 * MS


def test_write_protection_stops_writers_where_they_write_and_nobody_else() -> None:
    writes, reads = run("uffd-wp-freeze", steady()), run("uffd-wp-freeze", steady(access="r"))
    assert reads.stall_ns.sum() == 0
    stalled = writes.stall_ns > 0
    assert writes.start_ns[stalled].tolist() == [50 * MS] * 3
    assert writes.stall_ns[stalled].tolist() == [10 * MS] * 3
    assert writes.window_stall_ns.sum() == 0
    assert sum(writes.hazards.values()) == 0


def test_pages_touched_before_make_protecting_longer() -> None:
    costs = NOTHING.with_constants(protect_per_page=1_000, unprotect_per_page=2_000)
    result = run("uffd-wp-freeze", steady(), costs, window=Window(50 * MS + 500_000, 10 * MS))
    assert result.windows[0] == (50 * MS + 500_000, 60 * MS + 500_000 + 150 * 3_000)  # 3 vCPUs x 50 pages


def test_hazards_are_the_writes_a_rule_does_not_stop() -> None:
    work = steady("vcpu vmm kernel")
    expected = {
        "pause-only": {"vmm": 10, "kernel": 10},
        "freeze": {"vmm": 10, "kernel": 0},
        "memslot-destroy": {"vmm": 10, "kernel": 0},
        "uffd-wp-freeze": {"vmm": 0, "kernel": 0},
    }
    for name, hazards in expected.items():
        assert run(name, work).hazards == hazards, name
        assert not any(run(name, steady("vcpu vmm kernel", access="r")).hazards.values())


def test_emptied_stage_2_is_bounded_not_invented() -> None:
    costs = NOTHING.with_constants(stage2_fault=2_000)
    lower, upper = (run("memslot-destroy", steady(), costs, retouch=r) for r in ("recorded", "working-set"))
    assert lower.refaults.tolist() == [0, 0, 0]
    assert upper.refaults.tolist() == [49, 49, 49] or upper.refaults.tolist() == [50, 50, 50]
    assert upper.refault_stall_ns.tolist() == [n * 2_000 for n in upper.refaults]
    assert upper.run_time_ns == lower.run_time_ns + upper.refaults[0] * 2_000
    assert upper.total_stall_ns - lower.total_stall_ns == upper.refault_stall_ns.sum()
    paused = run("pause-only", steady(), costs, retouch="working-set")
    assert paused.refaults.sum() == 0


def test_retouch_of_the_working_set_stops_every_writer_at_once() -> None:
    lower, upper = (run("uffd-wp-freeze", steady(gap=30 * MS), retouch=r) for r in ("recorded", "working-set"))
    assert lower.total_stall_ns == 0  # nobody's recorded access lies inside
    assert upper.total_stall_ns - upper.refault_stall_ns.sum() == 30 * MS


def test_one_fault_maps_again_as_much_as_the_rule_says() -> None:
    work = make_workload([{"think_ns": np.full(100, MS), "page": np.arange(100), "access": "w"}])
    late = Window(95 * MS + 500_000, MS)
    costs = NOTHING.with_constants(stage2_fault=2_000)
    for refill, refaults in (("4K", 95), ("32K", 12), ("2M", 1)):  # pages 0 to 94 were touched
        rule = load_mechanism("memslot-destroy").with_params({"refill": refill})
        result = simulate(work, rule, costs, windows=[late], retouch="working-set")
        assert result.refaults.tolist() == [refaults]
        of_kind = Window(late.start_ns, late.length_ns, "memslot-destroy", {"refill": refill})
        ideal = simulate(work, load_mechanism("ideal"), costs, windows=[of_kind], retouch="working-set")
        assert ideal.refaults.tolist() == [refaults]
    with pytest.raises(UsageError, match="cannot map 4096 bytes"):
        huge = make_workload([{"think_ns": np.full(10, MS), "page": np.arange(10)}], page_bytes=8192)
        of_4k = Window(late.start_ns, late.length_ns, "memslot-destroy", {"refill": "4K"})
        simulate(huge, load_mechanism("ideal"), costs, windows=[of_4k], retouch="working-set")


@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("kind", ["pause", "memslot-destroy"])
def test_nobody_is_held_longer_than_the_windows_last_however_few_cpus(kind: str, cpus: int) -> None:
    rng = np.random.default_rng(cpus)
    work = make_workload([{"think_ns": rng.integers(1, 50_000, 2000), "access": "w"} for _ in range(4)])
    # faults end inside these: their vCPU is held then
    windows = [Window(20 * MS, 10 * MS, kind), Window(60 * MS, 20 * MS, kind)]
    costs = NOTHING.with_constants(fetch=300_000)
    result = simulate(work, load_mechanism("uffd-missing"), costs, windows=windows, cpus=cpus)
    assert (result.window_stall_ns > 20 * MS).all()
    assert (result.window_stall_ns <= 30 * MS).all()
    for begin, end in result.windows:
        assert not ((result.start_ns > begin) & (result.start_ns < end)).any()


def test_a_window_after_the_last_fault_still_holds_whoever_runs() -> None:
    work = make_workload([{"think_ns": np.full(100, MS), "access": "w", "tail_ns": 100 * MS} for _ in range(3)])
    costs = NOTHING.with_constants(stage2_fault=2_000)
    after = Window(150 * MS, 10 * MS)
    plain = simulate(work, load_mechanism("memslot-destroy"), costs)
    result = simulate(work, load_mechanism("memslot-destroy"), costs, windows=[after], retouch="working-set")
    assert plain.run_time_ns == 200 * MS
    assert result.window_stall_ns.tolist() == [10 * MS] * 3
    assert result.refaults.tolist() == [100] * 3
    assert result.run_time_ns == 210 * MS + 100 * 2_000
    too_late = simulate(work, load_mechanism("pause-only"), costs, windows=[Window(201 * MS, 10 * MS)])
    assert too_late.total_stall_ns == 0
    assert too_late.run_time_ns == 200 * MS


def test_accesses_recorded_because_of_a_window_cost_nothing_without_one() -> None:
    work = steady(cause="window")
    without = simulate(work, load_mechanism("freeze"), NOTHING)
    assert without.total_stall_ns == 0
    within = run("uffd-wp-freeze", work)
    assert within.stall_ns.max() == 10 * MS
    assert (within.stall_ns > 0).sum() == 3


def test_a_window_of_a_kind_holds_for_mechanisms_without_a_rule() -> None:
    work = steady()
    window = parse_window("50ms+10ms:pause")
    assert window == Window(50 * MS, 10 * MS, "pause")
    result = run("ideal", work, window=window)
    assert result.window_stall_ns.tolist() == [10 * MS] * 3
    assert run("ideal", work).windows == ()  # no kind, no rule: not touched


@pytest.mark.parametrize("text", ["2s", "2s+5ms:sleep", "x+5ms", "2s+"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_window(text)


def test_overlapping_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="overlap"):
        simulate(steady(), load_mechanism("freeze"), NOTHING, windows=[FREEZE, Window(55 * MS, 10 * MS)])


def test_two_windows_one_after_the_other() -> None:
    result = simulate(steady(), load_mechanism("freeze"), NOTHING, windows=[FREEZE, Window(80 * MS, 5 * MS)])
    assert result.windows == ((50 * MS, 60 * MS), (80 * MS, 85 * MS))
    assert result.window_stall_ns.tolist() == [15 * MS] * 3


def busy(count: int, faults: int = 300, seed: int = 1) -> Workload:
    rng = np.random.default_rng(seed)
    return make_workload([{"think_ns": rng.integers(1, 100_000, faults)} for _ in range(count)])


@pytest.mark.parametrize("handlers", [1, 3])
@pytest.mark.parametrize(
    ("loop", "kind"),
    [("closed", ""), ("closed", "pause"), ("closed", "freeze"), ("closed", "uffd-wp"), ("open", "")],
)
def test_enough_cpus_are_as_good_as_any_number(loop: str, kind: str, handlers: int) -> None:
    """Without costs of a busy CPU.

    Left out is where two orders are both right: what a window in an open loop held begins in one instant; a fault under
    way when a window begins counts as mapped from its wake on without CPUs, from its resume on with them.
    """
    costs = load_costs().with_constants(protect_per_page=0, unprotect_per_page=0)
    work = busy(4, 60)
    windows = [Window(MS, MS, kind)] if kind else []
    for name in ("uffd-missing", "uffd-sharded", "kvm-exit", "async-pf", "host-lazy", "ideal"):
        mechanism = load_mechanism(name)
        if "handlers" in mechanism.params:
            mechanism = mechanism.with_params({"handlers": handlers})
        free, many = (simulate(work, mechanism, costs, cpus=n, loop=loop, windows=windows) for n in (None, 1_000))
        np.testing.assert_array_equal(free.stall_ns, many.stall_ns, name)
        np.testing.assert_array_equal(free.start_ns, many.start_ns, name)
        np.testing.assert_array_equal(free.window_stall_ns, many.window_stall_ns, name)


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_cpus_do_the_work_there_is_and_not_more(cpus: int) -> None:
    work = busy(4)
    ideal = simulate(work, load_mechanism("ideal"), load_costs(), cpus=cpus)
    assert ideal.resources["cpus"].busy_ns == work.think_ns.sum()
    assert ideal.run_time_ns >= work.think_ns.sum() / cpus - work.faults
    if cpus == 1:  # work-conserving: one CPU is never idle here
        assert ideal.run_time_ns == pytest.approx(work.think_ns.sum(), rel=1e-6)
    for name in ("uffd-missing", "kvm-exit"):
        result = simulate(work, load_mechanism(name), load_costs(), cpus=cpus)
        assert (result.stall_ns > 0).all()
        assert 0 < result.resources["cpus"].busy_share(result.run_time_ns) <= 1
        assert (
            result.run_time_ns >= simulate(work, load_mechanism(name), load_costs(), cpus=cpus + 1).run_time_ns * 0.98
        )


def test_a_shared_cpu_and_sleeping_fetches_are_the_machine_repairman() -> None:
    """Exponential work: who is next does not matter to the throughput, as long as the CPU works and knows no sizes."""
    rng = np.random.default_rng(4)
    count, think, fetch = 5, 100_000, 300_000
    work = make_workload([{"think_ns": rng.exponential(think, 20_000)} for _ in range(count)])
    costs = load_costs().with_constants(exit_userspace=0, resolve=0, reenter=0, fetch=fetch)
    result = simulate(work, load_mechanism("kvm-exit"), costs, cpus=1)
    weight = [1.0]
    for n in range(count):
        weight.append(weight[-1] * (count - n) * think / fetch)
    share = 1 - weight[0] / sum(weight)
    assert result.resources["cpus"].busy_share(result.run_time_ns) == pytest.approx(share, rel=0.02)


def test_a_window_takes_vcpus_off_their_cpus() -> None:
    work = busy(4, 3_000)
    ideal = load_mechanism("ideal")
    plain = simulate(work, ideal, NOTHING, cpus=2)
    paused = simulate(work, ideal, NOTHING, cpus=2, windows=[Window(20 * MS, 10 * MS, "pause")])
    # at the end the last ones have less than a slice more to do than the others
    assert paused.run_time_ns == pytest.approx(plain.run_time_ns + 10 * MS, abs=SLICE_NS)
    assert paused.resources["cpus"].busy_ns == work.think_ns.sum()
