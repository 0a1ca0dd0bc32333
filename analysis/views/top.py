"""Where a trace's stall comes from: its pages, instructions, threads and ranges, the most stall first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from faultreplay.analysis.views.chosen import Choice, Chosen, chosen_faults

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace

By = Literal["pages", "ips", "threads", "ranges"]
BY: Final[tuple[By, ...]] = ("pages", "ips", "threads", "ranges")
GAP_BYTES: Final = 2 << 20
"""Touched pages further apart than this are two ranges, where no mapping or memory slot is known."""


@dataclass(frozen=True)
class Top:
    """The most stalled of one kind.

    Attributes:
        rows: one row a page, instruction, thread or range; columns by kind: see `top_of`.
        groups: how many there are in all.
        stall_ns: of all chosen faults together, those without a row included.
        unknown: chosen faults that have no row: of an unknown page, without an instruction pointer.
        of: faults of the whole trace.
        chosen: faults that were chosen.
        unended: of these, without an end.
        unjudged: faults without an end that a choice by length leaves out.
    """

    rows: pl.DataFrame
    groups: int
    stall_ns: int
    unknown: int
    of: int
    chosen: int
    unended: int
    unjudged: int


def top_of(
    trace: Trace, by: By, choice: Choice | None = None, limit: int | None = None, progress: Progress | None = None
) -> Top:
    """The `limit` pages, instructions, threads or ranges (all where it is None) with the most stall.

    Every row has `faults`, `unended` (without an end; in no time), `stall_ns` and `longest_ns` (null: none of
    its faults has an end), `share_percent` (of the stall of all chosen faults), `causes`, and

    - pages: `page`, `granule`, `threads` (how many touched it)
    - ips: `ip` (guest instruction pointer), `pages`, `threads`
    - threads: `tid`, `name`, `role`, `vcpu`, `pages`; and as a handler `served` (faults) and `served_ns` (their
      service; null: not known). One that only serves has no faults.
    - ranges: `start`, `size_bytes`, `name` (its mapping, memory slot, or "touched pages"), `pages`, `threads`

    Args:
        trace: opened.
        by: of what.
        choice: which faults.
        limit: how many rows.
        progress: told how much of a stitch is done.

    Raises:
        UsageError: a choice that the trace has not.
    """
    columns = ["vm", "tid", "page", "granule", "cause", "stall_ns", *_MORE.get(by, ())]
    chosen = chosen_faults(trace, choice or Choice(), columns, progress)
    rows, unknown = _GROUPED[by](chosen, trace.meta, limit)
    stall = chosen.frame["stall_ns"]
    total = int(stall.sum() or 0)
    shown = rows if limit is None else rows.head(limit)
    return Top(
        rows=_shared(shown, total),
        groups=rows.height,
        stall_ns=total,
        unknown=unknown,
        of=chosen.of,
        chosen=len(stall),
        unended=stall.null_count(),
        unjudged=chosen.unjudged,
    )


_MORE: Final[Mapping[str, tuple[str, ...]]] = {
    "ips": ("ip",),
    "threads": ("vcpu", "accessor", "handler_tid", "service_ns"),
}


def _pages(chosen: Chosen, meta: Meta, limit: int | None) -> tuple[pl.DataFrame, int]:
    import polars as pl

    known = chosen.frame.filter(pl.col("granule") > 0)
    keys = ["vm", "page", "granule"]
    return _grouped(known, keys, limit, {"threads": pl.col("tid").n_unique()}), chosen.frame.height - known.height


def _ips(chosen: Chosen, meta: Meta, limit: int | None) -> tuple[pl.DataFrame, int]:
    import polars as pl

    known = chosen.frame.filter(pl.col("ip").is_not_null())
    more = {"pages": pl.col("page").filter(pl.col("granule") > 0).n_unique(), "threads": pl.col("tid").n_unique()}
    return _grouped(known, ["vm", "ip"], limit, more), chosen.frame.height - known.height


def _threads(chosen: Chosen, meta: Meta, limit: int | None) -> tuple[pl.DataFrame, int]:
    import polars as pl

    pages = pl.col("page").filter(pl.col("granule") > 0).n_unique()
    first = [pl.col(name).first() for name in ("vcpu", "accessor")]
    faulted = _grouped(chosen.frame, ["vm", "tid"], None, {"pages": pages}, first)
    served = (
        chosen.frame.filter(pl.col("handler_tid") > 0)
        .group_by(tid="handler_tid")
        .agg(
            served=pl.len().cast(pl.Int64),
            served_ns=pl.when(pl.col("service_ns").count() > 0).then(pl.col("service_ns").sum()),
        )
    )
    both = faulted.join(served, on="tid", how="full", coalesce=True)
    told = {t.tid: (t.comm, t.role, t.vcpu, target.tgid) for target in meta.targets for t in target.threads}
    tids = both["tid"].to_list()
    zero = [pl.col(c).fill_null(0) for c in ("faults", "unended", "pages", "served")]
    both = both.with_columns(
        *zero,
        pl.Series("name", [told.get(tid, ("",))[0] for tid in tids], pl.String),
        pl.Series("role", [told.get(tid, ("", "other"))[1] for tid in tids], pl.String),
        pl.col("vcpu").fill_null(-1),
        pl.Series("vm", [told[t][3] if v is None and t in told else v for t, v in zip(tids, both["vm"], strict=True)]),
        pl.col("causes").fill_null(""),
    ).with_columns(
        role=pl.when(pl.col("accessor") == "vcpu")
        .then(pl.lit("vcpu"))
        .when((pl.col("role") == "other") & (pl.col("served") > 0))
        .then(pl.lit("handler"))
        .otherwise(pl.col("role"))
    )
    order = ["vm", "tid", "name", "role", "vcpu", "faults", "unended", "stall_ns", "longest_ns", "causes", "pages"]
    both = both.select([*order, "served", "served_ns"])
    order = ["stall_ns", "faults", "served", "tid"]
    return both.sort(order, descending=[True, True, True, False], nulls_last=True), 0


def _ranges(chosen: Chosen, meta: Meta, limit: int | None) -> tuple[pl.DataFrame, int]:
    import polars as pl

    known = chosen.frame.filter(pl.col("granule") > 0)
    pages = known.select("vm", "page", "granule").unique(["vm", "page"]).sort("vm", "page")
    which, ranges = _places(pages, meta)
    pages = pages.select("vm", "page").with_columns(range=pl.Series(which, dtype=pl.Int64))
    more = {"pages": pl.col("page").n_unique(), "threads": pl.col("tid").n_unique()}
    grouped = _grouped(known.join(pages, on=["vm", "page"], how="left"), ["vm", "range"], None, more)
    table = pl.DataFrame(
        {
            "range": range(len(ranges)),
            "start": pl.Series([r[0] for r in ranges], dtype=pl.UInt64),
            "size_bytes": pl.Series([r[1] for r in ranges], dtype=pl.Int64),
            "name": pl.Series([r[2] for r in ranges], dtype=pl.String),
        },
        schema_overrides={"range": pl.Int64},
    )
    whole = grouped.join(table, on="range", how="left", maintain_order="left")
    first = ["vm", "start", "size_bytes", "name"]
    return whole.select([*first, *(c for c in grouped.columns if c not in ("vm", "range"))]), (
        chosen.frame.height - known.height
    )


_GROUPED: Final[Mapping[By, Callable[[Chosen, Meta, int | None], tuple[pl.DataFrame, int]]]] = {
    "pages": _pages,
    "ips": _ips,
    "threads": _threads,
    "ranges": _ranges,
}


def _grouped(
    frame: pl.DataFrame, keys: list[str], limit: int | None, more: Mapping[str, Any], first: list[Any] | None = None
) -> pl.DataFrame:
    """Sums a group, the most stall first. What is slow to count is counted for the first `limit` groups only; the
    others have nulls there.
    """
    import polars as pl

    stall = pl.col("stall_ns")
    sums = (
        frame.group_by(keys)
        .agg(
            *(first or ()),
            faults=pl.len().cast(pl.Int64),
            unended=stall.null_count().cast(pl.Int64),
            stall_ns=pl.when(stall.count() > 0).then(stall.sum()),
            longest_ns=stall.max(),
        )
        .sort("stall_ns", "faults", *keys, descending=[True, True, *[False] * len(keys)], nulls_last=True)
    )
    shown = sums if limit is None else sums.head(limit)
    inside = frame if limit is None else frame.join(shown.select(keys), on=keys, how="semi")
    causes = pl.col("cause").unique().sort().str.join(" ")
    details = inside.group_by(keys).agg(causes=causes, **{name: one.cast(pl.Int64) for name, one in more.items()})
    return sums.join(details, on=keys, how="left", maintain_order="left")


def _shared(rows: pl.DataFrame, total_ns: int) -> pl.DataFrame:
    import polars as pl

    share = 100 * pl.col("stall_ns") / total_ns if total_ns else pl.lit(None, pl.Float64)
    at = rows.columns.index("longest_ns") + 1
    return rows.with_columns(share_percent=share).select(*rows.columns[:at], "share_percent", *rows.columns[at:])


def _places(pages: pl.DataFrame, meta: Meta) -> tuple[list[int], list[tuple[int, int, str]]]:
    """For each page (sorted by vm, page) the number of its range; and each range's start, length and name.

    The smallest mapping that holds a page, else its memory slot by host or guest address; pages of neither make ranges
    of their own.
    """
    vm = pages["vm"].to_numpy()
    page = pages["page"].to_numpy()
    which = np.full(len(page), -1, np.int64)
    found: list[tuple[int, int, str]] = []
    for tgid in np.unique(vm).tolist():
        low, high = (int(np.searchsorted(vm, tgid, side)) for side in ("left", "right"))
        mine = page[low:high]
        for start, size, name in _named(meta, tgid):
            a, b = np.searchsorted(mine, np.array([start, start + size], np.uint64)).tolist()
            if a < b:
                which[low + a : low + b] = len(found)
                found.append((start, size, name))
        loose = np.flatnonzero(which[low:high] < 0)
        for run in np.split(loose, np.flatnonzero(np.diff(mine[loose]) > GAP_BYTES) + 1) if len(loose) else ():
            last = int(run[-1])
            start, end = int(mine[run[0]]), int(mine[last]) + int(pages["granule"][low + last])
            which[low + run] = len(found)
            found.append((start, end - start, "touched pages"))
    return which.tolist(), found


def _named(meta: Meta, tgid: int) -> list[tuple[int, int, str]]:
    """Start, length and name of what is known of a process's memory; the smallest, which is asked first, comes last."""
    slots = [slot for target in meta.targets if target.tgid == tgid for slot in target.memslots if slot.size_bytes]
    ends = 1 << 64
    by_gpa = [(slot.gpa, slot.size_bytes, f"slot {slot.slot} (guest physical)") for slot in slots]
    by_hva = [(slot.hva, slot.size_bytes, f"slot {slot.slot}") for slot in slots]
    maps = _mappings(meta, tgid)
    told = [part for some in (by_gpa, by_hva, maps) for part in sorted(some, key=lambda one: -one[1])]
    return [(start, size, name) for start, size, name in told if start + size < ends]


def _mappings(meta: Meta, tgid: int) -> list[tuple[int, int, str]]:
    """A process's mappings; one that was seen several times, smaller and larger, is one."""
    found: list[tuple[int, int, str]] = []
    entries = [entry for entry in meta.memory_map if entry.tgid == tgid and entry.end > entry.start]
    for entry in sorted(entries, key=lambda one: (one.name, one.uffd, one.start, -one.end)):
        name = entry.name or (f"uffd {entry.uffd}" if entry.uffd else "anonymous")
        start, size, before = found[-1] if found else (0, 0, "")
        if before == name and entry.start < start + size:
            found[-1] = (start, max(size, entry.end - start), name)
        else:
            found.append((entry.start, entry.end - entry.start, name))
    return found
