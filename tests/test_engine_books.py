"""No fault is lost, no sum is impossible, no run is endless; what would be is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_mechanisms import HEAD, pool_path, write_mechanism

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine import checks
from faultreplay.replay.engine import layout as o
from faultreplay.replay.engine import opcodes as op
from faultreplay.replay.engine.cpus import SLICE_NS
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.compiler import Compiler, Demand
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

MS = 1_000_000
COSTS = load_costs()
PAID = COSTS.with_constants(preempt=3_000)


def busy_threads(seed: int, accessors: int = 5, faults: int = 40, scale: int = 30_000) -> Workload:
    """Several accessors of each kind that think little, some of whose pages are shared."""
    rng = np.random.default_rng(seed)
    return make_workload(
        [
            {
                "think_ns": rng.integers(0, scale, faults),
                "access": rng.integers(0, 3, faults),
                "page": rng.integers(0, accessors * faults // 2, faults),
                "kind": ("vcpu", "vcpu", "vmm", "kernel")[number % 4],
                "recorded_stall_ns": rng.integers(0, 30_000, faults),
            }
            for number in range(accessors)
        ]
    )


def holds(result: Result, work: Workload) -> None:
    assert result.accessor_faults.tolist() == np.diff(work.accessor_start).tolist()
    assert (result.start_ns >= 0).all()
    assert (result.stall_ns >= 0).all()
    span_ns = max(result.run_time_ns, result.restored.beside_ns if result.restored else 0)
    for use in result.resources.values():
        assert 0 <= use.busy_ns <= max(use.servers, 1) * use.instances * span_ns or not use.servers
        assert use.wait_ns >= 0


@pytest.mark.parametrize("loop", ["closed", "open"])
@pytest.mark.parametrize("name", list_mechanisms())
def test_every_fault_ends_with_any_cpus_and_pinning(name: str, loop: str) -> None:
    mechanism = load_mechanism(name)
    for cpus, pinned in ((None, False), (1, False), (2, True), (3, True), (4, False)):
        for seed, costs in ((1, COSTS), (2, PAID)):
            work = busy_threads(seed)
            result = simulate(work, mechanism, costs, seed=seed, loop=loop, cpus=cpus, pinned=pinned)
            holds(result, work)


@pytest.mark.parametrize("retouch", ["recorded", "working-set"])
@pytest.mark.parametrize("kind", ["pause", "freeze", "memslot-destroy", "uffd-wp"])
def test_every_fault_ends_beside_windows(kind: str, retouch: str) -> None:
    windows = [Window(100_000, 0, kind), Window(100_000, 2 * MS, kind), Window(3 * MS, MS, kind)]
    for name in ("uffd-wp", "async-pf", "uffd-missing", "kvm-exit"):
        for cpus in (None, 1, 3):
            work = busy_threads(cpus or 0)
            result = simulate(
                work, load_mechanism(name), PAID, cpus=cpus, pinned=True, windows=windows, retouch=retouch
            )
            holds(result, work)


@pytest.mark.parametrize("cpus", [None, 2])
@pytest.mark.parametrize("name", ["uffd-missing", "uffd-wp", "async-pf", "hugetlb-2m", "kvm-exit"])
def test_a_run_that_stops_early_accounts_until_then(name: str, cpus: int | None) -> None:
    work = busy_threads(4)
    whole = simulate(work, load_mechanism(name), COSTS, cpus=cpus)
    for until in range(0, whole.run_time_ns, whole.run_time_ns // 7):
        cut = simulate(work, load_mechanism(name), COSTS, cpus=cpus, until_ns=until)
        assert cut.run_time_ns in (until, whole.run_time_ns)  # whose last ends may be known before they come
        for key, use in cut.resources.items():
            assert 0 <= use.busy_ns <= whole.resources[key].busy_ns
            assert use.busy_ns <= use.servers * use.instances * cut.run_time_ns or not use.servers
            assert use.wait_ns >= 0
        done = cut.start_ns >= 0
        np.testing.assert_array_equal(cut.stall_ns[done], whole.stall_ns[done])


def test_who_joins_the_fault_of_another_mechanism_pays_its_own_wake() -> None:
    """A vCPU leaves KVM_RUN for a page; the VMM faults on it meanwhile and sleeps on its userfaultfd's queue."""
    costs = COSTS.without_contention().with_constants(
        exit_userspace=1_000, fetch=50_000, resolve=2_000, reenter=4_000, fault_entry=500, wake=3_000, reader_wakeup=0
    )
    for first, other in (("vcpu", "vmm"), ("vmm", "vcpu")):
        work = make_workload(
            [
                {"think_ns": [0], "page": [7], "kind": first},
                {"think_ns": [10_000], "page": [7], "kind": other},
            ]
        )
        result = simulate(work, load_mechanism("kvm-exit"), costs)
        own = {"vcpu": (1_000, 4_000), "vmm": (500, 3_000)}
        placed = own[first][0] + 50_000 + 2_000
        assert result.stall_ns.tolist() == [placed + own[first][1], placed - 10_000 + own[other][1]]


