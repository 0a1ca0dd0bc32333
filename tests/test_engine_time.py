"""Where the time of the stalls went: words that add up to the ns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_mechanisms import HEAD, write_mechanism
from test_engine_books import COSTS, PAID, busy_threads

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.time_words import TIME_WORDS, WORD_OF_COST
from faultreplay.replay.workload.workload import Workload, make_workload

ALONE = COSTS.without_contention().with_constants(
    fault_entry=1_000, reader_wakeup=200, fetch=20_000, resolve=2_000, wake=3_000, wake_per_waiter=100, handler_loop=500
)


def test_every_cost_has_a_word() -> None:
    assert set(WORD_OF_COST) == set(COST_NAMES)
    assert set(WORD_OF_COST.values()) <= set(TIME_WORDS)


def two(think: int) -> Workload:
    return make_workload([{"think_ns": [1_000_000]}, {"think_ns": [1_000_000 + think]}])


@pytest.mark.parametrize("cpus", [None, 8])
def test_two_faults_before_one_handler_by_hand(cpus: int | None) -> None:
    """The second waits for the first one's handler, which walks over it; then it is read without a wake-up."""
    result = simulate(two(5_000), load_mechanism("uffd-missing"), ALONE, cpus=cpus)
    free = 1_000 + 200 + 20_000 + 2_000 + 100 + 500
    assert result.stage_ns == {
        "entry": 2 * 1_000 + 200,
        "queue": free - 6_000,
        "fetch": 2 * 20_000,
        "resolve": 2 * 2_000,
        "contend": 100,
        "wake": 2 * 3_000,
        "other": 0,
    }
    assert sum(result.stage_ns.values()) == result.total_stall_ns


def test_the_wait_for_a_cpu_is_queue() -> None:
    """One CPU: the second thread runs 1 ms of the first one's think time later."""
    lazy = load_mechanism("host-lazy")
    free, one = (simulate(two(0), lazy, COSTS.with_constants(host_fault=10_000), cpus=n) for n in (None, 1))
    assert (free.stage_ns["queue"], free.stage_ns["resolve"]) == (0, 20_000)
    assert one.stage_ns["resolve"] == 20_000
    assert one.stage_ns["queue"] == one.total_stall_ns - 20_000 >= 0


@pytest.mark.parametrize("name", list_mechanisms())
def test_words_add_up_to_the_stalls(name: str) -> None:
    mechanism = load_mechanism(name)
    windows = [Window(200_000, 300_000, "uffd-wp")]
    for loop in ("closed", "open"):
        for cpus in (None, 3):
            for inside in ([], windows):
                work = busy_threads(3)
                work = replace(work, recorded_stall_ns=np.zeros(work.faults, np.int64))
                result = simulate(work, mechanism, PAID, loop=loop, cpus=cpus, windows=inside, retouch="working-set")
                assert sum(result.stage_ns.values()) == int(result.accessor_stall_ns.sum())
                assert min(result.stage_ns.values()) >= 0
                if not cpus and not inside:  # nothing is left over that no operation counted
                    assert result.stage_ns["other"] == 0
    assert simulate(work, mechanism, PAID, until_ns=10_000).stage_ns in ({}, result.stage_ns)


def test_a_kept_stall_and_a_parameter_have_no_word_of_their_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stages = ("recorded = true", 'delay = "7us"', 'wake = "1us"', 'delay = "fetch"')
    text = HEAD + "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)
    work = make_workload([{"think_ns": [10, 10], "recorded_stall_ns": np.array([5_000, 6_000])}])
    result = simulate(work, load_mechanism(write_mechanism(tmp_path, text)), COSTS)
    assert {k: v for k, v in result.stage_ns.items() if v} == {"other": 11_000 + 2 * 7_000, "wake": 2_000}
