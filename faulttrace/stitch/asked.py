"""What the whole trace tells of its userfaults: until when a page is asked for, which pages are placed at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import UFFD_EVENT_PAGEFAULT, Kind
from faultreplay.faulttrace.stitch.keys import I64, U64, Bools, take
from faultreplay.faulttrace.stitch.placements import RESOLUTION

if TYPE_CHECKING:
    import polars as pl

USERFAULT_KINDS: Final = (Kind.UFFD_MSG, *(Kind(kind) for kind in RESOLUTION))
ASKED_COLUMNS: Final = ("ts_ns", "kind", "tgid", "fd", "addr", "ip", "size", "value")
"""The columns of events that this is found from."""
_MOST_PARTS: Final = 64
_FEW_PAGES: Final = 16
"""Ranges of more pages are kept as ranges, not page by page."""


class Asked:
    """Facts of all messages and placements of a trace.

    Attributes:
        last_message_ns: the last page-fault message; -1: there is none.
    """

    def __init__(self, granule: int) -> None:
        """`granule`: the greatest page size of the memory that is asked for, bytes."""
        self._mask = ~np.uint64(granule - 1)
        self.last_message_ns = -1
        self._pages: list[tuple[U64, I64]] = []
        self._ended: list[tuple[U64, I64]] = []
        self._wide: tuple[U64, U64] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        self._last_wide_ns = -1
        self._lo: U64 = np.zeros(0, np.uint64)
        self._hi: U64 = np.zeros(0, np.uint64)

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame], granule: int) -> Asked:
        """Of events of `USERFAULT_KINDS` (columns `ASKED_COLUMNS`), in order of time."""
        asked = cls(granule)
        for frame in frames:
            asked._add({name: frame[name].to_numpy() for name in ASKED_COLUMNS})
        for parts in (asked._pages, asked._ended):
            parts[:] = [_last_of(parts)]
        return asked

    def _add(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        ts_ns = columns["ts_ns"].astype(np.int64)
        message = columns["kind"] == Kind.UFFD_MSG
        asks = message & (columns["ip"] == UFFD_EVENT_PAGEFAULT)
        if asks.any():
            self.last_message_ns = int(ts_ns[asks][-1])
            self._pages.append(_last_of([(columns["addr"][asks].astype(np.uint64) & self._mask, ts_ns[asks])]))
        done = ~message & (columns["value"] >= 0)
        self._add_ended(columns["addr"][done].astype(np.uint64), columns["size"][done].astype(np.uint64), ts_ns[done])
        places = done & ~np.isin(columns["kind"], [Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER])
        lo = columns["addr"][places].astype(np.uint64)
        self._lo, self._hi = _union(self._lo, self._hi, lo, lo + columns["size"][places].astype(np.uint64))
        for parts in (self._pages, self._ended):
            if len(parts) > _MOST_PARTS:
                parts[:] = [_last_of(parts)]

    def last_ns(self, page: U64) -> I64:
        """When each page was last asked for; -1: never."""
        return _looked_up(self._pages, page & self._mask)

    def last_placed_ns(self, page: U64) -> I64:
        """When an ioctl on each page last ended, on any userfaultfd; -1: none. Of wide ranges the last one's time."""
        wide = _within(*self._wide, page)
        return np.maximum(_looked_up(self._ended, page & self._mask), np.where(wide, self._last_wide_ns, -1))

    def placed(self, page: U64) -> Bools:
        """Whether each page is placed at any time, in whichever process."""
        return _within(self._lo, self._hi, page)

    def _add_ended(self, lo: U64, size: U64, ts_ns: I64) -> None:
        """Range ioctls that ended: one page or a few by page, the others together."""
        granule = int(~self._mask) + 1
        first = lo & self._mask
        pages = ((lo + np.maximum(size, 1) - 1 - first) // np.uint64(granule)).astype(np.int64) + 1
        few = pages <= _FEW_PAGES
        counts = pages[few]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        page = np.repeat(first[few], counts) + within.astype(np.uint64) * np.uint64(granule)
        self._ended.append(_last_of([(page, np.repeat(ts_ns[few], counts))]))
        if not few.all():
            self._wide = _union(*self._wide, lo[~few], lo[~few] + size[~few])
            self._last_wide_ns = int(ts_ns[~few].max())


def _within(lo: U64, hi: U64, page: U64) -> Bools:
    """Whether each page lies in one of these ranges, which are in order."""
    at = np.searchsorted(lo, page, side="right").astype(np.int64) - 1
    inside: Bools = (at >= 0) & (page < take(hi, at, 0))
    return inside


def space_of(tgid: I64, fd: I64) -> U64:
    """One number for each userfaultfd: its reader's process and descriptor."""
    return (tgid.astype(np.int64) << 32 | (fd.astype(np.int64) & 0xFFFFFFFF)).astype(np.uint64)


def _last_of(parts: list[tuple[U64, I64]]) -> tuple[U64, I64]:
    """Distinct keys in order, each with its last value."""
    key = np.concatenate([np.zeros(0, np.uint64), *(part[0] for part in parts)])
    value = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    order = np.lexsort((value, key))
    key, value = key[order], value[order]
    last = np.ones(len(key), bool)
    last[:-1] = key[1:] != key[:-1]
    return key[last], value[last]


def _looked_up(parts: list[tuple[U64, I64]], keys: U64) -> I64:
    if not parts or not len(parts[0][0]):
        return np.full(len(keys), -1, np.int64)
    known, value = parts[0]
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, value[at], -1)


def _union(lo: U64, hi: U64, more_lo: U64, more_hi: U64) -> tuple[U64, U64]:
    """Ranges, and more of them, as few that do not touch."""
    lo, hi = np.concatenate([lo, more_lo]), np.concatenate([hi, more_hi])
    order = np.argsort(lo, kind="stable")
    lo, hi = lo[order], np.maximum.accumulate(hi[order])
    first = np.ones(len(lo), bool)
    first[1:] = lo[1:] > hi[:-1]
    last = np.append(first[1:], True)[: len(lo)]
    return lo[first], hi[last]