def test_a_thread_that_takes_a_cpu_pays_before_it_goes_on() -> None:
    """Its first access costs nothing: the CPU it took is given back, and the fault ends once."""
    for cpus in (1, 2):
        work = busy_threads(3, accessors=6, faults=200)
        for name in ("ideal", "async-pf", "uffd-wp"):
            holds(simulate(work, load_mechanism(name), PAID, cpus=cpus, pinned=cpus > 1), work)


AGAIN, RETRY = 'delay = "fault_entry"\nlabel = "a"', 'retry = "a"\nchance = 0.5\nmost = 2'


def mechanism(tmp_path: Path, *stages: str, head: str = "") -> Mechanism:
    pool = '[resources.pool]\nkind = "servers"\nservers = 1\n[resources.lock]\nkind = "servers"\nservers = 1\n'
    pool += '[resources.queue]\nkind = "waitqueue"\n'
    text = HEAD + pool + head + "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)
    return load_mechanism(write_mechanism(tmp_path, text))


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        (['coalesce = "join"', 'delay = "fault_entry"', 'coalesce = "join"', 'wake = "wake"'], "second coalesce"),
        (['acquire = "pool"', 'coalesce = "join"', 'release = "pool"', 'wake = "wake"'], "while 'pool' is held"),
        (
            [AGAIN, 'coalesce = "join"', RETRY, 'wake = "wake"'],
            "a retry back over 'coalesce'",
        ),
        (
            [AGAIN, 'acquire = "pool"', RETRY, 'release = "pool"', 'wake = "wake"'],
            "must hold the same servers",
        ),
        (['sleep = "queue"\nwhen = "write"', 'wake = "wake"\nfrom = "queue"'], "sleep cannot depend on 'when'"),
    ],
)
def test_a_path_that_would_wait_for_itself_is_refused(stages: list[str], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        mechanism(tmp_path, *stages)


def test_two_paths_that_wait_for_each_other_are_told_to_be_a_deadlock(tmp_path: Path) -> None:
    one = ('acquire = "pool"', 'delay = "resolve"', 'acquire = "lock"', 'release = "lock"', 'release = "pool"')
    two = ('acquire = "lock"', 'delay = "resolve"', 'acquire = "pool"', 'release = "pool"', 'release = "lock"')
    minor = "".join(f"[[paths.minor]]\n{stage}\n" for stage in (*two, 'wake = "wake"'))
    locked = mechanism(tmp_path, *one, 'wake = "wake"', head=minor)
    work = make_workload([{"think_ns": [1_000] * 9, "cause": cause} for cause in ("missing", "minor")])
    for cpus in (None, 2):
        with pytest.raises(UsageError, match=r"18 faults never end: they wait for (pool and lock|lock and pool)"):
            simulate(work, locked, COSTS, cpus=cpus)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda b: b.sums.__setitem__((0, o.S_FAULTS), 38), "2 of 80 faults did not end"),
        (lambda b: b.start_ns.__setitem__(3, -1), "79 rows were written"),
        (lambda b: b.stall_ns.__setitem__(3, -5), "a stall is negative"),
        (lambda b: b.stall_ns.__setitem__(3, b.stall_ns[3] + 1), "add up to"),
        (lambda b: b.sums.__setitem__((1, o.S_REFAULT_NS), -1), "sum of an accessor is negative"),
        (lambda b: b.resources.__setitem__((0, o.R_BUSY), -1), "is negative"),
        (lambda b: b.resources.__setitem__((0, o.R_BUSY), 1 << 50), "busy for longer"),
        (lambda b: b.resources.__setitem__((0, o.R_FREE), 0), "held after the last fault"),
        (lambda b: b.resources.__setitem__((0, o.R_SLEEPERS), 1), "has sleepers"),
    ],
)
def test_books_that_do_not_add_up_are_refused_with_a_way_to_report_it(change: Any, word: str) -> None:
    sums = np.zeros((2, o.A_COLUMNS), np.int64)
    sums[:, o.S_FAULTS] = sums[1, o.A_FIRST] = sums[0, o.A_STOP] = 40
    sums[1, o.A_STOP] = 80
    sums[:, o.S_STALL] = 40_000
    resources = np.zeros((1, o.R_COLUMNS), np.int64)
    resources[0, [o.R_FREE, o.R_SERVERS]] = 1
    mechanism = load_mechanism("uffd-missing")
    program = Compiler(mechanism, COSTS, Demand(accessors=2, page_bytes=4096, needed=[(0, 0)])).program()
    starts, stalls = np.arange(80), np.full(80, 1_000)
    books = checks.Books("m", program, sums, resources, starts, stalls, np.zeros((9, 1), np.int64), 10**6, 0, 0, False)
    checks.check_run(books)
    sound = replace(books, sums=sums.copy(), resources=resources.copy(), start_ns=starts.copy(), stall_ns=stalls.copy())
    change(books)
    with pytest.raises(FaultreplayError, match=f"m: error in the replay engine: .*{word}.*Please report it"):
        checks.check_run(books)
    with pytest.raises(FaultreplayError, match="CPUs worked for longer"):
        checks.check_run(replace(sound, cpus=1, cpu_work_ns=10**6 + 1))


