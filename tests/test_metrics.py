"""Every number against a slow, obvious way to count it."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from faultreplay.analysis.compare.metrics import Metrics, Run, Use, measure, overlap_ns, quantile, union_ns

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), max_size=12)


def ticks(intervals: list[tuple[int, int]]) -> set[int]:
    return {tick for start, length in intervals for tick in range(start, start + length)}


def arrays(intervals: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    start = np.array([s for s, _ in intervals], dtype=np.int64)
    return start, start + np.array([n for _, n in intervals], dtype=np.int64)


@given(INTERVALS)
def test_union_covers_the_same_ticks_with_disjoint_intervals(intervals: list[tuple[int, int]]) -> None:
    start, end = union_ns(*arrays(intervals))
    assert {t for a, b in zip(start, end, strict=True) for t in range(a, b)} == ticks(intervals)
    assert np.all(end > start)
    assert np.all(start[1:] > end[:-1])


@given(INTERVALS, st.integers(1, 4))
def test_overlap_counts_ticks_held_often_enough(intervals: list[tuple[int, int]], depth: int) -> None:
    count = [0] * 60
    for start, length in intervals:
        for tick in range(start, start + length):
            count[tick] += 1
    assert overlap_ns(*arrays(intervals), depth) == sum(c >= depth for c in count)


QS = st.sampled_from([0.0, 0.07, 0.5, 0.9, 0.99, 0.999, 1.0])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), QS)
def test_quantile_is_the_nearest_rank(values: list[int], q: float) -> None:
    ranked = sorted(values)
    want = next(v for i, v in enumerate(ranked, 1) if i >= round(q * len(ranked), 9))
    assert quantile(np.array(ranked, dtype=np.int64), q) == want


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(-1, 12)), max_size=30))
def test_measure_against_ticks(faults: list[tuple[int, int, int]]) -> None:
    accessor = np.array([f[0] for f in faults], dtype=np.int64)
    start = np.array([f[1] for f in faults], dtype=np.int64)
    stall = np.array([f[2] for f in faults], dtype=np.int64)
    counted = np.array([True, True, False])  # the third accessor is no vCPU
    got = measure(Run(accessor=accessor, start_ns=start, stall_ns=stall, counted=counted, run_time_ns=100))
    known = [f for f in faults if f[2] >= 0]
    mine = [ticks([(s, n) for a, s, n in known if a == vcpu]) for vcpu in (0, 1)]
    per_vcpu = [sum(n for a, _, n in known if a == vcpu) for vcpu in (0, 1)]
    assert got.faults == len(known)
    assert got.total_stall_ns == sum(n for _, _, n in known)
    assert got.max_ns == max((n for _, _, n in known), default=0)
    assert got.blocked_ns == len(mine[0]) + len(mine[1])
    assert got.all_stalled_ns == len(mine[0] & mine[1])
    assert (got.stall_per_vcpu_min_ns, got.stall_per_vcpu_max_ns) == (min(per_vcpu), max(per_vcpu))
    assert abs(got.stall_per_vcpu_mean_ns - sum(per_vcpu) / 2) <= 0.5
    assert got.blocked_ns <= sum(per_vcpu)


def test_asynchronous_faults_block_less_than_they_last() -> None:
    two = np.zeros(2, dtype=np.int64)
    got = measure(
        Run(
            accessor=two,
            start_ns=np.array([0, 50], dtype=np.int64),
            stall_ns=np.array([10, 20], dtype=np.int64),
            latency_ns=np.array([500, 800], dtype=np.int64),
            counted=np.array([True]),
            run_time_ns=1000,
        )
    )
    assert (got.total_latency_ns, got.latency_p50_ns, got.latency_max_ns) == (1300, 500, 800)
    assert (got.p50_ns, got.max_ns) == (10, 20), "stalls and latencies share no column"
    assert (got.total_stall_ns, got.blocked_ns) == (30, 30)


def test_a_pause_blocks_without_a_fault_and_a_refault_counts_beside_them() -> None:
    one = np.zeros(1, dtype=np.int64)
    got = measure(
        Run(
            accessor=one,
            start_ns=one,
            stall_ns=np.array([10], dtype=np.int64),
            counted=np.array([True, True]),
            run_time_ns=1000,
            blocked=(np.array([0, 1]), np.array([5, 5]), np.array([25, 25])),
            window_stall_ns=np.array([15, 20]),
            refaults=3,
            refault_stall_ns=np.array([0, 7]),
        )
    )
    assert (got.blocked_ns, got.all_stalled_ns) == (45, 20)
    assert (got.total_stall_ns, got.window_stall_ns, got.refault_stall_ns) == (52, 35, 7)
    assert (got.stall_per_vcpu_min_ns, got.stall_per_vcpu_max_ns) == (25, 27)
    assert (got.faults, got.refaults, got.max_ns) == (1, 3, 20)
    assert got.p50_ns == 2, "three refaults of 2 ns, a fault of 10, stops of 15 and 20"


def test_rates_and_bottleneck() -> None:
    none = np.zeros(0, dtype=np.int64)
    uses = (Use("handler", 2, 900, 0.45, 3), Use("link", 1, 700, 0.7, 1), Use("idle", 0, 0, math.nan, 0))
    got = measure(
        Run(
            accessor=none,
            start_ns=none,
            stall_ns=none,
            counted=np.array([True, True]),
            run_time_ns=3_000,
            ideal_run_time_ns=1_000,
            bytes_moved=8192,
            needed_bytes=4096,
            uses=uses,
            hazards={"write-in-window": 3},
        )
    )
    assert (got.slowdown, got.over_fetch, got.bottleneck, got.bottleneck_share) == (3.0, 2.0, "link", 0.7)
    assert (got.faults, got.p99_ns, got.max_ns, got.all_stalled_ns) == (0, 0, 0, 0)
    assert got.as_record()["uses"]["link"] == {"servers": 1, "busy_ns": 700, "share": 0.7, "max_queue": 1}
    assert got.as_record()["hazards"] == {"write-in-window": 3}


def test_docs_say_what_each_number_means_and_no_more() -> None:
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = text[text.index("| Name | Meaning |") : text.index("## Four times")]
    named: set[str] = set()
    for line in table.splitlines()[2:]:
        for words in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else ""):
            many = re.search(r"{(.+)}", words)
            named |= {words.replace(many[0], one) for one in many[1].split(",")} if many else {words}
    named |= {"p90_ns", "p99_ns"} if "`p50_ns` ... `p99_9_ns`" in table else set()
    assert named == {f.name for f in dataclasses.fields(Metrics)}


def test_where_the_time_goes_names_the_greatest() -> None:
    some = measure(
        Run(
            accessor=np.zeros(1, np.int64),
            start_ns=np.zeros(1, np.int64),
            stall_ns=np.full(1, 100),
            counted=np.ones(1, np.bool_),
            run_time_ns=100,
            where_ns={"entry": 4, "queue": 27, "fetch": 61, "wake": 8, "contend": 0},
        )
    )
    assert some.where() == "fetch 61 %, queue 27 %"
    assert some.where(most=4, least_percent=5) == "fetch 61 %, queue 27 %, wake 8 %"
    assert some.as_record()["where_ns"]["fetch"] == 61
    assert dataclasses.replace(some, where_ns={}).where() == ""
    assert dataclasses.replace(some, where_ns=dict.fromkeys("abcdefghijklmn", 1)).where() == "n 7 %"
