"""Convert stitched faults to a workload, column by column: it needs little more memory than the resulting arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.workload.workload import ACCESS_CODES, UNKNOWN, Ints, Workload, compact

if TYPE_CHECKING:
    import polars

WORKLOAD_COLUMNS: Final = (
    *("fault_id", "vm", "accessor", "tid", "vcpu", "start_ns", "end_ns", "stall_ns", "think_asleep_ns"),
    *("think_preempted_ns", "page", "granule", "access", "cause", "rounds", "ip"),
)
"""Columns of `FAULTS` that a workload is made from."""
_NO_CODE: Final = 255
NO_PROGRESS: Final = "no progress"
"""Prefix of the note about accesses that faulted repeatedly until the recording ended."""


def workload_from_faults(
    faults: polars.DataFrame,
    *,
    meta: Any = None,
    page_bytes: int = 4096,
    begin_ns: int | None = None,
    end_ns: int | None = None,
) -> Workload:
    """The workload behind stitched faults (columns of `faulttrace.schema.FAULTS`).

    Faults whose end was not seen, or whose cause is not in `CAUSES`, are left out and counted in `notes`. Think time is
    from the previous resume to the fault; where stitched times overlap slightly it is 0. In a synthetic trace stalls
    are unknown (-1) and each accessor ends with its last fault.

    Args:
        faults: stitched faults of one virtual machine or process
        meta: the trace's `Meta` (for the clock's start and end, the recorded windows and the origin), if there is one
        page_bytes: native page
        begin_ns: CLOCK_MONOTONIC of the beginning of the recording, if `meta` is not given
        end_ns: CLOCK_MONOTONIC of its end, likewise
    """
    notes: list[str] = []
    clock = getattr(meta, "clock", None)
    begin = begin_ns if begin_ns is not None else _clock(clock, "start_ns")
    end = end_ns if end_ns is not None else _clock(clock, "end_ns")
    cause = _codes(faults["cause"], CAUSES)
    ended = faults["end_ns"].is_not_null().to_numpy()
    known = ended & (cause != _NO_CODE)
    notes += _left_out(faults, ended, known)
    kind = _codes(faults["accessor"], ACCESSORS)
    kind[kind == _NO_CODE] = ACCESSORS.index("vmm")
    keys = (kind, *(faults[name].to_numpy() for name in ("vcpu", "vm", "tid")))
    rows, starts = _by_accessor(faults, np.flatnonzero(~known), keys)
    first_rows = starts[:-1]
    start = faults["start_ns"].to_numpy()[rows].astype(np.int64, copy=False)
    finish = faults["end_ns"].fill_null(0).to_numpy()[rows].astype(np.int64, copy=False)
    if begin is None:
        begin = int(start.min()) if start.size else 0
    if end is None or (finish.size and end < finish.max()):
        end = int(finish.max()) if finish.size else begin
    think = start.copy()
    think[1:] -= finish[:-1]
    think[first_rows] = start[first_rows] - begin
    if overlaps := int(np.count_nonzero(think < 0)):
        notes.append(f"{overlaps} faults begin before the same thread's previous fault ended; their think time is 0")
    np.maximum(think, 0, out=think)
    stall = faults["stall_ns"].fill_null(UNKNOWN).to_numpy()[rows].astype(np.int64, copy=False)
    synthetic = getattr(meta, "origin", "") == "synthetic"
    if not synthetic:
        unmeasured = stall < 0
        stall[unmeasured] = finish[unmeasured] - start[unmeasured]
    names = tuple(_accessor_name(*(int(key[row]) for key in keys)) for row in rows[first_rows])
    tail = np.zeros(first_rows.size, np.int64) if synthetic else np.maximum(end - finish[starts[1:] - 1], 0)
    del finish
    in_windows = _classes_in_windows(cause[rows], start, getattr(meta, "windows", None) or (), notes)
    access = _codes(faults["access"], tuple(ACCESS_CODES))
    access[access == _NO_CODE] = ACCESS_CODES["r"]
    page = _pages(faults, rows, page_bytes, notes)
    start -= begin
    return Workload(
        accessor_start=starts,
        think_ns=think,
        page=page,
        access=access[rows],
        cause=in_windows,
        recorded_stall_ns=stall,
        recorded_start_ns=start,
        accessor_kind=kind[rows[first_rows]],
        accessor_name=names,
        tail_ns=tail,
        asleep_ns=_part_of_think(faults, "think_asleep_ns", rows, think, _off_stage(starts, kind[rows[first_rows]])),
        preempted_ns=_part_of_think(faults, "think_preempted_ns", rows, think),
        page_bytes=page_bytes,
        clock_start_ns=begin,
        resume_ns=_resumed_ns(meta, begin, start[(kind == ACCESSORS.index("vcpu"))[rows]]),
        origin=str(getattr(meta, "origin", "recorded")),
        notes=tuple(notes),
    )


def _resumed_ns(meta: object, begin_ns: int, of_vcpus: Ints) -> int:
    """When the guest began to run, ns from the beginning: as the lab recorded it, else its vCPUs' first fault."""
    told = (getattr(meta, "lab", None) or {}).get("base_ns")
    if told:
        return max(int(told) - begin_ns, 0)
    return max(int(of_vcpus.min()), 0) if of_vcpus.size else 0