@pytest.mark.parametrize("field", ["think_ns", "tail_ns", "recorded_stall_ns", "recorded_start_ns"])
@pytest.mark.parametrize("value", [LONGEST_NS + 1, 1 << 62, -2])
def test_times_that_cannot_be_added_up_are_refused(field: str, value: int) -> None:
    work = make_workload([{"think_ns": [1, 2]}, {"think_ns": [1]}])
    values = np.full(2 if field == "tail_ns" else 3, value)
    values[0] = 0
    with pytest.raises(UsageError, match=rf" of {value} ns cannot be replayed: it must be from 0 to 1e15 ns"):
        simulate(replace(work, **{field: values}), load_mechanism("ideal"), COSTS)


@pytest.mark.parametrize(("page_bytes", "granule"), [(65536, "4K"), (4096, 6144)])
def test_a_granule_is_of_whole_pages(page_bytes: int, granule: str) -> None:
    work, mechanism = make_workload([{"think_ns": [1]}], page_bytes=page_bytes), load_mechanism("uffd-missing")
    with pytest.raises(UsageError, match=f"is not a multiple of the trace's page of {page_bytes} bytes"):
        simulate(work, mechanism.with_params({"granule": granule}), COSTS)


def test_long_costs_and_windows_overflow_in_no_sum(tmp_path: Path) -> None:
    slow = mechanism(tmp_path, *['delay = "277h"'] * 50, 'wake = "277h"')
    with pytest.raises(FaultreplayError, match=r"simulated time passes .* s, more than can be counted"):
        simulate(make_workload([{"think_ns": [1] * 200}] * 9), slow, COSTS)
    pool = '[resources.pool]\nkind = "servers"\nservers = 1\n'
    text = HEAD + pool + pool_path('delay = "277h"') + '[[paths.missing]]\nwake = "1ns"\n'
    one = load_mechanism(write_mechanism(tmp_path, text))
    work = make_workload([{"think_ns": [1, 2]}, {"think_ns": [1]}])
    assert int(simulate(work, one, COSTS).stall_ns.min()) > 277 * 3_600 * 10**9
    many = make_workload([{"think_ns": np.full(100, LONGEST_NS)} for _ in range(40)])
    for loop in ("closed", "open"):
        with pytest.raises(FaultreplayError, match="simulated time passes"):
            simulate(many, load_mechanism("ideal"), COSTS, loop=loop)
    with pytest.raises(UsageError, match="a window that begins, lasts or costs more than"):
        simulate(work, load_mechanism("ideal"), COSTS, windows=[Window(0, LONGEST_NS + 1, "freeze")])
    with pytest.raises(UsageError, match="at most 65536 CPUs"):
        simulate(work, load_mechanism("ideal"), COSTS, cpus=10**9)


@pytest.mark.parametrize("cpus", [None, 1, 2])
def test_an_open_loop_runs_until_its_last_fault_ends(cpus: int | None, tmp_path: Path) -> None:
    """Found by drawn mechanisms: beside CPUs it ended with the last event, a lock was busy for less than no time."""
    path = mechanism(tmp_path, "recorded = true", 'wake = "0ns"')
    work = make_workload([{"think_ns": [1_000, 50_000], "recorded_stall_ns": [700, 9_000]}])
    result = simulate(work, path, COSTS, loop="open", cpus=cpus)
    assert result.run_time_ns == int((result.start_ns + result.stall_ns).max())


