"""Fitting costs: each from faults whose costs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_events import (
    ASLEEP,
    FAULTER,
    GPA,
    HANDLER,
    META,
    PAGE,
    VM,
    at,
    frame,
    message,
    placed,
    run_enter,
    run_exit,
    sleep,
    userfault,
    write,
)

from faultreplay.analysis.calibrate.calibrate import (
    Observed,
    calibrate,
    distribution_of,
    fit,
    fit_costs,
    observe,
    wake_walk_ns,
)
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import MapEntry, MechanismUsed, Meta, WindowSpan
from faultreplay.faulttrace.schema import FAULTS, Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.store import open_trace

EMPTY = np.empty(0, np.int64)


def means(costs: Any) -> dict[str, float]:
    return {name: cost.distribution.mean for name, cost in costs.items()}


def idle_faults(count: int = 40, *, gap_ns: int = 100_000) -> list[dict[str, Any]]:
    return [event for n in range(count) for event in userfault(gap_ns * (n + 1), PAGE + 4096 * n)]


def test_an_idle_handlers_faults_give_every_stage() -> None:
    costs = fit_costs(stitch_events(frame(*idle_faults())).faults, Meta(), source="t").some()
    found = means(costs)
    # 100 in all: asleep at 10, read at 30, ioctl called at 60, the page there at 70, on at 100.
    assert found == {"fault_entry": 10, "reader_wakeup": 20, "fetch": 30, "resolve": 10, "wake": 30}
    assert sum(found.values()) == 100
    assert {cost.provenance for cost in costs.values()} == {"measured-trace"}
    assert {cost.source for cost in costs.values()} == {"measured in this trace: t"}
    assert {cost.n for cost in costs.values()} == {40}


def test_without_the_schedulers_events_fault_entry_and_reader_wakeup_are_halves_of_their_sum() -> None:
    faults = stitch_events(frame(*idle_faults())).faults.with_columns(offcpu_ns=pl.lit(0, pl.Int64))
    found = means(fit_costs(faults, Meta(), source="t").some())
    assert (found["fault_entry"], found["reader_wakeup"]) == (15, 15)


def busy_pair(start_ns: int, page: int) -> list[dict[str, Any]]:
    """Two faults at once for one handler: the second is read 7 after the first is placed, long after it was taken."""
    other = page + (1 << 30)
    return [
        *[at(start_ns + n, Kind.PAGE_FAULT_USER, FAULTER + n, addr=p) for n, p in enumerate((page, other))],
        *sleep(start_ns + 10, start_ns + 5090, FAULTER, woken_ns=start_ns + 5070),
        *sleep(start_ns + 11, start_ns + 9090, FAULTER + 1, woken_ns=start_ns + 9070),
        message(start_ns + 30, page, tid=FAULTER),
        placed(start_ns + 5070, 10, page),
        message(start_ns + 5077, other, tid=FAULTER + 1),
        placed(start_ns + 9070, 10, other),
        at(start_ns + 5100, Kind.MMAP_LOCK_RELEASED, FAULTER),
        at(start_ns + 9100, Kind.MMAP_LOCK_RELEASED, FAULTER + 1),
    ]


def test_idle_handlers_tell_of_fault_entry_and_reader_wakeup_and_busy_ones_of_the_loop() -> None:
    events = [event for n in range(40) for event in busy_pair(100_000 * (n + 1), PAGE + 4096 * n)]
    fitted = fit_costs(stitch_events(frame(*events)).faults, Meta(), source="t")
    assert (fitted.costs["fault_entry"].n, means(fitted.costs)["fault_entry"]) == (
        40,
        10,
    )  # the sum with message counts
    every = observe(stitch_events(frame(*events)).faults, Meta(), waits=False).samples["fault_entry"]
    assert every.tolist() == [10] * 80
    assert (fitted.costs["reader_wakeup"].n, means(fitted.costs)["reader_wakeup"]) == (40, 20)  # of 80 faults
    assert (fitted.costs["handler_loop"].n, means(fitted.costs)["handler_loop"]) == (40, 7)


def served_in_turn(count: int, held_up: int) -> pl.DataFrame:
    """Faults that one handler serves back to back; the first `held_up` came late and were read late."""
    late = np.arange(count) < held_up
    placed_ns = np.cumsum(np.where(late, 100_000, 1000))
    queue_ns = np.where(late, 50_000, 1500)
    row = {
        "vm": 1, "accessor": "vcpu", "tid": 2, "vcpu": 0, "granule": 4096, "access": "r", "cause": "missing",
        "resolution": "copy", "handler_tid": 9, "service_ns": 900, "resolve_ns": 100, "wake_ns": 10,
        "join": "walk/spte",
    }  # fmt: skip
    columns = {name: [value] * count for name, value in row.items()}
    columns |= {"start_ns": list(placed_ns - 900 - queue_ns), "queue_ns": list(queue_ns)}
    columns |= {"end_ns": list(placed_ns + 10)}
    columns |= {"fault_id": list(range(count)), "page": list(range(0, 4096 * count, 4096))}
    return pl.DataFrame({name: columns.get(name, [None] * count) for name in FAULTS.names})


def test_a_handler_that_is_hardly_ever_idle_tells_nothing_of_fault_entry_and_reader_wakeup() -> None:
    often = fit_costs(served_in_turn(1000, 100), Meta(), source="t").some()
    assert means(often)["fault_entry"] + means(often)["reader_wakeup"] == 50_000
    rarely = fit_costs(served_in_turn(3000, 40), Meta(), source="t").some()
    assert {"fault_entry", "reader_wakeup"} & set(rarely) == set()
    assert rarely["fetch"].n == 3000


def test_placing_a_huge_page_is_told_by_the_native_page() -> None:
    huge = 2 << 20
    base = 0x7F00_0020_0000
    meta = Meta(memory_map=[MapEntry(0, VM, base, base + 64 * huge, huge, "missing")])
    events = []
    for n in range(40):
        fault = userfault(100_000 * (n + 1), base + n * huge)
        fault[5] = placed(100_000 * (n + 1) + 5200, 5142, base + n * huge, pages=512)
        for event in fault[2:4] + fault[6:]:
            event["ts_ns"] += 5120  # the wake comes that much later
        events += fault
    found = means(fit_costs(stitch_events(frame(*events), meta).faults, meta, source="t").some())
    assert found["resolve_per_page"] == 10
    assert "resolve" not in found
    assert found["wake"] == 30


def test_a_reader_that_hands_the_fetch_on_is_idle_when_it_reads_again() -> None:
    events = []
    for n in range(40):
        start, page = 100_000 * (n + 1), PAGE + 4096 * n
        pair = [event for event in busy_pair(start, page) if event["kind"] != Kind.UFFD_MSG]
        events += [
            *pair,
            message(start + 30, page, tid=FAULTER),
            message(start + 31, page + (1 << 30), tid=FAULTER + 1),
        ]
    fitted = fit_costs(stitch_events(frame(*events)).faults, Meta(), source="t")
    assert fitted.costs["fault_entry"].n == 80
    assert means(fitted.costs)["fault_entry"] + means(fitted.costs)["reader_wakeup"] == 30
    assert "handler_loop" not in fitted.costs


def test_too_few_samples_are_refused_by_name_and_number() -> None:
    faults = stitch_events(frame(*idle_faults(29))).faults
    fitted = fit_costs(faults, Meta(), source="t")
    assert dict(fitted.costs) == {}
    assert fitted.refused["wake"] == "29 samples, 30 needed"
    with pytest.raises(IncompleteData, match=r"nothing to fit costs on .*wake: 29 samples, 30 needed"):
        fit_costs(faults, Meta(), source="t").some()
    assert fit_costs(faults, Meta(), source="t", min_samples=29).some()["wake"].n == 29


def test_a_part_is_fitted_on_its_own() -> None:
    slow = [event for n in range(40) for event in userfault(100_000 * (n + 41), PAGE + 4096 * (n + 40))]
    for event in slow:
        if event["kind"] == Kind.MMAP_LOCK_RELEASED:
            event["ts_ns"] += 50
    faults = stitch_events(frame(*idle_faults(), *slow)).faults
    first = fit_costs(faults, Meta(), source="t", part=(0.0, 0.5)).some()
    second = fit_costs(faults, Meta(), source="t", part=(0.5, 1.0)).some()
    assert (first["wake"].n, means(first)["wake"]) == (40, 30)
    assert (second["wake"].n, means(second)["wake"]) == (40, 80)


def exits(count: int = 40) -> list[dict[str, Any]]:
    events = [run_enter(500)]
    for n in range(count):
        start = 1000 + 5000 * n
        events += [
            at(start, Kind.KVM_MMU_WALK, FAULTER),
            run_exit(start + 20, 100, value=-14),
            placed(start + 300, 40, PAGE + 4096 * n, tid=FAULTER, code=1),
            run_enter(start + 310),
            at(start + 330, Kind.KVM_MMU_WALK, FAULTER),
            at(start + 350, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 4096 * n, size=1),
        ]
    return events


def test_kvm_exits_give_their_own_costs() -> None:
    found = means(fit_costs(stitch_events(frame(*exits()), META).faults, META, source="t").some())
    assert found == {"fetch": 240, "exit_userspace": 20, "reenter": 50, "resolve": 40}


def test_an_mmio_exit_is_the_way_out_and_back_or_all_of_it() -> None:
    events = [run_enter(500)]
    for n in range(40):
        start = 1000 + 5000 * n
        events += [
            at(start, Kind.KVM_MMU_WALK, FAULTER),
            at(start + 5, Kind.KVM_MMIO, FAULTER, addr=GPA + 4096 * n, code=1),
            run_exit(start + 20, 100),
            run_enter(start + 400),
        ]
    faults = stitch_events(frame(*events), META).faults
    assert means(fit_costs(faults, META, source="t").some()) == {"mmio_exit": 20}
    lab = Meta(mechanism=MechanismUsed("mmio-exit"))
    assert means(fit_costs(faults, lab, source="t").some()) == {"mmio_exit": 400}
    assert observe(faults, lab, exits_alone=True).samples["mmio_exit"].tolist() == [20] * 40


@pytest.mark.parametrize(
    ("mechanism", "pferr", "cost"),
    [("host-lazy", 2, "host_fault"), ("host-lazy", 0, "host_fault_read"), ("freeze", 2, "stage2_fault")],
)
def test_what_a_stage2_fault_costs_depends_on_who_fills_memory(mechanism: str, pferr: int, cost: str) -> None:
    events = [run_enter(500)]
    for n in range(40):
        events += [
            at(1000 + 100 * n, Kind.KVM_MMU_WALK, FAULTER, code=pferr),
            at(1012 + 100 * n, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 4096 * n, size=1),
        ]
    meta = Meta(mechanism=MechanismUsed(mechanism))
    assert means(fit_costs(stitch_events(frame(*events), meta).faults, meta, source="t").some()) == {cost: 12}


STRANGER = 77
"""A thread that neither faults nor serves."""


def scheduled(start_ns: int, page: int, handler_after: int, accessor_after: int) -> list[dict[str, Any]]:
    """`userfault` with a handler that sleeps until 15 and has its CPU from 22, and who had both CPUs before."""
    return [
        *[event for event in userfault(start_ns, page) if event["kind"] not in (Kind.SCHED_IN, Kind.SCHED_OUT)],
        at(start_ns - 50, Kind.SCHED_OUT, HANDLER, code=ASLEEP),
        at(start_ns + 22, Kind.SCHED_IN, HANDLER, value=handler_after),
        at(start_ns + 10, Kind.SCHED_OUT, FAULTER, code=ASLEEP),
        at(start_ns + 90, Kind.SCHED_IN, FAULTER, value=accessor_after),
    ]


@pytest.mark.parametrize("handler_after", [0, FAULTER, STRANGER])
@pytest.mark.parametrize("accessor_after", [0, HANDLER, STRANGER])
def test_a_woken_threads_cost_has_a_part_for_idle_and_one_for_busy_cpus(
    handler_after: int, accessor_after: int
) -> None:
    events = [e for n in range(40) for e in scheduled(10_000 * (n + 1), PAGE + 4096 * n, handler_after, accessor_after)]
    costs = fit_costs(stitch_events(frame(*events)).faults, Meta(), source="t").some()
    assert (means(costs)["reader_wakeup"], means(costs)["wake"]) == (20, 30)
    # After another of the two threads: from 22 until read at 30; from 90 until on at 100.
    for name, after, idle, busy in (("reader_wakeup", handler_after, 20, 8), ("wake", accessor_after, 30, 10)):
        on_idle, on_busy = costs[name].on_idle_cpu, costs[name].on_busy_cpu
        expected = {0: (idle, None), STRANGER: (None, None)}.get(after, (None, busy))
        assert (on_idle and on_idle.mean, on_busy and on_busy.mean) == expected


@pytest.mark.parametrize("after", [0, FAULTER])
def test_only_the_first_message_after_a_handlers_switch_in_tells_of_its_cpu(after: int) -> None:
    events = []
    for n in range(40):
        start = 100_000 * (n + 1)
        switches = [
            at(start - 100, Kind.SCHED_OUT, HANDLER, code=ASLEEP),
            at(start + 22, Kind.SCHED_IN, HANDLER, value=after),
        ]
        events += [*busy_pair(start, PAGE + 4096 * n), *switches]
    observed = observe(stitch_events(frame(*events)).faults, Meta())
    parts = observed.on_busy_cpu if after else observed.on_idle_cpu
    assert parts["reader_wakeup"].tolist() == [8 if after else 20] * 40  # of 80 messages


@pytest.mark.parametrize(("who", "samples"), [(FAULTER + 1, 40), (FAULTER, 0)])
def test_what_it_takes_to_preempt_is_seen_where_another_than_the_waker_had_to_leave(who: int, samples: int) -> None:
    """The accessor that wakes a handler on its own CPU goes to sleep anyway."""

    def fault(start_ns: int, page: int, tid: int) -> list[dict[str, Any]]:
        return [
            at(start_ns, Kind.PAGE_FAULT_USER, tid, addr=page),
            *sleep(start_ns + 10, start_ns + 90, tid, woken_ns=start_ns + 70),
            message(start_ns + 30, page, tid=tid),
            placed(start_ns + 70, 10, page),
            at(start_ns + 100, Kind.MMAP_LOCK_RELEASED, tid),
        ]

    events = []
    for n in range(40):
        start, page = 100_000 * (n + 1), PAGE + 8192 * n
        events += [*fault(start, page, FAULTER), *fault(start + 50_000, page + 4096, FAULTER + 1)]
        events += [
            at(start - 100, Kind.SCHED_OUT, HANDLER, code=ASLEEP),
            at(start + 22, Kind.SCHED_IN, HANDLER, value=who),
        ]
        if who != FAULTER:
            events += [at(start + 22, Kind.SCHED_OUT, who), at(start + 40_000, Kind.SCHED_IN, who)]
    observed = observe(stitch_events(frame(*events)).faults, Meta())
    assert observed.samples["preempt"].tolist() == [12] * samples  # asleep at 10, the handler on its CPU at 22


def scheduled_faults(row: dict[str, Any], count: int = 90) -> pl.DataFrame:
    """Faults that one handler serves back to back; each third is as `row` says."""
    faults = served_in_turn(count, 0)
    third = (pl.col("fault_id") % 3 == 1).alias("third")
    calm = [pl.lit(0, pl.Int64).alias(name) for name in ("preempted_ns", "service_preempted_ns", "read_preempted_ns")]
    changed = [pl.when(third).then(value).otherwise(pl.col(name)).alias(name) for name, value in row.items()]
    return faults.with_columns(calm).with_columns(changed)


@pytest.mark.parametrize("column", ["preempted_ns", "service_preempted_ns"])
def test_faults_with_a_preempted_thread_may_be_left_out(column: str) -> None:
    faults = scheduled_faults({column: 5, "wake_ns": 4000})
    assert observe(faults, Meta()).samples["wake"].tolist() == [10, 4000, 10] * 30
    without = observe(faults, Meta(), waits=False)
    assert without.samples["wake"].tolist() == [10] * 60
    assert without.samples["fetch"].tolist() == [800] * 60
    assert len(without.placing_ns) == len(without.sleepers) == 60
    assert without.preempted == 30
    # The faults left out were served all the same: what follows them did not wait for the handler all that time.
    assert set(without.samples["handler_loop"].tolist()) == {100}


def test_a_loop_with_a_preempted_handler_may_be_left_out() -> None:
    faults = scheduled_faults({"read_preempted_ns": 5})
    assert len(observe(faults, Meta()).samples["handler_loop"]) == 89
    without = observe(faults, Meta(), waits=False)
    assert len(without.samples["handler_loop"]) == 59
    assert len(without.samples["wake"]) == 90


def alone(
    *faults: tuple[int, str], mechanism: str = "host-lazy", base: str = "", window_ns: int = 10**9, **columns: Any
) -> Any:
    """What is observed of faults (page, access) 100 apart that KVM resolved alone, the nth in n + 1; and the meta."""
    row = {
        "vm": 1, "accessor": "vcpu", "tid": 2, "vcpu": 0, "granule": 4096, "cause": "stage2", "resolution": "kernel",
        "handler_tid": 0, "join": "walk/spte",
    } | columns  # fmt: skip
    data: dict[str, list[Any]] = {name: [value] * len(faults) for name, value in row.items()}
    data["page"], data["access"] = ([fault[i] for fault in faults] for i in (0, 1))
    data["fault_id"] = list(range(len(faults)))
    data["start_ns"] = [100 * n for n in data["fault_id"]]
    data["stall_ns"] = [n + 1 for n in data["fault_id"]]
    data["end_ns"] = [s + d for s, d in zip(data["start_ns"], data["stall_ns"], strict=True)]
    frame_ = pl.DataFrame({name: data.get(name, [None] * len(faults)) for name in FAULTS.names})
    meta = Meta(
        mechanism=MechanismUsed(mechanism, {"base": base} if base else {}),
        windows=[WindowSpan("memslot-destroy", window_ns, window_ns + 1)] if base else [],
        memory_map=[MapEntry(0, 1, PAGE, PAGE + (1 << 20), 4096, "")],
    )
    return frame_.with_columns(pl.col("preempted_ns", "service_preempted_ns").cast(pl.Int64)), meta


def kernel_costs(observed: Observed) -> dict[str, list[int]]:
    names = ("stage2_fault", "host_fault", "host_fault_read")
    return {name: observed.samples[name].tolist() for name in names if len(observed.samples[name])}


def test_refaults_of_populated_memory_are_no_first_touches() -> None:
    faults, meta = alone((PAGE, "w"), (PAGE + 4096, "r"), mechanism="memslot-destroy", base="populated", window_ns=0)
    assert kernel_costs(observe(faults, meta)) == {"stage2_fault": [1, 2]}


def test_from_a_window_on_only_first_touches_and_first_writes_are_filled_in() -> None:
    own = (0x1000, "r")  # a guest physical address: the guest's own memory, which was there
    faults, meta = alone(
        (PAGE, "w"), (PAGE + 4096, "r"), (PAGE, "w"), (PAGE + 4096, "w"), (PAGE + 8192, "r"), own,
        mechanism="memslot-destroy", base="host-lazy", window_ns=150,
    )  # fmt: skip
    assert kernel_costs(observe(faults, meta)) == {
        "stage2_fault": [3, 6],
        "host_fault": [1, 4],
        "host_fault_read": [2, 5],
    }


def test_what_no_mechanism_charges_is_refused_by_name() -> None:
    faults, meta = alone(*[(PAGE, "w")] * 40, mechanism="guest-memfd")
    observed = observe(faults, meta)
    assert kernel_costs(observed) == {}
    refused = fit(observed, source="t").refused
    assert refused == {"guest-memfd": "40 faults that the kernel filled in from guest_memfd: no mechanism charges them"}
    faults, meta = alone(*[(PAGE, "w"), (PAGE, "r")] * 20, mechanism="dirty-log")
    observed = observe(faults, meta)
    assert kernel_costs(observed) == {"stage2_fault": list(range(2, 41, 2))}
    assert observed.uncharged == {"dirty-log": 20}
    assert "no mechanism charges them" in fit(observed, source="t").refused["dirty-log"]


def test_writes_are_logged_from_the_first_call_on(tmp_path: Path) -> None:
    faults, meta = alone(*[(PAGE, "w")] * 40, mechanism="some-vmm")
    assert kernel_costs(observe(faults, meta, logged_from_ns=2000)) == {"stage2_fault": list(range(1, 21))}
    events = [run_enter(500)]
    for n in range(80):
        events += [
            at(1000 + 100 * n, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1012 + 100 * n, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 4096 * n, size=1),
        ]
    events.append(at(4950, Kind.KVM_GET_DIRTY_LOG, VM, dur_ns=100))
    fitted = calibrate([open_trace(write(tmp_path / "a.trace", events, META))])
    assert fitted.costs["stage2_fault"].n == 40
    assert fitted.refused["dirty-log"].startswith("40 writes")


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=30, max_size=300))
def test_a_table_keeps_the_mean_and_the_bulk(values: list[int]) -> None:
    samples = np.array(values, np.int64)
    shape = distribution_of(samples)
    assert shape.mean == pytest.approx(samples.mean(), rel=0.001, abs=1)
    for level in (0.25, 0.5, 0.75):
        low, high = np.quantile(samples, [max(level - 0.01, 0), level + 0.01])
        assert 0.997 * low - 2 <= shape.quantile(level) <= 1.003 * high + 2


def test_a_table_with_a_long_tail_has_the_samples_mean() -> None:
    samples = np.concatenate([np.full(990, 1000), np.full(10, 5_000_000)]).astype(np.int64)
    shape = distribution_of(samples)
    assert shape.mean == pytest.approx(samples.mean(), rel=1e-6)
    assert shape.sample(200_000, 1).mean() == pytest.approx(samples.mean(), rel=0.05)


def test_the_walk_over_sleepers_is_the_slope_of_the_placing_ioctl() -> None:
    noise = np.random.default_rng(0)
    sleepers = np.repeat(np.arange(20), 50)
    placing = 2000 + 75 * sleepers + noise.integers(0, 40, len(sleepers))
    observed = Observed({}, placing, sleepers)
    assert wake_walk_ns(observed) == pytest.approx(75, abs=2)
    fitted = fit(observed, source="t")
    assert fitted.costs["resolve"].distribution.mean == pytest.approx(2020, abs=25)
    flat = Observed({}, 2000 + noise.integers(0, 400, len(sleepers)), sleepers)
    assert wake_walk_ns(flat) == 0
    assert "wake_per_waiter" not in fit(flat, source="t").costs
    assert wake_walk_ns(Observed({}, EMPTY, EMPTY)) == 0


def test_a_part_is_not_taken_of_pieces() -> None:
    with pytest.raises(UsageError, match="not of pieces"):
        fit_costs([], Meta(), source="t", part=(0.0, 0.5))
