"""Storage and page cache in the compiled loop: reads through the page cache, and neighbours placed with a fault."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from faultreplay.replay.engine.jit import inline, part
from faultreplay.replay.engine.layout import INF, NEVER, R_ACQUIRED, R_BUSY, R_BYTES, R_FREE_AT, R_SLOTS, R_WAIT
from faultreplay.replay.engine.opcodes import (
    AROUND_CACHED,
    AROUND_DEVICE,
    AROUND_MARKS,
    AROUND_PAGES,
    READ_AFTER,
    READ_BEFORE,
    READ_DEVICE,
    READ_ONWARD,
    READ_OVER,
    READ_PAGE_BYTES,
    READ_PAGE_PS,
)

DEPTH: Final = 0
"""Of a device: requests at once, 0 for no limit; behind it when each of its places is free, a heap."""

MARK_SHARE: Final = 4
"""The mark of a window that was read around a page is a quarter of it before its end (do_sync_mmap_readahead())."""

# what a row's look-ups came to, bits of `Files.found`
ASKED: Final = 1  # nobody had asked for the granule: this row brings it
JOINED: Final = 2  # it was on its way
THERE: Final = 4
HIT: Final = 8  # all of it was in the page cache
WAITED: Final = 16  # some of it was on its way there
READ_ITSELF: Final = 32


class Files(NamedTuple):
    """Files that content is read from; P native pages, those that matter in order of address."""

    of_row: Any
    """int32[F]: the first page of each row's granule; or empty: no storage, and no neighbours placed"""
    cached_at: Any
    """int64[devices, P] ns: since when the page cache has it, or when it will; NEVER: nobody read it"""
    marked: Any
    """uint8[devices, P]: 1 where whoever finds the page has the file read on (the kernel's PG_readahead)"""
    granule: Any
    """int32[P]: the tracked granule that begins there; -1: none"""
    placed: Any
    """uint8[P]: 1 where a page without a tracked granule was placed"""
    devices: Any
    """int64[devices, 1 + places]: DEPTH, then when each place is free, ns"""
    found: Any
    """uint8[F]: bits ASKED to READ_ITSELF; or empty: nobody wants to know"""
    granule_pages: Any
    """int64: native pages of a granule"""