LINK = '[resources.wire]\nkind = "link"\nbandwidth = 0\n'
MOVE = 'transfer = "wire"\nbytes = 100'


@pytest.mark.parametrize(
    ("stages", "moved"),
    [
        ([MOVE, 'wake = "wake"'], 600),
        ([f'{MOVE}\nwhen = "write"', 'wake = "wake"'], 200),
        ([f'{MOVE}\nlabel = "a"', 'retry = "a"\nchance = 1.0\nmost = 2', 'wake = "wake"'], 1_800),
    ],
)
def test_bytes_over_a_link_without_a_limit_are_those_that_went(stages: list[str], moved: int, tmp_path: Path) -> None:
    work = make_workload([{"think_ns": [1_000] * 6, "access": [0, 1, 0, 0, 1, 2]}])
    result = simulate(work, mechanism(tmp_path, *stages, head=LINK), COSTS)
    assert (result.resources["wire"].bytes_moved, result.resources["wire"].acquired) == (moved, moved // 100)


def test_a_refault_may_move_bytes_over_a_link_without_a_limit(tmp_path: Path) -> None:
    """Found by drawn mechanisms: an internal error, as no class of fault is called refault."""
    head = f'{LINK}[[paths.refault]]\n{MOVE}\n[[paths.refault]]\nwake = "wake"\n'
    path = mechanism(tmp_path, 'wake = "wake"', head=head)
    work = make_workload([{"think_ns": [100_000] * 6}])
    window = Window(250_000, 1_000, "memslot-destroy")
    result = simulate(work, path, COSTS, windows=[window], retouch="working-set")
    assert result.resources["wire"].bytes_moved == 100 * int(result.refaults.sum()) > 0


@pytest.mark.parametrize("cpus", [None, 2])
def test_a_run_in_which_no_fault_ends_is_ended_and_refused(
    cpus: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that no mechanism file can make: in the place of the wake it jumps back, 4096 ns later each time."""
    compiled = Compiler.program

    def endless(self: Compiler) -> Any:
        program = compiled(self)
        first = program.path_pc[0, 0]
        wake = first + int(np.flatnonzero(np.isin(program.ops[first:, 0], [op.WAKE, op.WAKE_QUEUE]))[0])
        program.ops[wake] = 0
        program.ops[wake, [0, op.UNLESS_MASK, op.UNLESS_TARGET]] = op.UNLESS, 4, first
        return program

    monkeypatch.setattr(Compiler, "program", endless)
    wire = '[resources.wire]\nkind = "link"\nbandwidth = 1000000000\n'
    made = mechanism(tmp_path, 'transfer = "wire"', 'wake = "1us"', head=wire)
    with pytest.raises(
        FaultreplayError, match=r"error in the replay engine: \d+ events, and at \d+ ns no fault has ended"
    ):
        simulate(make_workload([{"think_ns": [1_000], "access": "r"}]), made, COSTS, cpus=cpus)


def test_a_cost_that_takes_millions_of_slices_of_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time passes in slices of 2.8 ms: a cost of 1e15 ns would be minutes of computing for each fault."""
    two, lazy = make_workload([{"think_ns": [0, 0]}, {"think_ns": [0, 0]}]), load_mechanism("host-lazy")
    long = COSTS.with_constants(host_fault=LONGEST_NS // 100)
    assert simulate(two, lazy, COSTS.with_constants(host_fault=LONGEST_NS // 10**6), cpus=1).accessor_faults.sum() == 4
    monkeypatch.setattr(checks, "MOST_SLICES", 100_000)
    with pytest.raises(FaultreplayError, match=r"\d{6} events on 1 host CPUs, and only 0 of 4 faults have ended"):
        simulate(two, lazy, long, cpus=1)
    assert simulate(two, lazy, long).accessor_faults.sum() == 4


def test_how_long_cpus_may_work_is_what_the_page_says() -> None:
    """docs/mechanism-language.md: 52 hours, and 11 s for each fault; again at each window."""
    hours = checks.MOST_SLICES * SLICE_NS / 3_600 / 10**9
    assert round(hours) == 52
    assert round(checks.EVENTS_EACH * SLICE_NS / 10**9) == 11
    work = make_workload([{"think_ns": [0] * 5}])
    none, two = np.zeros((0, o.W_COLUMNS), np.int64), np.zeros((2, o.W_COLUMNS), np.int64)
    assert checks.most_events(work, none) == checks.MOST_SLICES + 5 * checks.EVENTS_EACH
    assert checks.most_events(work, two) == checks.MOST_SLICES + 15 * checks.EVENTS_EACH
