"""Two threads between ring and disk: one only empties the ring into memory, the other writes.

A slow disk therefore never starves the ring until the memory set aside for the queue is full; then the ring fills
and the kernel side counts what it cannot keep.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from collect.backend import Backend
from collect.ring import Events
from faulttrace.errors import FaultreplayError
from faulttrace.store import TraceWriter

_IDLE_S = 0.02
_LOSS_POLL_S = 0.1
_FLUSH_AGE_S = 5.0
_WRITE_ROWS = 1 << 18
_SKEW_NS = 1_000_000
_SETTLE_S = 0.05


class Drain:
    """Moves events from a backend into a trace until `stop`.

    Args:
        backend: attached probes.
        writer: the trace.
        queue_bytes: memory between the two threads.
        observe: called with each batch in the writing thread, before it is written.
    """

    def __init__(
        self, backend: Backend, writer: TraceWriter, queue_bytes: int, observe: Callable[[Events], None]
    ) -> None:
        self._backend = backend
        self._writer = writer
        self._observe = observe
        self._queue: deque[Events] = deque()
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._writer_lock = threading.Lock()
        self._filled = threading.Event()
        self._stopping = threading.Event()
        self._drained = threading.Event()
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
        """Take what is left in the ring (probes must be detached), write it, end both threads."""
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
            self._drained.set()
            self._filled.set()

    def _drain(self) -> None:
        next_poll = time.monotonic()
        settle_until: float | None = None
        while True:
            taken = self._take_once()
            now = time.monotonic()
            if now >= next_poll:
                self._poll_losses()
                next_poll = now + _LOSS_POLL_S
            if self.failed is not None:
                break
            if self._stopping.is_set():
                # A program on another CPU may still be filling a record it reserved.
                settle_until = settle_until or now + _SETTLE_S
                if not taken and now >= settle_until:
                    break
                time.sleep(0.001 if taken else _IDLE_S)
            elif not taken:
                self._stopping.wait(_IDLE_S)
        self._poll_losses()

    def _take_once(self) -> bool:
        if self._queued_bytes > self._queue_bytes:
            return False
        events = self._backend.take()
        if len(events) == 0:
            return False
        self.events += len(events)
        with self._lock:
            self._queue.append(events)
            self._queued_bytes += events.nbytes
        self._filled.set()
        return bool(events.nbytes > 1 << 20)

    def _poll_losses(self) -> None:
        lost = self._backend.poll_losses()
        if not lost:
            return
        ts_ns = time.monotonic_ns()
        rows = [{"ts_ns": ts_ns, "cpu": row.cpu, "probe": row.probe, "lost": row.count} for row in lost]
        self.lost += sum(row.count for row in lost)
        with self._writer_lock:
            self._writer.append_losses(rows)

    def _write(self) -> None:
        pending: list[Events] = []
        rows = 0
        flushed = time.monotonic()
        while True:
            ended = self._drained.is_set()
            self._filled.wait(0.5)
            self._filled.clear()
            with self._lock:
                batches = list(self._queue)
                self._queue.clear()
            for batch in batches:
                self._observe(batch)
                pending.append(batch)
                rows += len(batch)
            now = time.monotonic()
            old = now - flushed >= _FLUSH_AGE_S
            if pending and (rows >= _WRITE_ROWS or old or ended):
                ready, rest = _in_order(np.concatenate(pending), 0 if ended else _SKEW_NS)
                with self._writer_lock:
                    self._writer.append_events(ready)
                pending, rows = [rest], 0
            if old:
                with self._writer_lock:
                    self._writer.flush()
                flushed = now
            with self._lock:
                self._queued_bytes -= sum(batch.nbytes for batch in batches)
            if ended:
                return


def _in_order(events: Events, skew_ns: int) -> tuple[Events, Events]:
    """Sorted by time, and what came within `skew_ns` of the last: CPUs may still add events before those.

    The ring is nearly sorted, and so is cheap to sort here; all batches together then are in order.
    """
    events = events[np.argsort(events["ts_ns"], kind="stable")]
    cut = int(np.searchsorted(events["ts_ns"], events["ts_ns"][-1] - skew_ns, "right")) if len(events) else 0
    return events[:cut], events[cut:]
