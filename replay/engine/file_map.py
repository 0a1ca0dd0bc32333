"""Files behind guest memory as dense arrays: which pages matter, and what of them the page cache has at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine.storage import Files
from faultreplay.replay.language.program import Storage
from faultreplay.replay.language.storage import MOST_BYTES

Ints = npt.NDArray[np.int64]

MOST_PAGES = 1 << 27
"""Of the ranges that matter: 512 GiB in pages of 4 KiB, some gigabytes of arrays."""


@dataclass(frozen=True)
class FileMap:
    """Pages of memory, in blocks, as places in arrays; between blocks that are no neighbours lies another.

    No readahead and no aligned range is longer than a block, so none reaches over that.
    A block is 2 MiB, or the longest readahead where that is longer.
    """

    blocks: Ints
    """int64[B]: those that matter, in order"""
    rank: Ints
    """int64[B]: block of the arrays"""
    block_pages: int

    @property
    def pages(self) -> int:
        """Places in the arrays."""
        return (int(self.rank[-1]) + 2) * self.block_pages if self.rank.size else 0

    def at(self, page: npt.NDArray[np.integer]) -> Ints:
        """int64: the place of each page, which lies in a block that matters."""
        block = page // self.block_pages
        place: Ints = self.rank[np.searchsorted(self.blocks, block)] * self.block_pages + page % self.block_pages
        return place

    def holds(self, page: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Which pages lie in a block that matters."""
        return np.isin(page // self.block_pages, self.blocks)


def map_of(granules: Ints, granule_pages: int, page_bytes: int, readahead_pages: int = 0) -> FileMap:
    """The map of memory of which these granules (address // size) matter; `readahead_pages`: of the longest window.

    Raises:
        UsageError: more than `MOST_PAGES`.
    """
    block_pages = max(MOST_BYTES // page_bytes, 1)
    while block_pages < readahead_pages:
        block_pages *= 2
    granules = np.unique(granules)
    if granule_pages > block_pages:
        each = granule_pages // block_pages
        blocks = (granules[:, None] * each + np.arange(each)).ravel()
    else:
        blocks = np.unique(granules * granule_pages // block_pages)
    if blocks.size * block_pages > MOST_PAGES:
        size = block_pages * page_bytes >> 20
        raise UsageError(
            f"{blocks.size} ranges of {size} MiB matter: more than can be looked after ({MOST_PAGES:,} pages)"
        )
    apart = np.diff(blocks) != 1
    # a readahead may reach into a block before the first one and behind the last
    rank = np.arange(blocks.size, dtype=np.int64) + int(blocks.size > 0 and blocks[0] > 0)
    rank[1:] += np.cumsum(apart)
    return FileMap(blocks, rank, block_pages)


def cached_at_first(storages: Sequence[Storage], map_: FileMap, packed_pages: int, known: Ints, seed: int) -> Ints:
    """int64[storages, P]: what the page cache has when the guest resumes; P: the map's pages and the packed ones.

    A share is drawn readahead window by window, as it was read and is dropped; `known`: pages of earlier runs.
    """
    total = map_.pages + packed_pages
    cached = np.full((max(len(storages), 1), total), at.NEVER, np.int64)
    for number, storage in enumerate(storages):
        window = max(storage.readahead_pages, 1)
        if storage.cached > 0:
            rng = np.random.default_rng([seed, number, 0xCAC4ED])
            has = rng.random(-(-total // window)) < storage.cached
            cached[number, np.repeat(has, window)[:total]] = 0
        if storage.left:
            cached[number, _around(map_.at(known[map_.holds(known)]), storage.readahead_pages, map_.pages)] = 0
    return cached


def _around(places: Ints, readahead: int, total: int) -> Ints:
    """Places that a read of these with its readahead brings."""
    change = np.zeros(total + 1, np.int64)
    low = np.maximum(places - readahead // 2, 0)
    high = np.minimum(np.maximum(places + readahead - readahead // 2, places + 1), total)
    np.add.at(change, low, 1)
    np.add.at(change, high, -1)
    found: Ints = np.flatnonzero(np.cumsum(change[:-1]) > 0)
    return found


def devices_of(storages: Sequence[Storage]) -> Ints:
    """int64[storages, 1 + places]: each idle."""
    places = max([storage.depth for storage in storages], default=0)
    devices = np.zeros((max(len(storages), 1), 1 + places), np.int64)
    for number, storage in enumerate(storages):
        devices[number, 0] = storage.depth
        devices[number, 1 + storage.depth :] = at.INF  # places of another, deeper one
    return devices


def no_files() -> Files:
    """What a program without storage is given."""
    return Files(
        of_row=np.zeros(0, np.int32),
        cached_at=np.zeros((1, 0), np.int64),
        marked=np.zeros((1, 0), np.uint8),
        granule=np.zeros(0, np.int32),
        placed=np.zeros(0, np.uint8),
        devices=np.zeros((1, 1), np.int64),
        found=np.zeros(0, np.uint8),
        granule_pages=1,
    )