@part
def read_pages(rs: Any, files: Any, op: Any, r: Any, row: Any, t: Any, latency: Any) -> Any:  # noqa: PLR0917
    """Row `row` reads its granule at `t` by the operation `op`, from storage instance `r`.

    How long until all of it is in the page cache; and of that how long the request waited for the device.
    """
    cached, marked = files.cached_at[op[READ_DEVICE]], files.marked[op[READ_DEVICE]]
    first, count = np.int64(files.of_row[row]), files.granule_pages
    if op[READ_OVER]:
        count = op[READ_OVER]
        first -= first % count
    count = min(count, cached.size - first)  # a file may end within the range
    until, missing = t, np.int64(0)
    for page in range(first, first + count):
        if cached[page] == NEVER:
            missing += 1
        else:
            until = max(until, cached[page])
            if marked[page]:
                marked[page] = 0
                _read_on(rs, files, op, r, page, t, latency)
    if files.found.size:
        files.found[row] |= READ_ITSELF if missing else (WAITED if until > t else HIT)
    if missing == 0:
        return until - t, np.int64(0)
    low = max(min(first, first - op[READ_BEFORE]), 0)
    high = min(max(first + count, first + op[READ_AFTER]), cached.size)
    brings = np.int64(0)
    for page in range(low, high):
        brings += np.int64(cached[page] == NEVER)
    start, end = _request(rs, files.devices[op[READ_DEVICE]], r, t, brings * op[READ_PAGE_PS] // 1000, latency)
    rs[r, R_BYTES] += brings * op[READ_PAGE_BYTES]
    mark = high - op[READ_ONWARD] // MARK_SHARE if op[READ_ONWARD] > 1 else high
    for page in range(low, high):
        if cached[page] == NEVER:
            cached[page] = end
            marked[page] = page == mark
    return max(until, end) - t, start - t


@part
def _read_on(rs: Any, files: Any, op: Any, r: Any, page: Any, t: Any, latency: Any) -> None:  # noqa: PLR0917
    """Page `page` had a mark: the window behind what has been read from there on is read, and nobody waits for it.

    As page_cache_async_ra(): one whole window, whose first page bears the next mark.
    """
    cached, most = files.cached_at[op[READ_DEVICE]], op[READ_ONWARD]
    low = page + 1
    while low < min(page + most, cached.size) and cached[low] != NEVER:
        low += 1
    high = min(low + most, cached.size)
    if low > page + most or low >= high or cached[low] != NEVER:
        return
    brings = np.int64(0)
    for one in range(low, high):
        brings += np.int64(cached[one] == NEVER)
    _, end = _request(rs, files.devices[op[READ_DEVICE]], r, t, brings * op[READ_PAGE_PS] // 1000, latency)
    rs[r, R_BYTES] += brings * op[READ_PAGE_BYTES]
    for one in range(low, high):
        if cached[one] == NEVER:
            cached[one] = end
    files.marked[op[READ_DEVICE], low] = 1


@inline
def _request(rs: Any, device: Any, r: Any, t: Any, on_wire: Any, latency: Any) -> Any:  # noqa: PLR0917
    """One request to a device at `t`: (its bytes begin to move, it is over).

    Places are given first come first served, then the bytes move one request at a time, and the latency passes.
    """
    start = t
    if device[DEPTH]:
        start = max(t, device[1])
    begin = max(start, rs[r, R_FREE_AT]) if on_wire else start
    end = begin + on_wire + latency
    if device[DEPTH]:
        _replace_least(device, end)
    rs[r, R_ACQUIRED] += 1
    rs[r, R_WAIT] += begin - t
    rs[r, R_BUSY] += on_wire
    rs[r, R_SLOTS] += end - start
    rs[r, R_FREE_AT] = max(rs[r, R_FREE_AT], begin + on_wire)
    return begin, end


@inline
def _replace_least(heap: Any, value: Any) -> None:
    """The least of heap[1 : 1 + DEPTH] becomes `value`."""
    at, last = 1, heap[DEPTH]
    while 2 * at <= last:
        child = 2 * at
        if child < last and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@part
def place_around(files: Any, present_at: Any, op: Any, row: Any, t: Any, each: Any) -> Any:  # noqa: PLR0917
    """What placing the pages of the aligned range around row `row` that nobody has asked for takes from `t` on, ns.

    With AROUND_MARKS they are there afterwards, one after the other, `each` ns apart.
    """
    mark = op[AROUND_MARKS]
    pages = op[AROUND_PAGES]
    first = np.int64(files.of_row[row])
    first -= first % pages
    count = np.int64(0)
    for page in range(first, min(first + pages, files.granule.size)):
        if op[AROUND_CACHED] and (
            files.marked[op[AROUND_DEVICE], page] or not NEVER < files.cached_at[op[AROUND_DEVICE], page] <= t
        ):
            continue
        granule = files.granule[page]
        if granule >= 0:
            if present_at[granule] != NEVER:
                continue
            count += 1
            if mark:
                present_at[granule] = t + each * count
        elif files.placed[page] == 0:
            count += 1
            if mark:
                files.placed[page] = 1
    return each * count


@inline
def mark_found(found: Any, row: Any, bit: Any) -> None:
    """Row `row` came to this, if anybody wants to know."""
    if found.size and row >= 0:
        found[row] |= bit


@part
def settle(files: Any, present_at: Any) -> None:
    """What was brought before the guest runs is there when it begins, and the device has nothing to do."""
    for granule in range(present_at.size):
        if present_at[granule] != NEVER and present_at[granule] < INF:
            present_at[granule] = 0
    for device in range(files.devices.shape[0]):
        for place in range(files.devices[device, DEPTH]):
            files.devices[device, 1 + place] = 0
        for page in range(files.cached_at.shape[1]):
            if files.cached_at[device, page] != NEVER:
                files.cached_at[device, page] = 0