def _left_out(faults: polars.DataFrame, ended: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> list[str]:
    """Notes on which faults are left out, and why. `ended`: the end was seen; `known`: and the cause is known."""
    notes = []
    if unknown := int(ended.size - np.count_nonzero(ended)):
        notes.append(f"{unknown} faults left out: their end was not seen")
        notes += _no_progress(faults.filter(faults["end_ns"].is_null()))
    if odd := int(np.count_nonzero(ended) - np.count_nonzero(known)):
        notes.append(f"{odd} faults left out: their cause is not one of {', '.join(CAUSES)}")
    return notes


def _pages(faults: polars.DataFrame, rows: Ints, page_bytes: int, notes: list[str]) -> npt.NDArray[Any]:
    """The native page of each row; a fault on an unknown page (granule 0) gets a page of its own."""
    page = faults["page"].to_numpy()[rows].astype(np.uint64, copy=False) // np.uint64(page_bytes)
    unknown = np.flatnonzero(faults["granule"].to_numpy()[rows] == 0) if "granule" in faults.columns else rows[:0]
    if unknown.size:
        page = page.copy()
        page[unknown] = page.max() + np.uint64(1) + np.arange(unknown.size, dtype=np.uint64)
        notes.append(
            f"{unknown.size} faults on unknown pages: each is replayed on a page of its own, so the number of first "
            "touches is an upper bound"
        )
    return compact(page)


def _no_progress(unended: polars.DataFrame) -> list[str]:
    """Accesses that faulted repeatedly until the recording ended: no mechanism can replay their stall."""
    if "rounds" not in unended.columns:
        return []
    stuck = unended.filter((unended["rounds"] > 1) & (unended["cause"] == "stage2")).sort("rounds", descending=True)
    if stuck.is_empty():
        return []
    vcpu, rounds, ip, page = stuck.select("vcpu", "rounds", "ip", "page").row(0)
    more = f" (and {len(stuck) - 1} more such)" if len(stuck) > 1 else ""
    return [
        f"{NO_PROGRESS}: vcpu {vcpu} faulted {rounds} times at rip {ip or 0:#x} on page {page:#x} and was not seen to "
        f"get past{more}; the replay leaves it out and counts what follows as work: no row says how that guest fared"
    ]


def _off_stage(starts: Ints, kind: npt.NDArray[np.uint8]) -> Ints:
    """Rows for which it is not known whether the accessor ran during its think time.

    These are the first fault of each accessor and, if there are vCPUs, all faults of other accessors: such a thread may
    be a vCPU's own thread outside the guest.
    """
    unknown = np.zeros(int(starts[-1]), bool)
    unknown[starts[:-1]] = True
    if (kind == 0).any():
        unknown |= np.repeat(kind != 0, np.diff(starts))
    return np.flatnonzero(unknown)


def _part_of_think(
    faults: polars.DataFrame, name: str, rows: Ints, think: Ints, unknown_rows: Ints | None = None
) -> Ints:
    """The column `name` in the order of `rows`; empty if it has no values, as in traces without scheduling.

    At `unknown_rows` it is the whole think time: what the accessor did is not known, and a guess must not occupy a CPU
    that others need.
    """
    if name not in faults.columns or faults[name].null_count() == len(faults):
        return np.zeros(0, np.int64)
    if unknown_rows is None and not faults[name].max():
        return np.zeros(0, np.int64)
    part = np.minimum(faults[name].fill_null(0).to_numpy()[rows].astype(np.int64, copy=False), think)
    if unknown_rows is not None:
        part[unknown_rows] = think[unknown_rows]
    return part


def _codes(words: polars.Series, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Index of each word in `names`; `_NO_CODE` if it is not there."""
    import polars as pl

    coded = words.cast(pl.Enum(names), strict=False).to_physical()
    return coded.cast(pl.UInt8).fill_null(_NO_CODE).to_numpy(writable=True)


def _by_accessor(faults: polars.DataFrame, left_out: Ints, keys: Sequence[npt.NDArray[Any]]) -> tuple[Ints, Ints]:
    """The rows of `faults` grouped by accessor, each in time order, and where each accessor begins.

    Accessors are in the order of `keys`. Stitched faults are already in time order, so one stable sort by a small
    integer is enough.
    """
    start, fault_id = faults["start_ns"], faults["fault_id"]
    accessor = _dense(keys)
    count = int(accessor.max()) + 1 if accessor.size else 0
    if count < 1 << 16:
        accessor = accessor.astype(np.uint16)  # numpy sorts these by radix
    if start.is_sorted() and fault_id.is_sorted():
        rows = np.argsort(accessor, kind="stable")
    else:
        rows = np.lexsort((fault_id.to_numpy(), start.to_numpy(), accessor))
    if left_out.size:
        keep = np.ones(accessor.size, bool)
        keep[left_out] = False
        rows = rows[keep[rows]]
        sizes = np.bincount(accessor[keep], minlength=count)
    else:
        sizes = np.bincount(accessor, minlength=count)
    return rows, np.concatenate([[0], np.cumsum(sizes[sizes > 0])]).astype(np.int64)


def _dense(keys: Sequence[npt.NDArray[Any]]) -> Ints:
    """A number from 0 for each row: equal for equal `keys`, and in the order of the keys."""
    number = np.zeros(keys[0].size, np.int64)
    for key in keys:
        place, count = _places(key)
        if count > 1:
            number, _ = _places(number * count + place)
    return number


def _places(values: npt.NDArray[Any]) -> tuple[Ints, int]:
    """Index of each value among the sorted distinct values, and their number. Expects few of them in many rows."""
    import polars as pl

    distinct = pl.Series(values).unique().sort().to_numpy()
    if distinct.size < 2:
        return np.zeros(values.size, np.int64), distinct.size
    low, high = int(distinct[0]), int(distinct[-1])
    if high - low > values.size + (1 << 16):
        return np.searchsorted(distinct, values), distinct.size
    table = np.zeros(high - low + 1, np.int64)
    table[distinct - low] = np.arange(distinct.size)
    return table[values - low], distinct.size


def _clock(clock: Any, key: str) -> int | None:
    value: Any = clock.get(key) if isinstance(clock, dict) else getattr(clock, key, None)
    return int(value) if value else None


def _accessor_name(kind: int, vcpu: int, _vm: int, tid: int) -> str:
    return f"vcpu{vcpu}" if kind == 0 and vcpu >= 0 else f"{ACCESSORS[kind]}:{tid}"


def _classes_in_windows(
    cause: npt.NDArray[np.uint8], start: Ints, windows: Any, notes: list[str]
) -> npt.NDArray[np.uint8]:
    """Causes; a write-protect fault inside a recorded window becomes ``window``: the window caused it, not a page."""
    protect, window = CAUSES.index("write-protect"), CAUSES.index("window")
    changed = 0
    for item in windows:
        begin, end = _clock(item, "start_ns") or 0, _clock(item, "end_ns") or 0
        inside = (cause == protect) & (start >= begin) & (start < end)
        cause = np.where(inside, np.uint8(window), cause)
        changed += int(inside.sum())
    if changed:
        notes.append(f"{changed} write-protect faults lie in a recorded window: replayed as its effect")
    return cause
