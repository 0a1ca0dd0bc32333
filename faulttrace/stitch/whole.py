"""What is known of a trace as a whole before it is stitched: a first pass over few columns.

A stretch of a trace cannot tell by itself which process owns a thread, whether a thread's guest exits are recorded at
all, or whether anything is still to come of a thread. This pass can, and keeps one row a kind and thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.keys import I64, Axis, Bools, Ids

if TYPE_CHECKING:
    import polars as pl

FACT_COLUMNS: Final = ("ts_ns", "kind", "tid", "tgid", "fd", "vcpu")
"""The columns of events that the first pass reads."""
_FOREIGN: Final = (Kind.SCHED_IN, Kind.SCHED_WAKING, Kind.KVM_UNMAP_HVA_RANGE)
"""Events that are taken in another thread's context, or that name another process's."""
_SCHEDULER: Final = (Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING)
_NAMING: Final = (Kind.KVM_ENTRY, Kind.KVM_EXIT, Kind.KVM_PAGE_FAULT, Kind.KVM_MMU_FAST_PAGE_FAULT)
"""Kinds whose vCPU number is taken for their thread's."""
_KINDS: Final = 256
_ABSENT: Final = -1


class Whole:
    """Facts of all events that a stitch reads, by kind and thread.

    Attributes:
        threads: dense numbers of the thread ids.
        axis: holds all times.
        end_ns: the last event.
        rows: how many events there are.
    """

    def __init__(self, facts: pl.DataFrame, start_ns: int, end_ns: int, rows: int) -> None:
        self.threads = Ids(facts["tid"].to_numpy().astype(np.int64))
        self.axis = Axis.between(start_ns, end_ns) if rows else Axis(0, 1)
        self.end_ns = end_ns
        self.rows = rows
        self._kind: I64 = facts["kind"].to_numpy().astype(np.int64)
        self._thread = self.threads.of(facts["tid"].to_numpy().astype(np.int64))
        names = ("first_pos", "first_tgid", "first_vcpu", "last_ns", "last_fd", "most_vcpu")
        self._facts: dict[str, I64] = {name: facts[name].to_numpy().astype(np.int64) for name in names}
        self._alive_until: I64 = np.full(len(self.threads), _ABSENT, np.int64)
        mine = ~np.isin(self._kind, _SCHEDULER)
        np.maximum.at(self._alive_until, self._thread[mine], self._facts["last_ns"][mine])
        self.owner = self._owners()

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame]) -> Whole:
        """The facts of a trace's events, in order of time (columns `FACT_COLUMNS`)."""
        import polars as pl

        parts: list[pl.DataFrame] = []
        start_ns = end_ns = rows = 0
        for frame in frames:
            if not len(frame):
                continue
            start_ns = start_ns if rows else int(frame["ts_ns"][0])
            end_ns = int(frame["ts_ns"][-1])
            parts.append(_facts_of(frame, rows))
            rows += len(frame)
            if len(parts) > 1 and sum(map(len, parts)) > 1 << 16:
                parts = [_joined(pl.concat(parts))]
        if not parts:
            parts = [_facts_of(_no_events(), 0)]
        return cls(_joined(pl.concat(parts)), start_ns, end_ns, rows)

    def fact(self, name: str, *kinds: Kind) -> I64:
        """Per thread that fact of its events of these kinds (the greatest, of several); -1 where it has none."""
        value = np.full(len(self.threads), _ABSENT, np.int64)
        for kind in kinds:
            rows = self._kind == kind
            value[self._thread[rows]] = np.maximum(value[self._thread[rows]], self._facts[name][rows])
        return value

    def having(self, *kinds: Kind) -> I64:
        """Numbers of the threads that have an event of one of these kinds, ascending."""
        return np.unique(self._thread[np.isin(self._kind, kinds)])

    def more(self, after_ns: int, *kinds: Kind) -> Bools:
        """Per thread, whether an event of one of these kinds comes after that time."""
        coming: Bools = self.fact("last_ns", *kinds) > after_ns
        return coming

    def alive(self, after_ns: int) -> Bools:
        """Per thread, whether anything but the scheduler's events comes after that time."""
        coming: Bools = self._alive_until > after_ns
        return coming

    @property
    def told_runs(self) -> I64:
        """Threads whose calls of KVM_RUN were recorded."""
        return self.having(Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT)

    @property
    def untimed(self) -> I64:
        """Threads of which only kvm_userspace_exit tells that they left KVM_RUN."""
        left = self.having(Kind.KVM_USERSPACE_EXIT)
        return left[~np.isin(left, np.union1d(self.told_runs, self.having(Kind.KVM_EXIT)))]

    def named_vcpus(self) -> I64:
        """Per thread the vCPU number that some event of it tells; -1: none does."""
        return self.fact("most_vcpu", *_NAMING)

    def run_vcpus(self) -> I64:
        """Per thread the vCPU number that its first way into KVM_RUN tells, else its first way out; -1: neither."""
        number = np.full(len(self.threads), -1, np.int64)
        untimed = self.untimed
        ways = ((Kind.KVM_RUN_EXIT, None), (Kind.KVM_USERSPACE_EXIT, untimed), (Kind.KVM_RUN_ENTER, None))
        for kind, only in (*ways, (Kind.KVM_MMU_WALK, untimed)):
            there = self.having(kind)
            there = there if only is None else np.intersect1d(there, only)
            number[there] = self.fact("first_vcpu", kind)[there]
        return number

    def run_fds(self) -> I64:
        """Per thread the descriptor of its vCPU; -1: not known."""
        fd = np.full(len(self.threads), -1, np.int64)
        for kind in (Kind.KVM_RUN_EXIT, Kind.KVM_RUN_ENTER):
            there = self.having(kind)
            fd[there] = self.fact("last_fd", kind)[there]
        return fd

    def _owners(self) -> I64:
        """The process of each thread, from events taken in that thread's own context where there are any."""
        owner = np.zeros(len(self.threads), np.int64)
        foreign = np.isin(self._kind, _FOREIGN)
        for chosen in (foreign, ~foreign):  # the sure ones overwrite
            rows = np.flatnonzero(chosen)
            rows = rows[np.lexsort((-self._facts["first_pos"][rows], self._thread[rows]))]  # the first comes last
            some = np.zeros(len(self.threads), np.int64)
            some[self._thread[rows]] = self._facts["first_tgid"][rows]
            owner = np.where(some > 0, some, owner)
        return owner


def _facts_of(frame: pl.DataFrame, before: int) -> pl.DataFrame:
    import polars as pl

    counted = frame.select(FACT_COLUMNS).with_row_index("pos", offset=before)
    return counted.group_by("kind", "tid", maintain_order=True).agg(
        pl.col("pos").first().cast(pl.Int64).alias("first_pos"),
        pl.col("tgid").first().alias("first_tgid"),
        pl.col("vcpu").first().alias("first_vcpu"),
        pl.col("ts_ns").last().alias("last_ns"),
        pl.col("fd").last().alias("last_fd"),
        pl.col("vcpu").max().alias("most_vcpu"),
    )


def _joined(facts: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return facts.group_by("kind", "tid", maintain_order=True).agg(
        pl.col("first_pos", "first_tgid", "first_vcpu").first(),
        pl.col("last_ns", "last_fd").last(),
        pl.col("most_vcpu").max(),
    )


def _no_events() -> pl.DataFrame:
    import polars as pl

    from faultreplay.faulttrace.schema import EVENTS

    frame = pl.from_arrow(EVENTS.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
