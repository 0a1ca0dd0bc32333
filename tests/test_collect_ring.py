"""The bulk reader on rings made by hand: wrap-around, busy and discarded records, foreign lengths."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from faultreplay.collect.backends.ring import BUSY, DISCARD, EVENT_DTYPE, RECORD_BYTES, Block, RingReader


class FakeRing:
    """A ring in ordinary memory, written as the kernel writes it: the data twice, positions that never wrap."""

    def __init__(self, size_bytes: int, window_bytes: int = 1 << 23) -> None:
        self.size = size_bytes
        self.consumer = bytearray(mmap.PAGESIZE)
        self.producer = bytearray(mmap.PAGESIZE + 2 * size_bytes)
        self.reader = RingReader(self.consumer, self.producer, size_bytes, self._window, window_bytes)
        self.position = 0

    def _window(self, offset: int, length: int) -> np.ndarray:
        return np.frombuffer(self.producer, np.uint8, length, mmap.PAGESIZE + offset)

    def put(self, ts_ns: int, flags: int = 0, length: int = EVENT_DTYPE.itemsize) -> int:
        """Append a record; where its header stands."""
        taken = int(np.frombuffer(self.consumer, np.uint64, 1)[0])
        assert self.position + RECORD_BYTES - taken <= self.size, "the kernel would have refused this record"
        record = np.zeros(RECORD_BYTES, np.uint8)
        record[:4].view(np.uint32)[0] = length | flags
        record[8:].view(EVENT_DTYPE)["ts_ns"] = ts_ns
        at = self.position
        for i, byte in enumerate(record.tolist()):
            self._poke((at + i) % self.size, byte)
        self.position += RECORD_BYTES
        np.frombuffer(self.producer, np.uint64, 1)[0] = self.position
        return at

    def commit(self, at: int, flags: int = 0) -> None:
        """Clear the BUSY bit of the record at `at`."""
        for i, byte in enumerate((EVENT_DTYPE.itemsize | flags).to_bytes(4, "little")):
            self._poke((at + i) % self.size, byte)

    def _poke(self, offset: int, byte: int) -> None:
        self.producer[mmap.PAGESIZE + offset] = byte
        self.producer[mmap.PAGESIZE + self.size + offset] = byte

    def take(self) -> list[int]:
        return [int(ts) for ts in self.reader.take().columns["ts_ns"]]


def test_empty_ring_gives_nothing() -> None:
    assert FakeRing(4096).take() == []


@pytest.mark.parametrize("window_bytes", [1 << 23, 512, 128])
def test_records_come_out_once_and_in_order_across_many_wraps(window_bytes: int) -> None:
    ring = FakeRing(4096, window_bytes)  # 46 records and a bit: the wrap falls inside a record each time
    expected, seen = [], []
    sizes = np.random.default_rng(1).integers(1, 46, 200)
    for n in sizes.tolist():
        for _ in range(n):
            expected.append(len(expected))
            ring.put(expected[-1])
        seen += ring.take()
    assert ring.position > 50 * ring.size
    assert seen == expected


def test_a_busy_record_holds_back_what_follows_until_it_is_committed() -> None:
    ring = FakeRing(4096)
    ring.put(1)
    unfinished = ring.put(2, BUSY)
    ring.put(3)
    assert ring.take() == [1]
    assert ring.take() == []
    ring.commit(unfinished)
    assert ring.take() == [2, 3]
    assert ring.reader.waiting_bytes == 0


def test_a_discarded_record_is_skipped_and_its_room_given_back() -> None:
    ring = FakeRing(4096)
    ring.put(1)
    ring.put(2, DISCARD)
    ring.put(3)
    doomed = ring.put(4, BUSY)
    assert ring.take() == [1, 3]
    ring.commit(doomed, DISCARD)
    assert ring.take() == []
    assert ring.reader.waiting_bytes == 0


def test_what_was_taken_does_not_change_when_the_ring_is_written_over() -> None:
    ring = FakeRing(4096)
    ring.put(7)
    events = ring.reader.take()
    for i in range(45):
        ring.put(100 + i)
    assert events.columns["ts_ns"].tolist() == [7]


def test_records_of_another_length_are_refused() -> None:
    ring = FakeRing(4096)
    ring.put(1, length=EVENT_DTYPE.itemsize - 8)
    with pytest.raises(ValueError, match="unknown length"):
        ring.reader.take()


def test_records_go_on_after_the_rows_that_a_block_has_and_stop_where_it_is_full() -> None:
    ring = FakeRing(4096)
    block = Block(5, lead=3)
    for ts_ns in range(7):
        ring.put(ts_ns)
        if ts_ns == 1:
            assert ring.reader.take_into(block, 0) == 2
    assert ring.reader.take_into(block, 2) == 3
    assert block.columns["ts_ns"][3:].tolist() == [0, 1, 2, 3, 4]
    assert ring.reader.take_into(block, 5) == 0
    assert ring.take() == [5, 6]


def test_what_is_dropped_gives_its_room_back_but_for_a_record_being_written() -> None:
    ring = FakeRing(4096)
    for ts_ns in range(9):
        ring.put(ts_ns)
    late = ring.put(9, BUSY)
    ring.reader.drop()
    assert ring.take() == []
    ring.commit(late)
    assert ring.take() == [9]
