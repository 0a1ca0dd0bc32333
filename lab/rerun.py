"""A recorded trace as access lists: the same pages, accesses and think times, for a real guest to do again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from faulttrace.errors import IncompleteData
from faulttrace.store import open_trace
from lab.lists import OP_READ, OP_WRITE, AccessList, tag_ops
from lab.spec import MAX_ACCESSORS

_NOT_MEMORY = ("mmio", "exit")


def lists_from_trace(path: Path, stride: int) -> tuple[list[AccessList], int, list[str]]:
    """Lists, number of 4 KiB pages, and notes on what was left out.

    Distinct pages are numbered in the order of their addresses, `stride` 4 KiB pages apart. Faults of vCPUs only where
    there are any; else of all threads. An execute fault is done as a read. The first think is the time from the first
    fault of all.

    Raises:
        IncompleteData: the trace holds no memory fault.
    """
    faults = open_trace(path).faults().filter(~pl.col("cause").is_in(_NOT_MEMORY))
    notes = []
    if (faults["accessor"] == "vcpu").any():
        others = faults.height - int((faults["accessor"] == "vcpu").sum())
        faults = faults.filter(pl.col("accessor") == "vcpu")
        if others:
            notes.append(f"{others} faults of other threads than vCPUs are not done again")
    if faults.is_empty():
        raise IncompleteData(f"{path}: holds no memory fault that could be done again")
    busiest = faults.group_by("tid").len().sort("len", "tid", descending=[True, False])["tid"].to_list()
    if len(busiest) > MAX_ACCESSORS:
        notes.append(f"only the {MAX_ACCESSORS} threads with most faults of {len(busiest)} are done again")
        faults = faults.filter(pl.col("tid").is_in(busiest[:MAX_ACCESSORS]))
    faults = faults.sort("start_ns", "tid")
    pages, index = np.unique(faults["page"].to_numpy(), return_inverse=True)
    faults = faults.with_columns(index=pl.Series(index.astype(np.int64)))
    origin_ns = int(faults["start_ns"][0])
    lists: list[AccessList] = []
    for tid in faults["tid"].unique(maintain_order=True):
        mine = faults.filter(pl.col("tid") == tid)
        think = mine["think_ns"].fill_null(0).to_numpy().copy()
        think[0] = int(mine["start_ns"][0]) - origin_ns
        kind = np.where(mine["access"].to_numpy() == "w", OP_WRITE, OP_READ).astype(np.int64)
        lists.append(AccessList(mine["index"].to_numpy() * stride, np.maximum(think, 0), tag_ops(kind, len(lists))))
    return lists, len(pages) * stride, notes
