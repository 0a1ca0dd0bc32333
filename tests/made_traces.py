"""Traces with known faults: a closed loop of vCPUs before handlers, in a few obvious lines."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from faultreplay.faulttrace.meta import Clock, Host, MechanismUsed, Meta
from faultreplay.faulttrace.schema import EVENTS, FAULTS
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter

BEGIN_NS = 1_000_000_000
TRAP, MESSAGE, RESOLVE, WAKE, LOOP = 2_000, 2_000, 5_000, 30_000, 2_000


def uffd_faults(
    *,
    vcpus: int = 2,
    each: int = 300,
    handlers: int = 1,
    fetch_ns: int = 200_000,
    think_ns: int = 20_000,
    seed: int = 1,
    access: str = "w",
) -> list[dict[str, object]]:
    """FAULTS rows of a first-come-first-served handler pool."""
    rng = np.random.default_rng(seed)
    free = [(BEGIN_NS, h) for h in range(handlers)]  # when each handler can read again
    arrivals = [(BEGIN_NS + int(rng.exponential(think_ns)), v, 0, 0) for v in range(vcpus)]
    heapq.heapify(arrivals)
    rows: list[dict[str, object]] = []
    last_end = [BEGIN_NS] * vcpus
    while arrivals:
        start, vcpu, number, _ = heapq.heappop(arrivals)
        queued = start + TRAP
        at, handler = heapq.heappop(free)
        read = max(queued + MESSAGE, at) if at <= queued else at
        fetch = int(rng.lognormal(np.log(fetch_ns), 0.1))
        placed = read + fetch + RESOLVE
        heapq.heappush(free, (placed + LOOP, handler))
        end = placed + WAKE
        rows.append(
            {
                "vm": 100, "accessor": "vcpu", "tid": 200 + vcpu, "vcpu": vcpu, "start_ns": start, "end_ns": end,
                "stall_ns": end - start, "think_ns": start - last_end[vcpu],
                "page": (vcpu * each + number) * 4096 + (1 << 30),
                "granule": 4096, "access": access, "cause": "missing", "resolution": "copy",
                "handler_tid": 300 + handler,
                "queue_ns": read - start, "service_ns": placed - read, "resolve_ns": RESOLVE, "wake_ns": WAKE,
                "offcpu_ns": placed - start, "join": "made",
            }
        )  # fmt: skip
        last_end[vcpu] = end
        if number + 1 < each:
            heapq.heappush(arrivals, (end + int(rng.exponential(think_ns)), vcpu, number + 1, 0))
    rows.sort(key=lambda r: (r["start_ns"], r["tid"]))
    return [{"fault_id": i} | row for i, row in enumerate(rows)]


def write_trace(
    path: Path,
    rows: list[dict[str, object]],
    *,
    mechanism: str | None = "uffd-missing",
    params: dict[str, object] | None = None,
    lost: int = 0,
    host: Host | None = None,
    **others: Any,
) -> Path:
    """A trace directory whose faults are `rows`; it holds one event, so that a share of losses has a meaning.

    `others`: fields of `Meta`.
    """
    end = max((int(str(r["end_ns"])) for r in rows if r["end_ns"]), default=BEGIN_NS)
    meta = Meta(
        origin="synthetic",
        host=host or Host(cpus=2),
        clock=Clock(start_ns=BEGIN_NS, end_ns=end + 1_000),
        mechanism=MechanismUsed(mechanism, params or {"handlers": 1}) if mechanism else None,
        **others,
    )
    event = {f.name: 0 for f in EVENTS} | {"ts_ns": BEGIN_NS}
    with TraceWriter(path, meta) as writer:
        writer.append_events(pa.Table.from_pylist([event] * 99, EVENTS))
        if lost:
            writer.append_losses([{"ts_ns": BEGIN_NS, "cpu": 0, "probe": "made", "lost": lost}])
    keep(path, rows)
    return path


def keep(path: Path, rows: list[dict[str, object]]) -> None:
    """Keep `rows` (of FAULTS) as if the trace's events had been stitched to them: the store takes kept faults."""
    frame = pl.from_arrow(pa.Table.from_pylist(rows, FAULTS))
    assert isinstance(frame, pl.DataFrame)
    open_trace(path).keep_faults(frame)
