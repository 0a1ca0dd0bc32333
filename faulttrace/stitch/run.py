"""One stitch of a trace: stretch by stretch, with what is open carried over.

The first pass (`Whole`) learns what only the whole trace tells. Then each stretch is joined together with the events
that the one before left; what no event to come can change is told, and the rest stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.faulttrace.meta import Meta, WindowSpan
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.asked import ASKED_COLUMNS, USERFAULT_KINDS, Asked
from faultreplay.faulttrace.stitch.backing import mark_backing
from faultreplay.faulttrace.stitch.carry import Carry, kept_events
from faultreplay.faulttrace.stitch.claims import Claims, Spans, Used
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.found import UNKNOWN, Anchored
from faultreplay.faulttrace.stitch.guest import stitch_exits, stitch_stage2
from faultreplay.faulttrace.stitch.keys import I64, NEVER, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.memory import PAGE_BYTES, Memory
from faultreplay.faulttrace.stitch.process import stitch_process_faults
from faultreplay.faulttrace.stitch.report import StitchReport
from faultreplay.faulttrace.stitch.shed import ShedSpans
from faultreplay.faulttrace.stitch.source import Source, stretches
from faultreplay.faulttrace.stitch.summary import Summary
from faultreplay.faulttrace.stitch.tally import Tally
from faultreplay.faulttrace.stitch.told import Told, told_columns
from faultreplay.faulttrace.stitch.userfaults import stitch_userfaults
from faultreplay.faulttrace.stitch.vcpu_numbers import vcpu_numbers
from faultreplay.faulttrace.stitch.waiting import Waiting
from faultreplay.faulttrace.stitch.whole import FACT_COLUMNS, Whole
from faultreplay.faulttrace.stitch.windows import WINDOW_KINDS, WindowFinder, mark_windowed

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

STRETCH_ROWS: Final = 1 << 18
"""About so many events are looked at together; larger arrays are no faster."""


class Run:
    """A stitch of one trace. `report` and `windows` are whole when `faults` has given its last table."""

    def __init__(
        self,
        source: Source,
        meta: Meta,
        rows: int = STRETCH_ROWS,
        *,
        directory: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """See `stitch_events`.

        Args:
            source: the events.
            meta: of the trace.
            rows: about how many are looked at together.
            directory: where faults that are too many for memory may lie meanwhile.
            progress: told how many events are done, of how many, both passes together.
        """
        self._source, self._meta, self._rows = source, meta, max(rows, 1)
        self._directory = directory
        self._progress = progress or (lambda _done, _all: None)
        self.report = StitchReport()
        self.windows: list[WindowSpan] = []

    def faults(self) -> Iterator[pa.Table]:
        """Tables of `FAULTS`, sorted by (`start_ns`, `tid`)."""
        whole = Whole.of(self._counted(self._source.frames(FACT_COLUMNS), 0))
        memory, finder = self._memory(whole)
        finder.finish(whole.end_ns)
        self.windows = finder.windows
        told = Told(self._directory)
        try:
            asked = self._asked(whole)
            stitcher = _Stitcher(whole, self._meta, told, memory=memory, finder=finder, asked=asked)
            frames = self._counted(self._source.frames(), whole.rows)
            for frame, last in stretches(frames, self._rows):
                stitcher.feed(frame, last)
            summary = Summary(ShedSpans(self._meta.extra))
            for table in told.tables():
                summary.add(table)
                yield table
            self.report = stitcher.finish()
            summary.fill(self.report)
        finally:
            told.close()

    def _counted(self, frames: Iterator[pl.DataFrame], before: int) -> Iterator[pl.DataFrame]:
        done = before
        for frame in frames:
            yield frame
            done += len(frame)
            self._progress(done, 2 * self._source.rows)

    def _asked(self, whole: Whole) -> Asked | None:
        if not len(whole.having(*USERFAULT_KINDS)):
            return None
        granule = max([PAGE_BYTES, *(entry.page_bytes for entry in self._meta.memory_map)])
        return Asked.of(self._source.frames(ASKED_COLUMNS, USERFAULT_KINDS), granule)

    def _memory(self, whole: Whole) -> tuple[Memory, WindowFinder]:
        """Memory slots and windows, which the whole trace tells."""
        finder = WindowFinder(Memory(self._meta, []))
        slots = []
        if len(whole.having(*WINDOW_KINDS)):
            for frame, _ in stretches(self._source.frames(kinds=WINDOW_KINDS), STRETCH_ROWS):
                events = Events(frame, whole)
                finder.feed(events)
                slots.append(events.of(Kind.KVM_SET_MEMSLOT))
        return Memory(self._meta, slots), finder


class _Stitcher:
    """What is handed on from stretch to stretch."""

    def __init__(
        self, whole: Whole, meta: Meta, told: Told, *, memory: Memory, finder: WindowFinder, asked: Asked | None
    ) -> None:
        self._whole, self._memory, self._meta, self._told, self._finder = whole, memory, meta, told, finder
        self._asked = asked
        self._shed = ShedSpans(meta.extra)
        self._numbers = vcpu_numbers(whole, meta)
        self._tally = Tally()
        self._carry = Carry.none(len(whole.threads))
        self._mapped = False
        self._first_pos = 0

    def feed(self, frame: pl.DataFrame, last: bool) -> None:
        """Join one stretch and tell what is settled; all of it where it is the last."""
        carry = self._carry
        events = Events(frame, self._whole, carry.events, self._first_pos)
        first_pos, self._first_pos = self._first_pos, self._first_pos + len(frame)
        context = Context(
            events,
            self._memory,
            self._shed,
            self._meta.host.kvm_flavour,
            sleeps=carry.sleeps,
            told_ns=carry.told_ns,
            asked=self._asked,
            last=last,
        )
        self._mapped |= len(context.guest.sptes) > 0
        self._tally.report.doubled += int((context.guest.doubled.pos >= first_pos).sum())
        used = Used(carry.used.asked_for, carry.used.alone)
        stages, waiting = self._join(context, used)
        until_ns = np.full(len(self._whole.threads), NEVER, np.int64)
        if not last:
            until_ns = np.maximum(context.open.since_ns(events.until_ns + 1), carry.told_ns)
        self._tell(context, stages, until_ns)
        self._tally.settle(until_ns)
        told = used.told(context.placements.rows.pos, until_ns)
        self._count_placements(context, first_pos, np.setdiff1d(told.before, used.before))
        if not last:
            self._carry = self._next(context, stages, until_ns, waiting, told)

    def finish(self) -> StitchReport:
        """The report, without what the faults themselves tell."""
        report = self._tally.report
        walks = len(self._whole.having(Kind.KVM_MMU_WALK)) > 0
        report.mappings_told = self._mapped or not walks
        for name in ("placements_failed", "messages_unjoined", "guest_faults_unended"):
            counts = getattr(report, name)
            order = sorted(counts) if name == "placements_failed" else counts
            setattr(report, name, {key: counts[key] for key in order})
        return report

    def _join(self, context: Context, used: Used) -> tuple[list[Anchored], Waiting]:
        """The faults of each stitcher, in the order in which they see each other's claims."""
        messages, waiters, waiting = stitch_userfaults(context, used, self._tally)
        stages = [messages, waiters]

        def claims() -> Claims:
            both = zip(self._carry.claims, stages, strict=False)  # of the stitchers before
            return Claims(context.axis, [spans for told, new in both for spans in (told, Spans.of(new.found))])

        stages.append(stitch_exits(context, claims(), used, self._tally))
        stages.append(stitch_stage2(context, claims(), self._tally))
        stages.append(stitch_process_faults(context, claims(), used, self._tally, waiting))
        mark_backing(context, stages)
        self._note_off_cpu(context, stages)
        return stages, waiting

    @staticmethod
    def _note_off_cpu(context: Context, stages: list[Anchored]) -> None:
        """Of a thread that is off the CPU it is not known yet for how long: what reaches into that time is open."""
        coming = context.events.more(Kind.SCHED_OUT, Kind.SCHED_IN)
        if context.asked is not None:  # a message or a wake-up to come may be of a fault that began with that sleep
            coming |= context.wakes.coming
            coming |= context.asked.last_message_ns > context.events.until_ns
        since_ns = np.where(coming, context.sleeps.out_since_ns, NEVER)
        away = np.flatnonzero(since_ns < NEVER)
        context.open.note(away, since_ns[away])
        for stage in stages:
            found = stage.found
            reaches = np.maximum(found.start_ns, found.end_ns) >= take(since_ns, found.thread, NEVER)
            # Also into its handler's: only where a switch-in is late or was lost.
            served_ns = np.where(found.queue_ns != UNKNOWN, found.start_ns + found.queue_ns, UNKNOWN)
            served_ns += np.where((served_ns != UNKNOWN) & (found.service_ns != UNKNOWN), found.service_ns, 0)
            reaches |= served_ns >= take(since_ns, context.events.threads.of(found.handler_tid), NEVER)
            context.open.note(found.thread, np.minimum(stage.ts_ns, found.start_ns), reaches)

    def _count_placements(self, context: Context, first_pos: int, used: I64) -> None:
        """Those that this stretch is the first to have; and those that were seen to end a fault (places)."""
        placements, report = context.placements, self._tally.report
        new = placements.rows.pos >= first_pos
        report.placements += int((new & placements.wakes).sum())
        report.placements_unasked += int((new & placements.wakes).sum())
        report.placements_unasked -= int(np.isin(placements.rows.pos[placements.wakes], used).sum())
        failed = placements.rows.value[new & (placements.rows.value < 0)]
        for errno, count in zip(*np.unique(-failed, return_counts=True), strict=True):
            report.placements_failed[int(errno)] = report.placements_failed.get(int(errno), 0) + int(count)

    def _tell(self, context: Context, stages: list[Anchored], until_ns: I64) -> None:
        batches = []
        for number, stage in enumerate(stages):
            is_told = stage.told(until_ns)
            if not is_told.any():
                continue
            found = stage.found.pick(is_told)
            mark_windowed(found, self._finder.windows, self._finder.thaw_began_ns)
            found.vcpu = take(self._numbers, found.thread, -1)
            batches.append(told_columns(found, number, context.events.threads, context.sleeps))
        self._told.add(batches)

    def _next(self, context: Context, stages: list[Anchored], until_ns: I64, waiting: Waiting, used: Used) -> Carry:
        """What the next stretch needs of this one."""
        since_ns = until_ns.copy()
        told = []
        for stage in stages:
            known = stage.found.thread >= 0
            is_told = stage.told(until_ns)
            untold = known & ~is_told
            np.minimum.at(since_ns, stage.found.thread[untold], stage.found.start_ns[untold])
            told.append(Spans.of(stage.found.pick(known & is_told)))
        claims = [
            Spans.concat([before, new]).keep(since_ns) for before, new in zip(self._carry.claims, told, strict=True)
        ]
        rows = waiting.untold(until_ns)
        sleeps, open_rows = context.sleeps.keep(since_ns, waiting.handlers(rows))
        if self._asked is not None:
            waiters = stages[1].found.pick(~stages[1].told(until_ns))
            open_rows = np.concatenate([open_rows, waiting.event_rows(context, rows, waiters, since_ns)])
        events = kept_events(context, since_ns, open_rows, waiting.named(context, rows))
        return Carry(events, sleeps, until_ns, used.among(events.columns["pos"]), claims)
