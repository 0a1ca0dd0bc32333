"""Faults that are settled, put in order: numbered, think times filled in, words in place of numbers.

Stretches tell faults roughly in order of time: one that waits long is told late. So they are kept as plain numbers
until the end, in memory or, beyond a bound, in a temporary file, and merged from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.faulttrace.schema import ACCESSORS, BACKINGS, CAUSES, FAULTS, RESOLUTIONS
from faultreplay.faulttrace.stitch.found import ACCESS, ENDS, STARTS, UNKNOWN, Found
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Ids, take

if TYPE_CHECKING:
    from faultreplay.faulttrace.stitch.threads import Sleeps

Columns = dict[str, npt.NDArray[Any]]

_IN_MEMORY_ROWS: Final = 1 << 20
_BLOCK_ROWS: Final = 1 << 17
_JOINS: Final = tuple("none" if end == "none" else f"{start}/{end}" for start in STARTS for end in ENDS)
_WORDS: Final = {
    "accessor": ACCESSORS, "access": ACCESS, "cause": CAUSES, "resolution": RESOLUTIONS, "join": _JOINS,
    "backing": BACKINGS,
}  # fmt: skip
_THREADS: Final = ("vm", "tid", "handler_tid", "read_after_tid", "wake_after_tid", "thread")
_NARROW: Final[dict[str, type[np.generic]]] = {
    **dict.fromkeys(_WORDS, np.uint8),
    **dict.fromkeys((*_THREADS, "vcpu", "rounds"), np.int32),
    **dict.fromkeys(("read_preempts", "wake_preempts", "stage", "backing", "copied"), np.int8),
}


def told_columns(found: Found, stage: int, threads: Ids, sleeps: Sleeps) -> Columns:
    """The faults' columns as numbers (`UNKNOWN`: empty), without number and think times.

    Args:
        found: the faults.
        stage: which stitcher found them: of faults that begin together the earlier stitcher's comes first.
        threads: of the trace.
        sleeps: what the scheduler did around them.
    """
    joined = found.end_ns != UNKNOWN
    end_ns = np.where(joined, found.end_ns, found.start_ns)
    read_ns = np.where(found.queue_ns != UNKNOWN, found.start_ns + found.queue_ns, UNKNOWN)
    handler = threads.of(found.handler_tid)
    read_run, read_after, read_preempts = _on_cpu(sleeps, handler, found.start_ns, read_ns)
    queued = (read_ns != UNKNOWN) & (handler >= 0)
    served = queued & (found.service_ns != UNKNOWN)
    placed_ns = np.where(served, read_ns + found.service_ns, read_ns)
    woken = np.where(joined & (found.wake_ns != UNKNOWN), end_ns, UNKNOWN)
    wake_run, wake_after, wake_preempts = _on_cpu(sleeps, found.thread, woken - found.wake_ns, woken)
    off = (sleeps.off_until_ns(found.thread, found.start_ns), sleeps.off_until_ns(found.thread, end_ns))
    preempted = (
        sleeps.preempted_until_ns(found.thread, found.start_ns),
        sleeps.preempted_until_ns(found.thread, end_ns),
    )
    columns: Columns = {
        "vm": found.vm,
        "accessor": found.accessor,
        "tid": take(threads.values, found.thread, 0),
        "vcpu": found.vcpu,
        "start_ns": found.start_ns,
        "end_ns": found.end_ns,
        "stall_ns": np.where(joined, found.end_ns - found.start_ns, UNKNOWN),
        "page": found.page,
        "granule": found.granule,
        "access": found.access,
        "cause": found.cause,
        "resolution": found.resolution,
        "handler_tid": found.handler_tid,
        "queue_ns": found.queue_ns,
        "read_run_ns": read_run,
        "read_after_tid": read_after,
        "read_preempts": np.where(read_after == UNKNOWN, UNKNOWN, read_preempts),
        "read_preempted_ns": np.where(queued, sleeps.preempted_ns(handler, found.start_ns, read_ns), UNKNOWN),
        "service_ns": found.service_ns,
        "resolve_ns": found.resolve_ns,
        "wake_ns": found.wake_ns,
        "wake_run_ns": wake_run,
        "wake_after_tid": wake_after,
        "wake_preempts": np.where(wake_after == UNKNOWN, UNKNOWN, wake_preempts),
        "offcpu_ns": np.where(joined, off[1] - off[0], UNKNOWN),
        "preempted_ns": np.where(joined, preempted[1] - preempted[0], UNKNOWN),
        "service_preempted_ns": np.where(served, sleeps.preempted_ns(handler, read_ns, placed_ns), UNKNOWN),
        "rounds": found.rounds,
        "ip": found.ip,
        "backing": found.backing,
        "copied": found.copied,
        "join": found.start_by * len(ENDS) + found.end_by,
        "thread": found.thread,
        "stage": np.full(len(found), stage, np.int8),
        "off_at_start": off[0],
        "preempted_at_start": preempted[0],
        "off_at_end": off[1],
        "preempted_at_end": preempted[1],
    }
    return {
        name: values.astype(_NARROW[name], copy=False) if name in _NARROW else values
        for name, values in columns.items()
    }


def _on_cpu(sleeps: Sleeps, thread: I64, from_ns: I64, until_ns: I64) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    """How long a woken thread had its CPU until `until_ns`, who had it before, and whether that one was preempted.

    UNKNOWN where it was not asleep.
    """
    known = until_ns != UNKNOWN
    in_ns, before, preempts = sleeps.on_cpu_since(np.where(known, thread, -1), from_ns, until_ns)
    seen = known & (before >= 0)
    return np.where(seen, until_ns - in_ns, UNKNOWN), np.where(seen, before, UNKNOWN), seen & preempts


class Told:
    """Settled faults, added stretch by stretch and given back in order."""

    def __init__(self, directory: str | None = None, in_memory_rows: int = _IN_MEMORY_ROWS) -> None:
        self.rows = 0
        self._directory = directory
        self._in_memory_rows = in_memory_rows
        self._batches: list[Columns] = []
        self._pending = 0
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._begins: list[int] = []  # earliest start in each block of the file

    def add(self, batches: list[Columns]) -> None:
        """The faults of one stretch, in the order of the stitchers."""
        batches = [batch for batch in batches if len(batch["start_ns"])]
        self.rows += sum(len(batch["start_ns"]) for batch in batches)
        self._pending += sum(len(batch["start_ns"]) for batch in batches)
        self._batches += batches
        if self._pending > self._in_memory_rows:
            self._spill()

    def close(self) -> None:
        """Give up the temporary file."""
        if self._file is not None:
            self._file.close()

    def tables(self) -> Iterator[pa.Table]:
        """All of them as tables of `FAULTS`, sorted by (`start_ns`, `tid`) and numbered."""
        thinking = _Thinking()
        for block in self._in_order():
            yield thinking.table(block)

    def _spill(self) -> None:
        """Write what is in memory to the file, sorted, in blocks."""
        whole = _sorted(self._batches)
        self._batches, self._pending = [], 0
        count = len(whole["start_ns"])
        if self._writer is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  closed by `close`
            schema = pa.schema([(name, pa.from_numpy_dtype(values.dtype)) for name, values in whole.items()])
            self._writer = pa.ipc.new_file(self._file, schema)
        for first in range(0, count, _BLOCK_ROWS):
            block = {name: values[first : first + _BLOCK_ROWS] for name, values in whole.items()}
            self._begins.append(int(block["start_ns"][0]))
            self._writer.write_batch(
                pa.RecordBatch.from_arrays([pa.array(v) for v in block.values()], names=list(block))
            )

    def _in_order(self) -> Iterator[Columns]:
        if self._writer is None or self._file is None:
            whole = _sorted(self._batches) if self._batches else {}
            self._batches = []
            for first in range(0, self.rows, _BLOCK_ROWS):
                yield {name: values[first : first + _BLOCK_ROWS] for name, values in whole.items()}
            return
        if self._batches:
            self._spill()
        self._writer.close()
        self._file.flush()
        self._file.seek(0)
        reader = pa.ipc.open_file(self._file)
        order = sorted(range(len(self._begins)), key=lambda block: (self._begins[block], block))
        waiting: Columns | None = None
        for place, block in enumerate(order):
            batch = reader.get_batch(block)
            more: Columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
            whole = _sorted([more] if waiting is None or not len(waiting["start_ns"]) else [waiting, more])
            border = self._begins[order[place + 1]] if place + 1 < len(order) else NEVER
            ready = int(np.searchsorted(whole["start_ns"], border))
            if ready:
                yield {name: values[:ready] for name, values in whole.items()}
            waiting = {name: values[ready:] for name, values in whole.items()}


def _sorted(batches: list[Columns]) -> Columns:
    """By start, thread and stitcher, then page; equal rows stay in the order in which they were found."""
    whole = batches[0]
    if len(batches) > 1:
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    start_ns = whole["start_ns"]
    if (start_ns[1:] > start_ns[:-1]).all():
        return whole
    # Of threads that are not known several faults may begin together: they have an order of their own.
    ties = (whole["end_ns"], whole["handler_tid"], whole["page"])
    order = np.lexsort((*ties, whole["stage"], whole["thread"], start_ns))
    return {name: values[order] for name, values in whole.items()}


class _Thinking:
    """Numbers and think times of faults that come in order; what the last fault of each thread left is kept."""

    def __init__(self) -> None:
        self._next_id = 0
        self._end_ns: I64 = np.full(1024, UNKNOWN, np.int64)  # per thread
        self._off_ns, self._preempted_ns = np.zeros(1024, np.int64), np.zeros(1024, np.int64)

    def table(self, block: Columns) -> pa.Table:
        """A table of `FAULTS`."""
        count = len(block["start_ns"])
        columns: dict[str, Any] = dict(block)
        columns["think_ns"], columns["think_asleep_ns"], columns["think_preempted_ns"] = self._think(block)
        columns["fault_id"] = np.arange(self._next_id, self._next_id + count, dtype=np.int64)
        self._next_id += count
        return pa.table([_as_arrow(columns[f.name], f) for f in FAULTS], schema=FAULTS)

    def _think(self, block: Columns) -> tuple[I64, I64, I64]:
        """From the end of the thread's fault before to this start; of that asleep, and preempted.

        A fault whose end was not seen ends where it starts.
        """
        thread = block["thread"].astype(np.int64)
        self._grow(int(thread.max(initial=0)) + 1)
        order = np.argsort(thread, kind="stable")
        who, start = thread[order], block["start_ns"][order]
        end = np.where(block["end_ns"] == UNKNOWN, block["start_ns"], block["end_ns"])[order]
        off, preempted = block["off_at_end"][order], block["preempted_at_end"][order]
        first = np.ones(len(who), bool)
        first[1:] = who[1:] != who[:-1]
        since, off_since, preempted_since = (np.append(np.int64(UNKNOWN), v[:-1]) for v in (end, off, preempted))
        mine = first & (who >= 0)
        since[first] = UNKNOWN
        for values, kept in ((since, self._end_ns), (off_since, self._off_ns), (preempted_since, self._preempted_ns)):
            values[mine] = kept[who[mine]]
        follows = (since != UNKNOWN) & (who >= 0)
        apart = follows & (since < start)
        think = np.where(follows, np.maximum(start - since, 0), UNKNOWN)
        preempted_ns = np.where(apart, block["preempted_at_start"][order] - preempted_since, 0)
        asleep_ns = np.where(apart, block["off_at_start"][order] - off_since - preempted_ns, 0)
        last = np.append(first[1:], True)[: len(who)] & (who >= 0)
        self._end_ns[who[last]] = end[last]
        self._off_ns[who[last]], self._preempted_ns[who[last]] = off[last], preempted[last]
        result = []
        for values in (think, asleep_ns, preempted_ns):
            column = np.empty(len(who), np.int64)
            column[order] = np.where(follows, values, UNKNOWN)
            result.append(column)
        return result[0], result[1], result[2]

    def _grow(self, threads: int) -> None:
        for name, absent in (("_end_ns", UNKNOWN), ("_off_ns", 0), ("_preempted_ns", 0)):
            values = getattr(self, name)
            if len(values) < threads:
                setattr(self, name, np.append(values, np.full(threads - len(values), absent, np.int64)))


def _as_arrow(values: npt.NDArray[Any], field: pa.Field) -> pa.Array:
    if field.name in _WORDS:
        numbers = values.astype(np.int8)
        given = pa.array(numbers, mask=numbers < 0) if field.nullable else numbers
        return pa.DictionaryArray.from_arrays(given, list(_WORDS[field.name])).cast(pa.string())
    if not field.nullable:
        return pa.array(values).cast(field.type)
    empty = values == (0 if field.name == "ip" else UNKNOWN)
    return pa.array(values, mask=empty).cast(field.type)
