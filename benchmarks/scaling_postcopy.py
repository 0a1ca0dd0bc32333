"""Post-copy over a link of 10 Gb/s: published latencies beside the model. Part of `scaling_study.py`."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scaling_law import PUBLISHED

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

GUEST_BYTES: int = PUBLISHED["xu"]["guest_bytes"]
BANDWIDTH = PUBLISHED["xu"]["link_bits_per_s"] / 8
SIZES = {"4K": 4 << 10, "2M": 2 << 20, "1G": 1 << 30}


@cache
def random_touches(vcpus: int, size: str) -> Workload:
    """Each vCPU touches pages of the guest at random, with 10 us between."""
    each = {"4K": 40_000, "2M": 8_000, "1G": 4_000}[size] // vcpus
    rng = np.random.default_rng(1)
    pages = rng.choice(GUEST_BYTES // 4096, size=each * vcpus, replace=False)
    streams = [
        {"think_ns": np.full(each, 10_000), "page": pages[v * each : (v + 1) * each], "name": f"vcpu{v}"}
        for v in range(vcpus)
    ]
    return make_workload(streams)


def latency_ms(variant: str, size: str, vcpus: int, *, fetch_us: float, backlog_bytes: float) -> float:
    """Mean of the stalls that were requests over the link."""
    costs = load_costs().with_constants(fetch=fetch_us * 1e3)
    shared = {"granule": SIZES[size], "bandwidth": round(BANDWIDTH), "handlers": 1024}
    if variant == "hgm":
        mechanism = load_mechanism("hgm").with_params({k: v for k, v in shared.items() if k != "granule"})
    elif variant == "preempt" and size != "4K":
        # A page in transit is interrupted: the request has the link to itself.
        mechanism = load_mechanism("hugetlb-1g").with_params(shared)
    else:
        more = {"memory": GUEST_BYTES, "backlog": round(backlog_bytes) if variant == "vanilla" else 0}
        mechanism = load_mechanism("precopy-push").with_params({**shared, **more})
    result = simulate(random_touches(vcpus, size), mechanism, costs)
    reached = result.stall_ns[(result.start_ns >= 0) & (result.stall_ns > 100_000)]
    return float(reached.mean()) / 1e6 if reached.size else math.nan


def postcopy_table() -> tuple[list[str], float, float]:
    """(lines of the table, fitted round trip in us, fitted backlog in bytes)."""
    figures = PUBLISHED["xu"]["mean_ms"]
    fetch_us, backlog = 230.0, 13e6
    for _ in range(3):
        low, high = 1.0, 2000.0
        for _ in range(14):
            fetch_us = math.sqrt(low * high)
            slow = latency_ms("preempt", "4K", 1, fetch_us=fetch_us, backlog_bytes=0) > figures["preempt"]["4K"]
            low, high = (low, fetch_us) if slow else (fetch_us, high)
    low, high = 1e5, 1e9
    for _ in range(14):
        backlog = math.sqrt(low * high)
        slow = latency_ms("vanilla", "4K", 1, fetch_us=fetch_us, backlog_bytes=backlog) > figures["vanilla"]["4K"]
        low, high = (low, backlog) if slow else (backlog, high)
    lines = ["", "| | page | published, ms | 1 vCPU faults | error | 40 vCPUs fault |", "|---|---|--:|--:|--:|--:|"]
    for variant, row in figures.items():
        for size, there in row.items():
            one, many = (
                latency_ms(variant, size, v, fetch_us=fetch_us, backlog_bytes=backlog)
                for v in (1, PUBLISHED["xu"]["vcpus"])
            )
            given = " (set)" if size == "4K" else ""
            lines.append(
                f"| {variant} | {size} | {there:g} | {_three(one)} | {100 * (one / there - 1):+.0f} %{given} "
                f"| {_three(many)} |"
            )
    there = PUBLISHED["single"]["hgm_us"]["value"] / 1000
    round_trip = PUBLISHED["single"]["qemu_round_trip_us"]["value"]
    here = latency_ms("hgm", "4K", 1, fetch_us=round_trip, backlog_bytes=0)
    lines.append(
        f"| 1G filled at 4K (HGM) | 4K | about {there:g} | {here:.3g} | {100 * (here / there - 1):+.0f} % | - |"
    )
    return lines, fetch_us, backlog


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
