"""Two threads between ring and disk: one only empties the ring into memory, the other writes.

A slow disk therefore never starves the ring until the memory set aside is full; then the ring fills and the kernel
side counts what it cannot keep. Memory is a pool of blocks that are used again: fresh memory would cost more (a
cleared page each 4 KiB) than what is done with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from faultreplay.collect.backends.backend import Backend
from faultreplay.collect.backends.ring import EVENT_DTYPE, RECORD_BYTES, Block
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.units import format_bytes
from faultreplay.faulttrace.writer import GROUP_ROWS, PART_ROWS, TraceWriter

Columns = Mapping[str, npt.NDArray[Any]]

_BLOCK_ROWS = 1 << 15
_LEAD_ROWS = 1 << 12
BLOCK_BYTES = (_BLOCK_ROWS + _LEAD_ROWS) * EVENT_DTYPE.itemsize
_BLOCK_AGE_S = 0.25
_MAX_IDLE_S = 0.05
_MAX_EVENTS_PER_S = 10_000_000  # above all rates seen: the ring is read before this many records could fill it
_LOSS_POLL_S = 0.25
_FLUSH_AGE_S = 5.0
_SETTLE_S = 0.05
_MAX_FLUSH_AGE_S = 60.0
_ROW_BYTES_ON_DISK = 16  # 4 to 9 are measured
DRAIN_NICE = -10
"""Of the draining thread: on a busy host the ring must not wait for its turn."""


class Drain:
    """Moves events from a backend into a trace until `stop`.

    Args:
        backend: attached probes.
        writer: the trace; touched by the writing thread only until `stop` returns.
        queue_bytes: memory between the two threads.
        observe: called with columns in order of time in the writing thread, before they are written.
        after_part: called after each part with the writer, the part's first and last time and its bytes.
        part_age_ns: a part is written at this age at the latest; None: 5 s, and up to a minute in long recordings.
        part_rows: a part is written when it has as many events (or a few more: whole batches are taken).
        reserve_bytes: recording stops before the file system has less than this free.
    """

    def __init__(
        self,
        backend: Backend,
        writer: TraceWriter,
        queue_bytes: int,
        observe: Callable[[Columns], None],
        *,
        after_part: Callable[[TraceWriter, int, int, int], None] | None = None,
        part_age_ns: int | None = None,
        part_rows: int = PART_ROWS,
        reserve_bytes: int = 0,
    ) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._backend = backend
        self._writer = writer
        self._after_part = after_part
        self._part_age_ns = part_age_ns
        self._part_rows = part_rows
        self._block_age_s = min(_BLOCK_AGE_S, part_age_ns / 2e9) if part_age_ns is not None else _BLOCK_AGE_S
        self._reserve_bytes = reserve_bytes
        self._span: tuple[int, int] | None = None  # first and last time of the rows not yet in a part
        self.disk_full = ""
        self._full: deque[tuple[Block, int]] = deque()
        self._free: deque[Block] = deque()
        self._blocks_left = max(queue_bytes // BLOCK_BYTES, 4)
        self._losses: deque[dict[str, Any]] = deque()
        self._sorter = Sorter(observe, self._write_group)
        self._idle_s = min(_MAX_IDLE_S, backend.ring_bytes / RECORD_BYTES / _MAX_EVENTS_PER_S)
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._drained = threading.Event()
        self._unwritten_rows = 0
        self.failed: FaultreplayError | None = None
        self.events = 0
        self.lost = 0
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=f"faultreplay-{name}", daemon=True)
            for name, body in (("drain", self._drain), ("write", self._write))
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take what is left (the backend is paused), write it, end both threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except FaultreplayError as error:
            self.failed = self.failed or error
        except Exception as error:  # a thread must not die unseen
            self.failed = self.failed or FaultreplayError(f"the recorder failed: {type(error).__name__}: {error}")
        finally:
            if body == self._drain:
                self._drained.set()
            self._work.set()

    # the draining thread

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), DRAIN_NICE)
        block, used, opened = self._new_block(), 0, time.monotonic()
        next_poll = opened
        settle_until: float | None = None
        while self.failed is None:
            taken = self._backend.take_into(block, used) if block is not None else 0
            used += taken
            self.events += taken
            now = time.monotonic()
            if block is not None and used and (used == block.rows or now - opened >= self._block_age_s):
                self._hand_over(block, used)
                block = None
            if block is None:
                block, used, opened = self._new_block(), 0, now
            if now >= next_poll:
                self._poll_losses()
                next_poll = now + _LOSS_POLL_S
            if self._stopping.is_set():
                # A program on another CPU may still be filling a record it reserved.
                settle_until = settle_until or now + _SETTLE_S
                if not taken and block is not None and now >= settle_until:
                    break
            if taken < _BLOCK_ROWS // 8 and self._stopping.wait(self._idle_s):
                time.sleep(0.001)
        if block is not None and used:
            self._hand_over(block, used)
        self._poll_losses()

    def _new_block(self) -> Block | None:
        """A block to fill; None while all that may be used wait to be written."""
        with contextlib.suppress(IndexError):
            return self._free.popleft()
        if self._blocks_left == 0:
            return None
        self._blocks_left -= 1
        return Block(_BLOCK_ROWS, _LEAD_ROWS)

    def _hand_over(self, block: Block, rows: int) -> None:
        self._full.append((block, rows))
        self._work.set()

    def _poll_losses(self) -> None:
        ts_ns = time.monotonic_ns()
        for row in self._backend.poll_losses():
            self._losses.append({"ts_ns": ts_ns, "cpu": row.cpu, "probe": row.probe, "lost": row.count})
            self.lost += row.count

    # the writing thread

    def _write(self) -> None:
        # where the process that dropped privileges has started this one with the drain's priority, this fails
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        started = flushed = time.monotonic()
        while self.failed is None:
            ended = self._drained.is_set()
            self._work.wait(0.5)
            self._work.clear()
            while self._full:
                block, rows = self._full.popleft()
                self._sorter.add(block, rows, self._backend.skew_ns)
                self._free.append(block)
                if self._unwritten_rows + self._sorter.rows >= self._part_rows:
                    self._flush()
            if ended:
                self._sorter.end()
                self._sorter.flush()
            if self._losses:
                self._writer.append_losses([self._losses.popleft() for _ in range(len(self._losses))])
            now = time.monotonic()
            age_s = min(max((now - started) / 100, _FLUSH_AGE_S), _MAX_FLUSH_AGE_S)
            if self._part_age_ns is not None:
                age_s = self._part_age_ns / 1e9
            if now - flushed >= age_s:
                self._flush()
                flushed = now
            if ended:
                return

    def _write_group(self, columns: Columns) -> None:
        """Write these, which are in order of time."""
        times = columns["ts_ns"]
        self._span = (self._span[0] if self._span else int(times[0]), int(times[-1]))
        self._unwritten_rows += len(times)
        self._check_disk()
        self._writer.append_in_order(columns)

    def _flush(self) -> None:
        """Write a part and let older ones go."""
        self._sorter.flush()
        size = self._writer.bytes_written
        self._writer.flush()
        if self._span is not None and self._after_part is not None:
            self._after_part(self._writer, *self._span, self._writer.bytes_written - size)
        self._span, self._unwritten_rows = None, 0

    def _check_disk(self) -> None:
        """Ask to stop while all that is still in memory fits above the reserve."""
        if not self._reserve_bytes or self.disk_full:
            return
        waiting_rows = self.events - self._writer.rows + self._unwritten_rows
        free = shutil.disk_usage(self._writer.path).free
        if free - waiting_rows * _ROW_BYTES_ON_DISK < self._reserve_bytes:
            self.disk_full = f"{format_bytes(free)} free, reserve {format_bytes(self._reserve_bytes)}"


class Sorter:
    """Brings blocks into one order of time: the last events of a block wait for what another CPU may still add.

    Args:
        observe: called with columns in order of time, those of one call after those of the call before, unless an
            event came later than it may.
        write: called with as many as make a row group, or with all there are when `flush` is called; the arrays are
            used again afterwards.
    """

    def __init__(self, observe: Callable[[Columns], None], write: Callable[[Columns], None]) -> None:
        self._observe = observe
        self._write = write
        self._late: dict[str, npt.NDArray[Any]] = {name: np.empty(0, EVENT_DTYPE[name]) for name in EVENTS.names}
        self._group = Block(GROUP_ROWS)
        self.rows = 0
        """in order, and not yet written"""

    def add(self, block: Block, rows: int, skew_ns: int) -> None:
        """Take the events of `block` and those that waited, but keep back those within `skew_ns` of the last."""
        waiting = len(self._late["ts_ns"])
        begin, end = block.lead - waiting, block.lead + rows
        if begin >= 0:
            for name, late in self._late.items():
                block.columns[name][begin : block.lead] = late
            columns = {name: block.columns[name][begin:end] for name in EVENTS.names}
        else:
            columns = {
                name: np.concatenate([late, block.columns[name][block.lead : end]]) for name, late in self._late.items()
            }
        self._sort(columns, skew_ns)

    def end(self) -> None:
        """Take those that waited."""
        self._sort(self._late, 0)
        self._late = {name: late[:0] for name, late in self._late.items()}

    def flush(self) -> None:
        """Write all that are in order."""
        if self.rows:
            self._write({name: self._group.columns[name][: self.rows] for name in EVENTS.names})
            self.rows = 0

    def _sort(self, columns: dict[str, npt.NDArray[Any]], skew_ns: int) -> None:
        ts_ns = columns["ts_ns"]
        if not len(ts_ns):
            return
        order = np.argsort(ts_ns, kind="stable")
        cut = len(order)
        if skew_ns:
            cut = int(np.searchsorted(ts_ns, ts_ns[order[-1]] - skew_ns, "right", order))
            late = np.sort(order[cut:])
            self._late = {name: column[late] for name, column in columns.items()}
        taken = 0
        while taken < cut:
            some = order[taken : min(taken + self._group.rows - self.rows, cut)]
            end = self.rows + len(some)
            for name, column in columns.items():
                np.take(column, some, out=self._group.columns[name][self.rows : end], mode="clip")
            self._observe({name: self._group.columns[name][self.rows : end] for name in EVENTS.names})
            self.rows, taken = end, taken + len(some)
            if self.rows == self._group.rows:
                self.flush()
