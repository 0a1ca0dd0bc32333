"""QEMU's own post-copy figures beside the stitched stalls of the same migration.

QEMU counts a vCPU as blocked from the moment its fault thread has read the message until the page is placed, on a
clock of milliseconds. The stall a vCPU suffers also holds the time before (fault taken -> message read) and after (page
placed -> vCPU runs). So blocktime is a lower bound; this module says how much each part explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from faultreplay.analysis.compare.metrics import overlap_ns, union_ns
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.store import Trace

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Blocktime:
    """One vCPU (or, with `vcpu` -1, the time in which all were blocked at once, which has no parts); times in ns.

    `stall_ns` = `queue_ns` + `service_ns` + `wake_ns` + `pushed_ns` of the joined faults. `pushed_ns`: the page came
    with the background push before its message was read: no service. `qemu_ns` is QEMU's figure (None
    where it gives none) and `unbooked_ns` = `service_ns` - `qemu_ns`: what QEMU's millisecond clock and its dropped
    intervals make of the part that it means to count.
    """

    vcpu: int
    tid: int
    faults: int
    stall_ns: int
    queue_ns: int | None
    service_ns: int
    wake_ns: int | None
    pushed_ns: int | None
    qemu_ns: int | None

    @property
    def unbooked_ns(self) -> int | None:
        """Part of `service_ns` that QEMU's figure lacks (negative: it has more)."""
        return None if self.qemu_ns is None else self.service_ns - self.qemu_ns


def blocktimes(trace: Trace) -> list[Blocktime]:
    """A row a vCPU in QEMU's order, then one for all vCPUs blocked at once.

    Raises:
        IncompleteData: the trace holds no `query-migrate` of a post-copy destination.
    """
    import polars as pl

    figures = trace.meta.extra.get("qemu") or {}
    destination = figures.get("destination") or {}
    vcpus = figures.get("vcpus") or []
    if "postcopy-blocktime" not in destination or not vcpus:
        raise IncompleteData(
            f"{trace.path}: no QEMU blocktime in the trace: turn on postcopy-blocktime at the destination "
            "and import its query-migrate (faultreplay import --from qemu-migrate)"
        )
    faults = trace.faults().filter(
        pl.col("cause").is_in(["missing", "minor"]), pl.col("stall_ns").is_not_null(), pl.col("handler_tid") != 0
    )
    per_vcpu = destination.get("postcopy-vcpu-blocktime") or []
    rows = []
    for cpu in vcpus:
        mine = faults.filter(pl.col("tid") == cpu["tid"])
        reported = per_vcpu[cpu["index"]] if cpu["index"] < len(per_vcpu) else None
        rows.append(_row(cpu["index"], cpu["tid"], mine, reported))
    of_vcpus = faults.filter(pl.col("tid").is_in([cpu["tid"] for cpu in vcpus]))
    return [*rows, _all_at_once(of_vcpus, len(vcpus), destination)]


def explanation(rows: list[Blocktime]) -> list[str]:
    """The difference in words, one sentence a cause, with its share of the stitched stall."""
    cpus = [row for row in rows if row.vcpu >= 0]
    stall = sum(row.stall_ns for row in cpus)
    if not stall:
        return ["no vCPU faulted on a missing page"]

    def share(ns: float) -> str:
        return f"{ns / stall:.1%} of the stall"

    words = [
        f"before QEMU's clock starts (fault taken -> message read): {share(sum(row.queue_ns or 0 for row in cpus))}",
        f"after it stops (page placed -> vCPU runs): {share(sum(row.wake_ns or 0 for row in cpus))}",
    ]
    if pushed := sum(row.pushed_ns or 0 for row in cpus):
        words.append(f"pages that the background push brought before their message was read: {share(pushed)}")
    unbooked = sum(row.unbooked_ns or 0 for row in cpus)
    if any(row.qemu_ns is not None for row in cpus):
        words.append(
            f"between both, but not in QEMU's figure: {share(unbooked)} (its clock counts whole milliseconds, and an "
            "interval is lost when the vCPU faults again before its end is booked)"
        )
    return words


def _sum(frame: pl.DataFrame, column: str) -> int:
    return int(frame[column].sum() or 0)


def _row(index: int, tid: int, mine: pl.DataFrame, reported_ms: int | None) -> Blocktime:
    pushed = mine.filter(mine["service_ns"].is_null())
    return Blocktime(
        vcpu=index,
        tid=tid,
        faults=mine.height,
        stall_ns=_sum(mine, "stall_ns"),
        queue_ns=_sum(mine, "queue_ns"),
        service_ns=_sum(mine, "service_ns"),
        wake_ns=_sum(mine, "wake_ns"),
        pushed_ns=_sum(pushed, "stall_ns") - _sum(pushed, "wake_ns"),
        qemu_ns=None if reported_ms is None else reported_ms * 1_000_000,
    )


def _all_at_once(faults: pl.DataFrame, vcpus: int, destination: dict[str, Any]) -> Blocktime:
    import polars as pl

    def overlap(faults: pl.DataFrame, start: pl.Expr, end: pl.Expr) -> int:
        starts, ends = [], []
        for _, mine in faults.select("tid", start=start, end=end).group_by("tid"):
            one = union_ns(mine["start"].to_numpy(), mine["end"].to_numpy())
            starts.append(one[0])
            ends.append(one[1])
        if len(starts) < vcpus:
            return 0
        return overlap_ns(np.concatenate(starts), np.concatenate(ends), vcpus)

    start, end = pl.col("start_ns"), pl.col("end_ns")
    whole = overlap(faults, start, end)
    served = faults.filter(pl.col("service_ns").is_not_null())
    inner = overlap(served, start + pl.col("queue_ns").fill_null(0), end - pl.col("wake_ns").fill_null(0))
    booked = destination.get("postcopy-blocktime")
    return Blocktime(
        -1, 0, faults.height, whole, None, inner, None, None, None if booked is None else booked * 1_000_000
    )
