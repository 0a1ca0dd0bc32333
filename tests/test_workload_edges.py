"""Edges of the workload that mutation testing found untested: both sides of a split, equal times, many accessors."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from test_replay_workload import BEGIN, faults

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.workload.faults import workload_from_faults
from faultreplay.replay.workload.pages import pages_of
from faultreplay.replay.workload.synth import SynthSpec, Think
from faultreplay.replay.workload.workload import Workload, compact, make_workload


def tracked(work: Workload, *, everything: bool = False) -> list[int]:
    """Which rows are looked up because somebody else faults on their page too."""
    pages = pages_of(work, 4096, track=True, everything=everything, refill_bytes=0)
    return np.flatnonzero(pages.flags & 1).tolist()


# ------------------------------------------------------------------------------------------------------------- splits


def test_each_part_of_a_split_ends_where_it_ends_for_every_accessor() -> None:
    """vcpu0 faults in both parts, vcpu1 in the first alone, vcpu2 in the second alone; the border is at 600."""
    frame = faults(
        ("vcpu", 100, 100, 150, 1), ("vcpu", 101, 200, 260, 2), ("vcpu", 101, 300, 420, 3),
        ("vcpu", 100, 600, 650, 4), ("vcpu", 102, 700, 790, 5), ("vcpu", 100, 800, 810, 6),
    )  # fmt: skip
    work = workload_from_faults(frame, begin_ns=BEGIN, end_ns=BEGIN + 1_000)
    assert work.tail_ns.tolist() == [190, 580, 210]
    first, second = work.split(0.5)
    assert first.accessor_start.tolist() == [0, 1, 3, 3]
    assert first.tail_ns.tolist() == [450, 180, 600]  # to the border: since its resume, or the whole part
    assert first.think_ns.tolist() == [100, 200, 40]
    assert second.accessor_start.tolist() == [0, 2, 2, 3]
    assert second.tail_ns.tolist() == [190, 400, 210]  # vcpu1 has the whole part
    assert second.think_ns.tolist() == [0, 150, 100]  # what was left of it at the border
    assert second.recorded_start_ns.tolist() == [0, 200, 100]
    assert second.clock_start_ns == first.clock_start_ns + 600 == BEGIN + 600


def test_a_fault_that_spans_the_border_leaves_the_rest_of_its_stall_to_nobody() -> None:
    """It ends at 700, the border is at 500: the second part begins with the think time from 700 on."""
    frame = faults(
        ("vcpu", 100, 100, 700, 1), ("vcpu", 101, 500, 510, 2), ("vcpu", 102, 550, 560, 3), ("vcpu", 100, 900, 910, 4)
    )
    _, second = workload_from_faults(frame, begin_ns=BEGIN, end_ns=BEGIN + 1_000).split(0.25)
    assert second.think_ns.tolist() == [200, 0, 50]
    alone = workload_from_faults(frame.head(3), begin_ns=BEGIN, end_ns=BEGIN + 1_000).split(0.34)[1]
    assert alone.tail_ns.tolist() == [300, 490, 440]  # vcpu0 came back at 700 of 1000


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_split_needs_two_parts(fraction: float) -> None:
    work = workload_from_faults(faults(("vcpu", 100, 0, 10, 1), ("vcpu", 100, 20, 30, 2)), begin_ns=BEGIN)
    with pytest.raises(UsageError, match="between 0 and 1"):
        work.split(fraction)


# ------------------------------------------------------------------------------------------------------ columns, codes


@pytest.mark.parametrize(
    ("asleep", "preempted", "ran"),
    [
        ([], [], [100, 50]),
        ([30, 0], [], [70, 50]),
        ([], [20, 60], [80, 0]),
        ([30, 10], [20, 5], [50, 35]),
    ],
)
def test_what_an_accessor_ran_is_its_think_time_without_what_it_was_away(
    asleep: list[int], preempted: list[int], ran: list[int]
) -> None:
    plain = make_workload([{"think_ns": [100, 50]}])
    fields = {**plain.__dict__, "asleep_ns": np.array(asleep, np.int64), "preempted_ns": np.array(preempted, np.int64)}
    assert Workload(**fields).on_cpu_ns().tolist() == ran


def test_beside_vcpus_another_threads_time_is_not_known_to_have_been_work() -> None:
    """The VMM's thread may be a vCPU's own outside the guest: nobody is kept from a CPU by a guess."""
    rows = faults(
        ("vcpu", 100, 100, 150, 1), ("vcpu", 100, 400, 450, 2), ("vmm", 9, 200, 260, 3), ("vmm", 9, 500, 560, 4)
    ).with_columns(think_asleep_ns=pl.Series([None, 30, None, 10], dtype=pl.Int64))
    work = workload_from_faults(rows, begin_ns=BEGIN)
    assert work.think_ns.tolist() == [100, 250, 200, 240]
    assert work.asleep_ns.tolist() == [100, 30, 200, 240]
    vmm = workload_from_faults(rows.filter(accessor="vmm"), begin_ns=BEGIN)
    assert vmm.asleep_ns.tolist() == [200, 10]  # without vCPUs its sleep is told like anybody's


def test_more_accessors_than_sixteen_bits_count() -> None:
    count = (1 << 16) + 5
    numbers = np.arange(count, dtype=np.int64)
    words = {"accessor": "vmm", "access": "w", "cause": "missing"}
    whole = {
        "fault_id": numbers, "vm": numbers * 0, "tid": numbers, "vcpu": numbers * 0 - 1,
        "start_ns": numbers + BEGIN, "end_ns": numbers + BEGIN + 1, "stall_ns": numbers * 0 + 1,
        "page": numbers.astype(np.uint64) * 4096,
    }  # fmt: skip
    frame = pl.DataFrame(whole).with_columns(pl.lit(word).alias(name) for name, word in words.items())
    work = workload_from_faults(frame, begin_ns=BEGIN)
    assert work.accessors == count
    assert work.page[-5:].tolist() == numbers[-5:].tolist()
    assert work.accessor_name[-1] == f"vmm:{count - 1}"


@pytest.mark.parametrize(
    ("pages", "bits"),
    [([0, (1 << 31) - 1], 32), ([0, 1 << 31], 64), ([-1, 5], 64), ([], 32)],
)
def test_pages_are_narrow_only_where_none_is_cut(pages: list[int], bits: int) -> None:
    narrow = compact(np.array(pages, np.int64))
    assert (narrow.tolist(), narrow.dtype.itemsize * 8) == (pages, bits)


# --------------------------------------------------------------------------------------------------- shared, and again


def test_each_page_has_its_own_again() -> None:
    """Two pages, each taken away and faulted again: no two faults share one; of a third two overlap."""
    frame = faults(
        ("vcpu", 100, 0, 100, 1), ("vcpu", 100, 500, 600, 1), ("vcpu", 101, 10, 110, 2), ("vcpu", 101, 700, 800, 2)
    )
    assert tracked(workload_from_faults(frame, begin_ns=BEGIN)) == []
    both = pl.concat([frame, faults(("vcpu", 102, 5, 90, 2))])
    assert tracked(workload_from_faults(both, begin_ns=BEGIN)) == [2, 4]


@pytest.mark.parametrize(("second_ns", "together"), [(99, True), (100, True), (101, False)])
def test_until_its_last_instant_a_fault_is_under_way(second_ns: int, together: bool) -> None:
    frame = faults(("vcpu", 100, 0, 100, 1), ("vcpu", 101, second_ns, second_ns + 50, 1))
    work = workload_from_faults(frame, begin_ns=BEGIN)
    assert tracked(work) == ([0, 1] if together else [])


def test_the_longest_of_those_under_way_counts() -> None:
    """A short fault inside a long one does not end it: the third is on the same missing page."""
    frame = faults(("vcpu", 100, 0, 500, 1), ("vcpu", 101, 10, 20, 1), ("vcpu", 102, 300, 400, 1))
    assert tracked(workload_from_faults(frame, begin_ns=BEGIN)) == [0, 1, 2]


# ----------------------------------------------------------------------------------------------------------- synthetic


def test_synthetic_bounds_hold_at_their_last_value() -> None:
    most = 1 << 27
    assert SynthSpec("phases", 1, 1, Think(0), phases=most, quiet_ns=0).phases == most
    with pytest.raises(UsageError, match="phases"):
        SynthSpec("phases", 1, 1, Think(0), phases=most + 1, quiet_ns=0)
    assert SynthSpec("phases", 1, 100, Think(1)).phases == 4
