"""The BPF ring buffer read in bulk: one numpy view a turn, never a Python call an event.

Layout (kernel/bpf/ringbuf.c): a consumer page, a producer page, then the data, mapped twice so that a record that
wraps is still contiguous. A record is an 8-byte header (length with BUSY and DISCARD bits, page offset) and its
data, rounded up to 8. All our records have one length, so the ring is an array.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

WINDOW_BYTES: Final = 8 << 20
BUSY: Final = 1 << 31
DISCARD: Final = 1 << 30
_LENGTH: Final = DISCARD - 1

EVENT_DTYPE: Final = np.dtype(
    [
        ("ts_ns", "<i8"),
        ("addr", "<u8"),
        ("ip", "<u8"),
        ("code", "<u8"),
        ("size", "<u8"),
        ("value", "<i8"),
        ("dur_ns", "<i8"),
        ("tgid", "<i4"),
        ("tid", "<i4"),
        ("fd", "<i4"),
        ("vcpu", "<i4"),
        ("cpu", "<i2"),
        ("kind", "u1"),
        ("pad", "V5"),
    ]
)
"""`struct event` of collect/bpf/common.h."""

RECORD_DTYPE: Final = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", EVENT_DTYPE)])
"""A record with its header, as it lies in the ring."""

RECORD_BYTES: Final = RECORD_DTYPE.itemsize

Events = npt.NDArray[Any]
"""Of `EVENT_DTYPE`, perhaps strided."""

COLUMNS: Final = tuple(name for name in EVENT_DTYPE.names or () if name != "pad")
_AT_ONCE: Final = 1 << 13
"""Number of records decoded at a time, so that they stay in the processor's cache for the pass of each column."""


class Block:
    """Room for `rows` events, an array for each column, with `lead` rows before the first for what came earlier."""

    def __init__(self, rows: int, lead: int = 0) -> None:
        self.rows, self.lead = rows, lead
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: np.empty(lead + rows, EVENT_DTYPE.fields[name][0])  # type: ignore[index]
            for name in COLUMNS
        }

    def put(self, at: int, events: Events) -> None:
        """Copy events (a structured array with these columns) to row `at` and on."""
        for begin in range(0, len(events), _AT_ONCE):
            some = events[begin : begin + _AT_ONCE]
            row = self.lead + at + begin
            for name, column in self.columns.items():
                column[row : row + len(some)] = some[name]


class RingReader:
    """Takes whole records out of a ring.

    The data are mapped a window at a time: the kernel puts each page of a mapping into the process's memory at once,
    and the whole ring, mapped twice, would be 128 MiB. A window is mapped in about a millisecond.

    Args:
        consumer: writable, its first 8 bytes are the consumer position.
        producer: readable, its first 8 bytes are the producer position.
        size_bytes: size of the data, a power of two.
        window: offset and length within the data (which lie there twice, one after the other) -> their bytes.
        window_bytes: how much is mapped at a time, a power of two.
    """

    def __init__(
        self,
        consumer: Any,
        producer: Any,
        size_bytes: int,
        window: Callable[[int, int], npt.NDArray[np.uint8]],
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.size_bytes = size_bytes
        self._consumer: npt.NDArray[np.uint64] = np.frombuffer(consumer, np.uint64, 1)
        self._producer: npt.NDArray[np.uint64] = np.frombuffer(producer, np.uint64, 1)
        self._window = window
        self._window_bytes = min(window_bytes, size_bytes)
        self._at = -1
        self._data: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    @classmethod
    def of_map(cls, map_fd: int, size_bytes: int) -> RingReader:
        """Map the ring buffer behind a BPF map's file descriptor."""
        consumer = mmap.mmap(map_fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        producer = mmap.mmap(map_fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        own = os.dup(map_fd)

        def window(offset: int, length: int) -> npt.NDArray[np.uint8]:
            start = 2 * mmap.PAGESIZE + offset
            data = mmap.mmap(own, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
            return np.frombuffer(data, np.uint8)

        reader = cls(consumer, producer, size_bytes, window)
        weakref.finalize(reader, os.close, own)
        return reader

    @property
    def waiting_bytes(self) -> int:
        """Bytes produced and not taken."""
        return int(self._producer[0]) - int(self._consumer[0])

    def take_into(self, out: Block, at: int) -> int:
        """Copy finished records in order into `out` from row `at` on; how many.

        Those after a record still being written stay in the ring, as do those for which `out` has no room.

        Raises:
            ValueError: a record has another length than `EVENT_DTYPE`: the programs are not ours.
        """
        position = int(self._consumer[0])
        start = self._look_at(position & (self.size_bytes - 1))
        here = (len(self._data) - start) // RECORD_BYTES
        count = min((int(self._producer[0]) - position) // RECORD_BYTES, here, out.rows - at)
        if count <= 0:
            return 0
        taken = self._data[start : start + count * RECORD_BYTES]
        # Headers first, data after: a record that is finished in between is left for the next turn.
        length = taken.view(RECORD_DTYPE)["length"].copy()
        busy = (length & BUSY) != 0
        if busy.any():
            count = int(busy.argmax())
            length = length[:count]
        if ((length & _LENGTH) != EVENT_DTYPE.itemsize).any():
            raise ValueError("the ring holds records of an unknown length")
        events = taken[: count * RECORD_BYTES].view(RECORD_DTYPE)["event"]
        kept = (length & DISCARD) == 0
        if not kept.all():
            events = events[kept]
        out.put(at, events)
        self._consumer[0] = position + count * RECORD_BYTES
        return len(events)

    def _look_at(self, start: int) -> int:
        """Map the window in which `start` lies, with room for a record over its end; where `start` is in it."""
        at = start & ~(self._window_bytes - 1)
        if at != self._at:
            self._data = np.empty(0, np.uint8)  # the old one goes first
            self._data = self._window(at, self._window_bytes + min(mmap.PAGESIZE, self.size_bytes))
            self._at = at
        return start - at

    def take(self) -> Block:
        """All finished records, and nothing else, as a new block."""
        out = Block(self.waiting_bytes // RECORD_BYTES)
        used, waiting = 0, -1
        while waiting != self.waiting_bytes:
            waiting = self.waiting_bytes
            used += self.take_into(out, used)
        out.columns = {name: column[:used] for name, column in out.columns.items()}
        out.rows = used
        return out

    def drop(self) -> None:
        """Take all finished records and keep none."""
        room, waiting = Block(_AT_ONCE), -1
        while waiting != self.waiting_bytes:
            waiting = self.waiting_bytes
            self.take_into(room, 0)
