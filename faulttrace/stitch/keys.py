"""Search in time within groups (threads, pages), a whole array of questions at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import IncompleteData

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

NEVER: Final = 1 << 62
"""A time after every event: an interval whose end was not seen."""
_PLACE_BITS: Final = 40
"""Of a place among all events: 2**40 of them in 2**23 threads."""


class Ids:
    """Dense numbers 0.. for the distinct values of an array (thread ids, pages)."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        # numpy.unique hashes, which takes three times as long as sorting here.
        ranked = np.sort(values)
        first = np.ones(len(ranked), bool)
        first[1:] = ranked[1:] != ranked[:-1]
        self.values = ranked[first]

    def __len__(self) -> int:
        return len(self.values)

    def of(self, values: npt.NDArray[Any]) -> I64:
        """The number of each value, -1 for one that is unknown."""
        if not len(self.values):
            return np.full(len(values), -1, np.int64)
        at = np.searchsorted(self.values, values).clip(max=len(self.values) - 1)
        return np.where(self.values[at] == values, at, -1).astype(np.int64)


@dataclass(frozen=True)
class Axis:
    """The time axis of a trace; packs (group, time) into one sortable integer."""

    start_ns: int
    bits: int

    @classmethod
    def spanning(cls, ts_ns: I64) -> Axis:
        """An axis that holds all of `ts_ns` (sorted)."""
        if not len(ts_ns):
            return cls(0, 1)
        return cls.between(int(ts_ns[0]), int(ts_ns[-1]))

    @classmethod
    def between(cls, start_ns: int, end_ns: int) -> Axis:
        """An axis from the first time to the last."""
        return cls(start_ns, int(end_ns - start_ns + 3).bit_length())

    def pack(self, group: I64, ts_ns: I64) -> I64:
        """Keys that sort by (group, time). Times outside the axis stay just outside it."""
        if len(group) and int(group.max()).bit_length() + self.bits > 63:
            raise IncompleteData("the trace is too long to be stitched as a whole: cut it with record -d")
        # Room for one time before all events (0) and one after them.
        offset = np.minimum(np.maximum(ts_ns - self.start_ns + 1, 0), (1 << self.bits) - 1)
        return (group << self.bits) | offset


class Placed(Protocol):
    """Events with a thread and a place among all events."""

    thread: I64
    pos: I64


class Index:
    """Rows of (group, time), searchable. Rows are numbered as they were given; -1 stands for none."""

    def __init__(self, axis: Axis, group: I64, ts_ns: I64) -> None:
        self._axis = axis
        keys = axis.pack(group, ts_ns)
        self.order: I64 = np.argsort(keys, kind="stable").astype(np.int64)
        self._keys = keys[self.order]

    @classmethod
    def by_place(cls, rows: Placed) -> Index:
        """An index of events whose "times" are their places in the trace: it tells apart what has one time stamp."""
        return cls(Axis(0, _PLACE_BITS), rows.thread, rows.pos)

    def last_until(self, group: I64, ts_ns: I64 | int) -> I64:
        """Row of the last event of each group at or before each time."""
        if not len(self._keys):
            return np.full(len(group), -1, np.int64)
        at = np.searchsorted(self._keys, self._pack(group, ts_ns), side="right") - 1
        return self._rows(at, group)

    def first_from(self, group: I64, ts_ns: I64 | int) -> I64:
        """Row of the first event of each group at or after each time."""
        if not len(self._keys):
            return np.full(len(group), -1, np.int64)
        at = np.searchsorted(self._keys, self._pack(group, ts_ns), side="left")
        return self._rows(at, group)

    def count(self, group: I64, from_ns: I64, until_ns: I64) -> I64:
        """How many events of each group lie within [from_ns, until_ns]."""
        first = np.searchsorted(self._keys, self._pack(group, from_ns), side="left")
        after = np.searchsorted(self._keys, self._pack(group, until_ns), side="right")
        return np.where(group >= 0, after - first, 0).astype(np.int64)

    def _pack(self, group: I64, ts_ns: I64 | int) -> I64:
        return self._axis.pack(np.maximum(group, 0), np.asarray(ts_ns, np.int64))

    def _rows(self, at: npt.NDArray[np.intp], group: I64) -> I64:
        inside = (at >= 0) & (at < len(self._keys)) & (group >= 0)
        safe = np.where(inside, at, 0)
        inside &= self._keys[safe] >> self._axis.bits == group
        return np.where(inside, self.order[safe], -1)


def take(values: npt.NDArray[Any], rows: I64, absent: int) -> npt.NDArray[Any]:
    """`values[rows]`, and `absent` where the row is -1."""
    if not len(values):
        return np.full(len(rows), absent, values.dtype)
    return np.where(rows >= 0, values[rows], np.asarray(absent, values.dtype))


def rank_within(group: I64, order_by: I64) -> I64:
    """0, 1, 2... within each group, by `order_by`."""
    rank = np.zeros(len(group), np.int64)
    if len(group):
        order = np.lexsort((order_by, group))
        sorted_group = group[order]
        first = np.concatenate(([True], sorted_group[1:] != sorted_group[:-1]))
        starts = np.flatnonzero(first)
        rank[order] = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return rank


def last_and_since(thread: I64, ts_ns: I64, since_ns: I64) -> I64:
    """Rows (in order of time) at or after their thread's `since_ns`, and of each thread the last one before it."""
    if not len(thread):
        return np.zeros(0, np.int64)
    since = ts_ns >= since_ns[thread]
    last = np.full(len(since_ns), -1, np.int64)
    earlier = np.flatnonzero(~since)
    last[thread[earlier]] = earlier  # of several the last stays
    return np.union1d(np.flatnonzero(since), last[last >= 0])
