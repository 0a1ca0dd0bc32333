"""Costs of faults that the kernel resolves alone: first touches, and refaults on memory that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

Samples = npt.NDArray[np.int64]

KERNEL_FILLS: Final = ("host-lazy", "guest-memfd")
UNCHARGED: Final[dict[str, str]] = {
    "guest-memfd": "faults that the kernel filled in from guest_memfd: no mechanism charges them",
    "dirty-log": "writes to stage 2 while KVM logged them: no mechanism charges them",
}
"""Faults of a kind of their own, which would blur the costs of others -> why they are left out."""


def fills_in(meta: Meta) -> str:
    """The mechanism that serves the faults: the lab names a run with a window after the window."""
    if meta.mechanism is None:
        return ""
    return str(meta.mechanism.params.get("base", "")) or meta.mechanism.name


def kernel_samples(
    joined: pl.DataFrame, meta: Meta, unpreempted: pl.Series, logged_from_ns: int | None
) -> tuple[dict[str, Samples], dict[str, int]]:
    """Cost name -> samples, and key of `UNCHARGED` -> how many faults were of that kind.

    Args:
        joined: faults with an end, sorted by start.
        meta: of their trace.
        unpreempted: which of them to use.
        logged_from_ns: since when KVM logs writes, if it does.
    """
    mechanism = fills_in(meta)
    alone = unpreempted & (joined["resolution"] == "kernel")
    stage2, writes = joined["cause"] == "stage2", joined["access"] == "w"
    # Where the kernel alone fills memory in, one exit makes the page too; elsewhere the host has it by then.
    fills = stage2 & _first_touches(joined, meta) if mechanism in KERNEL_FILLS else stage2 & False
    of_host = fills | joined["cause"].is_in(["minor-host", "major-host"])
    logged = stage2 & False
    if mechanism == "dirty-log":
        logged_from_ns = 0
    if logged_from_ns is not None:
        logged = stage2 & writes & ~fills & (joined["start_ns"] >= logged_from_ns)
    memfd = of_host if mechanism == "guest-memfd" else of_host & False

    def stalls(rows: pl.Series) -> Samples:
        return joined.filter(alone & rows)["stall_ns"].to_numpy().astype(np.int64)

    samples = {
        "stage2_fault": stalls(stage2 & ~fills & ~logged),
        "host_fault": stalls(of_host & ~memfd & writes),
        "host_fault_read": stalls(of_host & ~memfd & ~writes),
    }
    left_out = {"guest-memfd": len(stalls(memfd)), "dirty-log": len(stalls(logged))}
    return samples, {name: count for name, count in left_out.items() if count}


def _first_touches(joined: pl.DataFrame, meta: Meta) -> pl.Series:
    """Faults for which the host had no page; before any window all are.

    From the first window on that is each page's first fault, and its first write: a read may have found the zero page.
    Memory outside the memory map was there before the run: the guest's own, which a window throws out of stage 2 too.
    """
    if not meta.windows:
        return pl.Series([True] * len(joined), dtype=pl.Boolean)
    nth = joined.select(
        fault=pl.int_range(pl.len()).over("vm", "page"),
        write=(pl.col("access") == "w").cast(pl.Int64).cum_sum().over("vm", "page"),
    )
    first = (nth["fault"] == 0) | ((nth["write"] == 1) & (joined["access"] == "w"))
    mapped = joined["page"] != joined["page"] if meta.memory_map else joined["page"] == joined["page"]
    for entry in meta.memory_map:
        mapped |= (joined["page"] >= entry.start) & (joined["page"] < entry.end)
    return (joined["start_ns"] < meta.windows[0].start_ns) | (first & mapped)
