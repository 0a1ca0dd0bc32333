"""A recorded trace as access lists: the same pages, accesses and think times, for a real guest to do again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.lab.lists import OP_READ, OP_WRITE, AccessList, tag_ops
from faultreplay.lab.spec import MAX_ACCESSORS

_NOT_MEMORY = ("mmio",)


def lists_from_trace(path: Path, stride: int) -> tuple[list[AccessList], int, list[str]]:
    """Lists, number of 4 KiB pages, and notes on what was left out.

    A lab trace has every access in its truth; any other has faults only, and all time between two faults is think time.
    Distinct pages are numbered in the order of their addresses, `stride` 4 KiB pages apart. An execute fault is done as
    a read.

    Raises:
        IncompleteData: the trace holds no memory access that could be done again.
    """
    trace = open_trace(path)
    truth = trace.truth()
    if truth is not None and truth.height:
        notes = ["accesses and think times are those of the trace's truth"]
        accesses = truth.with_columns(
            think_ns=(pl.col("start_ns") - pl.col("end_ns").shift(1).over("tid")).fill_null(
                pl.col("start_ns") - trace.meta.lab.get("base_ns", truth["start_ns"].min())
            )
        )
    else:
        accesses, notes = _faults(trace)
    if accesses.is_empty():
        raise IncompleteData(f"{path}: holds no memory access that could be done again")
    pages, index = np.unique(accesses["page"].to_numpy(), return_inverse=True)
    accesses = accesses.with_columns(index=pl.Series(index.astype(np.int64))).sort("start_ns", "tid")
    lists: list[AccessList] = []
    for tid in _busiest(accesses, notes):
        mine = accesses.filter(pl.col("tid") == tid)
        kind = np.where(mine["access"].to_numpy() == "w", OP_WRITE, OP_READ).astype(np.int64)
        think_ns = np.maximum(mine["think_ns"].to_numpy(), 0)
        lists.append(AccessList(mine["index"].to_numpy() * stride, think_ns, tag_ops(kind, len(lists))))
    return lists, len(pages) * stride, notes


def _faults(trace: Trace) -> tuple[pl.DataFrame, list[str]]:
    """Faults on memory, of vCPUs only where there are any; the first think counts from the first fault of all."""
    notes = []
    faults = trace.faults().filter(~pl.col("cause").is_in(_NOT_MEMORY) & (pl.col("page") > 0))
    if (faults["accessor"] == "vcpu").any():
        others = faults.height - int((faults["accessor"] == "vcpu").sum())
        faults = faults.filter(pl.col("accessor") == "vcpu")
        if others:
            notes.append(f"{others} faults of other threads than vCPUs are not done again")
    first = pl.col("start_ns") == pl.col("start_ns").min().over("tid")
    since_start = pl.col("start_ns") - pl.col("start_ns").min()
    think_ns = pl.when(first).then(since_start).otherwise(pl.col("think_ns").fill_null(0))
    return faults.with_columns(think_ns=think_ns), notes


def _busiest(accesses: pl.DataFrame, notes: list[str]) -> list[int]:
    """Threads by vCPU number, then by their first access; those with most accesses if there are too many."""
    tids = accesses["tid"].unique(maintain_order=True).to_list()
    vcpu = dict(accesses.group_by("tid").agg(pl.col("vcpu").max()).iter_rows())
    tids.sort(key=lambda tid: vcpu[tid] if vcpu[tid] >= 0 else MAX_ACCESSORS)
    if len(tids) <= MAX_ACCESSORS:
        return tids
    notes.append(f"only the {MAX_ACCESSORS} threads with most accesses of {len(tids)} are done again")
    kept = accesses.group_by("tid").len().sort("len", "tid", descending=[True, False])["tid"].head(MAX_ACCESSORS)
    return [tid for tid in tids if tid in set(kept)]
