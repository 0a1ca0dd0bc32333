"""The compiled loop by hand: a few events each, so that the same tests run uncompiled (`make loop`, `make mutate`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_mechanisms import HEAD, write_mechanism

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.cpus import SLICE_NS, Host, dequeue, earliest, enqueue
from faultreplay.replay.engine.engine import Result, histogram_edges_ns, simulate
from faultreplay.replay.engine.layout import (
    AWAY,
    ON,
    Q_COLUMNS,
    Q_FREE,
    Q_HEAD,
    T_COLUMNS,
    T_NEXT,
    T_STATE,
    T_WHO,
    V_COLUMNS,
    V_DEADLINE,
    V_RUNTIME,
    WAITS,
)
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.costs import Cost, CostTable, Distribution, load_costs
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

US, MS = 1_000, 1_000_000
COSTS = load_costs()
FREE = COSTS.without_contention().with_constants(**dict.fromkeys(COSTS, 0))


def together(accessors: int = 4, faults: int = 6, think: int = 10 * US, **more: Any) -> Workload:
    """Accessors whose faults begin at one instant."""
    return make_workload([{"think_ns": np.full(faults, think), **more} for _ in range(accessors)])


def made(folder: Path, *stages: str, head: str = "") -> Mechanism:
    return load_mechanism(write_mechanism(folder, HEAD + head + "".join(f"[[paths.missing]]\n{s}\n" for s in stages)))


RESOURCES = {
    "pool": 'kind = "servers"\nservers = 2',
    "lock": 'kind = "lock"',
    "queue": 'kind = "waitqueue"',
    "mm": 'kind = "section"',
}


def heads(stages: list[str]) -> str:
    """The resources that these stages name."""
    named = re.compile(r'^(?:acquire|readers|hold|sleep|enter) = "(\w+)"', re.MULTILINE)
    used = sorted(set(named.findall("\n".join(stages))))
    return "".join(f"[resources.{name}]\n{RESOURCES[name]}\n" for name in used)


def spread(name: str, low: int, high: int) -> CostTable:
    """`name` is drawn from `low` to `high`, evenly."""
    table = Distribution.from_quantiles({0.0: low, 1.0: high})
    return FREE.merge({name: Cost(table, "assumed", "a test")})


# ---- run queues: who is picked, who is taken out
def waiting(ran: list[int], runs: int | None = None, *, last_first: bool = False) -> Host:
    """A run queue of two CPUs in which slots 0, 1, ... wait, with these runtimes; `runs`: that of one on a CPU.

    They came in this order, or with `last_first` the other way round.
    """
    slots = len(ran) + 1
    th = np.zeros((slots, T_COLUMNS), np.int64)
    th[:, T_WHO] = np.arange(slots)
    tv = np.zeros((slots, V_COLUMNS), np.int64)
    tv[:, V_RUNTIME] = [*ran, runs or 0]
    tv[:, V_DEADLINE] = tv[:, V_RUNTIME] + SLICE_NS
    queues = np.zeros((1, Q_COLUMNS), np.int64)
    queues[0, Q_HEAD] = -1
    queues[0, Q_FREE] = 0
    on = np.full((1, 2), -1, np.int64)
    if runs is not None:
        on[0, 0] = slots - 1
    host = Host(np.zeros(16, np.int64), 8, 3, th, tv, queues, on, SLICE_NS, 0)
    for slot in sorted(range(len(ran)), reverse=last_first):
        enqueue(host, slot)
    return host


def who_waits(host: Host) -> list[int]:
    """The newest first."""
    found, at = [], int(host.queues[0, Q_HEAD])
    while at >= 0:
        found.append(at)
        at = int(host.th[at, T_NEXT])
    return found


@pytest.mark.parametrize(
    ("ran", "runs", "picked"),
    [
        ([], 0, -1),
        ([7], 0, 0),
        ([30, 10, 20], None, 1),  # the mean is 20: 1 and 2 are eligible, and 1 is due earlier
        ([10, 10], None, 0),  # of equals the one that has waited longest
        ([90, 80, 70, 95], 0, 2),  # the mean is 67, so nobody is eligible: who ran least
        ([70, 80, 90, 95], 0, 0),
        ([80, 70, 70, 90], 0, 2),  # of equals that are not eligible the one that came last
    ],
)
def test_who_is_picked_next(ran: list[int], runs: int | None, picked: int) -> None:
    assert earliest(waiting(ran, runs), np.int64(0)) == picked


def test_who_came_last_has_no_advantage() -> None:
    assert earliest(waiting([70, 80, 90, 95], 0, last_first=True), np.int64(0)) == 0  # nobody is eligible
    assert earliest(waiting([10, 12, 30], last_first=True), np.int64(0)) == 0
    assert earliest(waiting([12, 10, 30], last_first=True), np.int64(0)) == 1


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_who_is_taken_out_of_a_run_queue_is_away_and_the_rest_stay_in_order(taken: int) -> None:
    host = waiting([1, 2, 3])
    assert who_waits(host) == [2, 1, 0]
    assert host.th[:3, T_STATE].tolist() == [WAITS] * 3
    dequeue(host, taken)
    assert who_waits(host) == [slot for slot in (2, 1, 0) if slot != taken]
    assert host.th[:3, T_STATE].tolist() == [AWAY if slot == taken else WAITS for slot in range(3)]
    assert ON not in host.th[:, T_STATE]


# ---- windows
def windowed(work: Workload, cpus: int | None, *windows: Window, name: str = "memslot-destroy") -> Result:
    costs = FREE.with_constants(stage2_fault=2_000, host_fault=1_000)
    return simulate(work, load_mechanism(name), costs, windows=windows, retouch="working-set", cpus=cpus)


@pytest.mark.parametrize("cpus", [None, 3])
def test_each_page_touched_before_a_window_is_touched_once_again(cpus: int | None) -> None:
    """A vCPU touches ten pages of its own twice, then ten others once: 15 of them before a window in the 26th ms."""
    pages = [[*range(a * 100, a * 100 + 10)] * 2 + [a * 100 + 50 + k for k in range(10)] for a in range(3)]
    work = make_workload([{"think_ns": np.full(30, MS), "page": own} for own in pages])
    result = windowed(work, cpus, Window(25 * MS + 500 * US, MS))
    assert result.refaults.tolist() == [15] * 3
    assert result.refault_stall_ns.tolist() == [15 * 2_000] * 3
    twice = windowed(work, cpus, Window(5 * MS + 500 * US, MS), Window(12 * MS + 500 * US, MS))
    assert twice.refaults.tolist() == [5 + 10] * 3


@pytest.mark.parametrize("cpus", [None, 2])
def test_protecting_takes_longer_by_each_page_touched_before(cpus: int | None) -> None:
    """Two accessors have touched five pages each."""
    costs, window = FREE.with_constants(protect_per_page=100), Window(5 * MS + 500 * US, MS)
    result = simulate(together(2, 10, MS), load_mechanism("uffd-wp-freeze"), costs, windows=[window], cpus=cpus)
    assert result.windows == ((5 * MS + 500 * US, 6 * MS + 500 * US + 10 * 100),)


CLASSED = "".join(
    f'[[paths.{cause}]]\ndelay = "{took}us"\n[[paths.{cause}]]\nwake = "0ns"\n'
    for cause, took in (("missing", 1), ("window", 9), ("stage2", 2), ("mmio", 3), ("write-protect", 4))
)


@pytest.mark.parametrize("cpus", [None, 1, 3])
def test_only_an_access_recorded_because_of_a_window_takes_no_path(cpus: int | None, tmp_path: Path) -> None:
    mech = load_mechanism(write_mechanism(tmp_path, HEAD + CLASSED))
    for cause, took in (("missing", 1), ("window", 0), ("stage2", 2), ("mmio", 3), ("write-protect", 4)):
        work = make_workload([{"think_ns": [MS, MS], "cause": cause}])
        result = simulate(work, mech, FREE, windows=[Window(3 * MS, MS, "freeze")], cpus=cpus)
        assert result.stall_ns.tolist() == [took * US] * 2, cause


@pytest.mark.parametrize("cpus", [None, 2])
@pytest.mark.parametrize("rows", [True, False])
def test_a_page_read_is_written_next_where_it_was_read_only(rows: bool, cpus: int | None, tmp_path: Path) -> None:
    """With the working set each read is taken to be followed by a write, on the path `rewrite`."""
    rewrite = '[[paths.rewrite]]\ndelay = "7us"\n[[paths.rewrite]]\nwake = "0ns"\n'
    mech = made(tmp_path, 'delay = "1us"', 'wake = "0ns"', head=rewrite)
    for access, again in (("r", 5), ("w", 0)):
        work = make_workload([{"think_ns": [MS] * 5, "access": access}])
        result = simulate(work, mech, FREE, retouch="working-set", cpus=cpus, rows=rows)
        assert result.refaults.tolist() == [again]
        assert result.refault_stall_ns.tolist() == [again * 7 * US]
        assert result.total_stall_ns == 5 * US + again * 7 * US


# ---- rows or a histogram
@pytest.mark.parametrize("cpus", [None, 2])
@pytest.mark.parametrize("name", ["uffd-missing", "kvm-exit", "async-pf", "ideal"])
def test_without_rows_the_histogram_holds_what_the_rows_held(name: str, cpus: int | None) -> None:
    work = together(page=np.arange(6))  # all fault on the same pages: three of four join
    rows, sums = (simulate(work, load_mechanism(name), COSTS, cpus=cpus, rows=kept) for kept in (True, False))
    bins = np.searchsorted(histogram_edges_ns(), rows.stall_ns, side="right") - 1
    expected = np.bincount(bins, minlength=sums.histogram.shape[1])
    np.testing.assert_array_equal(sums.histogram.sum(axis=0)[: expected.size], expected[: sums.histogram.shape[1]])
    assert sums.accessor_stall_ns.tolist() == rows.accessor_stall_ns.tolist()
    assert sums.run_time_ns == rows.run_time_ns


# ---- an open loop
@pytest.mark.parametrize("cpus", [None, 8])
def test_more_faults_at_once_than_slots_make_more_slots(cpus: int | None) -> None:
    """Of 40 that begin within 40 ns one handler serves one at a time; those that join a page end with it."""
    work = make_workload([{"think_ns": np.ones(40, np.int64)} for _ in range(8)])
    costs = FREE.with_constants(fetch=MS)
    result = simulate(work, load_mechanism("uffd-missing"), costs, loop="open", cpus=cpus)
    assert np.sort(result.end_ns)[[0, -1]].tolist() == [MS + 1, 320 * MS + 1]
    shared = make_workload([{"think_ns": np.ones(40, np.int64), "page": np.zeros(40, np.int64)} for _ in range(8)])
    joined = simulate(shared, load_mechanism("uffd-missing"), costs, loop="open", cpus=cpus)
    assert set(joined.end_ns.tolist()) == {MS + 1}


# ---- a stream
@pytest.mark.parametrize("cpus", [None, 1])
def test_what_a_stream_has_brought_is_not_fetched(cpus: int | None) -> None:
    """4096 bytes in 4096 ns: page k is there from 4096 (k + 1) on; who comes earlier to its last page waits for it."""
    mech = load_mechanism("precopy-push").with_params({"bandwidth": 1e9, "backlog": 1 << 30})
    late = make_workload([{"think_ns": [MS] * 4, "page": [0, 1, 2, 3]}])
    result = simulate(late, mech, FREE, cpus=cpus)
    assert result.stall_ns.tolist() == [0] * 4
    assert result.bytes_moved == 4 * 4096
    early = make_workload([{"think_ns": [2_000, MS], "page": [3, 0]}, {"think_ns": [2 * MS] * 2, "page": [1, 2]}])
    first = simulate(early, mech, FREE, cpus=cpus)
    assert first.stall_ns.tolist() == [4 * 4096 - 2_000, 0, 0, 0]


@pytest.mark.parametrize("cpus", [None, 1])
def test_a_request_waits_for_one_page_of_the_stream_where_nothing_is_queued(cpus: int | None) -> None:
    """Page 0 is on the link until 4096 ns; then the request for page 3, then 1 and 2; the stream leaves 3 out."""
    mech = load_mechanism("precopy-push").with_params({"bandwidth": 1e9, "backlog": 0})
    work = make_workload(
        [{"think_ns": [2_000, MS], "page": [3, 0]}, {"think_ns": [3 * 4096 - 1_000, MS], "page": [1, 2]}]
    )
    result = simulate(work, mech, FREE, cpus=2 if cpus else None)
    assert result.stall_ns.tolist() == [2 * 4096 - 2_000, 0, 1_000, 0]
    assert result.bytes_moved == 4 * 4096


# ---- recorded stalls, and wakes behind a release, with CPUs
@pytest.mark.parametrize(("recorded", "works"), [(3_000, True), (30_000, False)])
def test_a_short_recorded_stall_is_spent_on_the_cpu_and_a_long_one_is_not(recorded: int, works: bool) -> None:
    work = make_workload([{"think_ns": [50 * US] * 4, "recorded_stall_ns": [recorded] * 4}] * 2)
    for cpus in (1, 2):
        result = simulate(work, load_mechanism("as-recorded"), FREE, cpus=cpus)
        assert result.resources["cpus"].busy_ns == 2 * 4 * (50 * US + works * recorded)
        assert result.stall_ns.min() == recorded
    assert result.stall_ns.max() == recorded  # a CPU each


@pytest.mark.parametrize(
    "stages",
    [
        ['acquire = "pool"\nidle = "reader_wakeup"', 'delay = "resolve"', 'release = "pool"', 'wake = "wake"'],
        ['acquire = "pool"', 'delay = "resolve"', 'release = "pool"', 'wake = "wake"'],
        ['delay = "fault_entry"', 'recorded = true', 'delay = "resolve"', 'wake = "wake"'],
        ['delay = "fault_entry"', 'recorded = true', 'wake = "0ns"'],
        ['enter = "mm"\neach = "mm_share"', 'recorded = true', 'leave = "mm"', 'wake = "0ns"'],
        ['hold = "lock"\ntakes = "lock"', 'recorded = true', 'wake = "wake"'],
    ],
)  # fmt: skip
def test_as_many_cpus_as_are_wanted_change_nothing(stages: list[str], tmp_path: Path) -> None:
    mech = made(tmp_path, *stages, head=heads(stages))
    costs = FREE.with_constants(
        fault_entry=1_009, reader_wakeup=2_003, resolve=7_001, wake=3_001, lock=301, mm_share=503
    )
    rng = np.random.default_rng(1)
    work = make_workload(
        [{"think_ns": rng.integers(1, 20_000, 12), "recorded_stall_ns": rng.integers(1, 9_000, 12)} for _ in range(3)]
    )
    plain, many = (simulate(work, mech, costs, cpus=cpus) for cpus in (None, 8))
    assert many.start_ns.tolist() == plain.start_ns.tolist()
    assert many.stall_ns.tolist() == plain.stall_ns.tolist()


# ---- costs that are drawn


@pytest.mark.parametrize(
    ("cost", "stages"),
    [
        ("lock", ['hold = "lock"\ntakes = "lock"\ncontended = "lock"', 'wake = "0ns"']),
        ("wake_per_waiter", ['sleep = "queue"', 'delay = "1us"',
                             'wake = "0ns"\nfrom = "queue"\nwalk = "wake_per_waiter"']),
        ("wake_per_waiter", ['sleep = "queue"', 'delay = "1us"',
                             'wake = "0ns"\nfrom = "queue"\nwalk = "wake_per_waiter"\ncold = "wake_cold"\n'
                             'readers = "pool"']),
        ("herd_per_reader", ['sleep = "queue"', 'delay = "herd_per_reader"\ntimes = "waiters:queue"', 'delay = "1us"',
                             'wake = "0ns"\nfrom = "queue"']),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cpus", [None, 4])
def test_what_is_drawn_lies_between_its_ends(cost: str, stages: list[str], cpus: int | None, tmp_path: Path) -> None:
    """Faults that begin together: the run is longer than with the least draw and shorter than with the most."""
    mech = made(tmp_path, *stages, head=heads(stages))
    work = together(faults=8)
    low, drawn, high = (
        simulate(work, mech, costs, cpus=cpus)
        for costs in (FREE.with_constants(**{cost: 200}), spread(cost, 200, 900), FREE.with_constants(**{cost: 900}))
    )
    assert low.run_time_ns < drawn.run_time_ns < high.run_time_ns
    assert low.total_stall_ns < drawn.total_stall_ns < high.total_stall_ns


# ---- ends that are told
def test_a_run_longer_than_times_can_be_added_up_is_refused(tmp_path: Path) -> None:
    mech = made(tmp_path, 'delay = "fetch"', 'wake = "0ns"')
    work = make_workload([{"think_ns": np.full(3_000, 900 * 10**12)} for _ in range(2)])
    for cpus in (None, 2):
        with pytest.raises(UsageError):
            simulate(work, mech, FREE.with_constants(fetch=900 * 10**12), cpus=cpus)
