"""What the compiled loop is given, as named tuples of arrays: F faults, A accessors, G tracked granules, times in ns.

The types are `Any`, because one signature is compiled: dtypes are as said here, whatever the workload.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Code(NamedTuple):
    """A program, as `compiler.Program` has it."""

    ops: Any
    """int64[operations, WIDTH]: see `opcodes`"""
    tables: Any
    """int64[tables, TABLE_SIZE] ns: of the costs that are drawn"""
    path_pc: Any
    """int64[classes + 3 + streams, accessor kinds]: where the path of a fault begins; then of a rewrite, of a page that
    is present, of a refault; of each stream"""
    seed: Any
    """uint64"""
    sections: Any
    """int64: how many there are"""


class Faults(NamedTuple):
    """One row a fault; an accessor's rows are consecutive."""

    think: Any
    """int64[F] ns: from the resume before to this fault; with CPUs without the time asleep"""
    asleep: Any
    """int64[F] ns, or empty: sleep in think time; with CPUs only"""
    cls: Any
    """uint8[F]: index in `schema.CAUSES`"""
    access: Any
    """uint8[F]: 0 read, 1 write, 2 execute"""
    recorded: Any
    """int64[F] ns, -1 unknown; or empty: the stall in the recording"""
    flags: Any
    """uint8[F]: TRACKED, FIRST_TOUCH"""
    granule: Any
    """int32[F]: of a TRACKED fault, from 0 to G - 1"""
    shard: Any
    """int32[F], or [1] where there is one shard"""


class Granules(NamedTuple):
    """Granules that are touched more than once, or may be pushed."""

    present_at: Any
    """int64[G] ns: since when it is there, or when it will be; NEVER: not asked for; INF: on its way, nobody knows"""
    stage2_epoch: Any
    """int64[G]: after how many emptyings of stage 2 a vCPU last mapped it"""
    joined: Any
    """int64[G]: the slot that joined last, -1 none; the one before it in that slot's NEXT"""
    pages: Any
    """int64: native pages in each"""
    files: Any
    """`storage.Files`: where content is read from"""


class Arrivals(NamedTuple):
    """What comes by itself, seldom."""

    order: Any
    """int64[F]: rows in order of time; empty in a closed loop"""
    time: Any
    """int64[F] ns: when each row's fault begins, in an open loop"""
    pushed: Any
    """int32[pushed]: granules in the order in which the stream brings them; -1: one that nobody touches"""
    push: Any
    """int64[P_COLUMNS]"""
    windows: Any
    """int64[windows, W_COLUMNS], in order of time"""


class HostCpus(NamedTuple):
    """Host CPUs."""

    cpus: Any
    """int64; 0: not counted"""
    pinned: Any
    """bool: a run queue each"""
    preempt_ns: Any
    """int64 ns: charged where one thread takes another's CPU"""
    events_most: Any
    """int64: the run ends after so many"""


class Rules(NamedTuple):
    """How to run."""

    slots: Any
    """int64: special ones, one an accessor (closed loop), and for what goes on behind wakes"""
    first: Any
    """int64: the first that is not special"""
    opened: Any
    """int64: accessors whose faults come by themselves (open loop), the first ones; the others run in a closed loop"""
    slot_bits: Any
    """int64: bits of an event that name its slot"""
    until: Any
    """int64 ns: stop then"""
    stepwise: Any
    """bool: each fault is taken at its own time, as windows, CPUs and a stop want it"""
    uniform: Any
    """int64: the one class that all faults have, where nothing is tracked and it is not stepwise; else -1"""
    write_again: Any
    """bool: each read is followed by a write, on the path of a rewrite"""
    keep_rows: Any
    """bool: rows, else a histogram"""
    host: HostCpus


class Out(NamedTuple):
    """What the loop writes, besides the state of accessors and resources."""

    start: Any
    """int64[F] ns, or empty: when each fault began"""
    stall: Any
    """int64[F] ns, or empty"""
    latency: Any
    """int64[F] ns, or empty: until its content was there"""
    histogram: Any
    """int64[classes, HISTOGRAM_BINS]: faults, where no rows are kept"""
    spent: Any
    """int64[operations, SPENT_COLUMNS]: where the time went; see `program.Share`"""
    windows: Any
    """int64[windows, 2] ns: when each began and ended"""
    cpu_work: Any
    """int64[1] ns: work done on CPUs"""
