"""Stitching: from raw events to faults. No tracepoint says "this userfault took so long"; this package works it out.

How each column is found, and what it is off by, is in docs/accuracy.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from faultreplay.faulttrace.meta import Meta, WindowSpan
from faultreplay.faulttrace.stitch.columns import USED, Events
from faultreplay.faulttrace.stitch.found import Claims, Found, to_frame
from faultreplay.faulttrace.stitch.guest import stitch_exits, stitch_stage2
from faultreplay.faulttrace.stitch.keys import I64, NEVER, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.memory import Memory
from faultreplay.faulttrace.stitch.process import stitch_process_faults
from faultreplay.faulttrace.stitch.report import StitchReport
from faultreplay.faulttrace.stitch.shed import ShedSpans, until_next
from faultreplay.faulttrace.stitch.userfaults import stitch_userfaults
from faultreplay.faulttrace.stitch.windows import find_windows, mark_windowed

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

__all__ = ["StitchReport", "Stitched", "stitch", "stitch_events", "stitch_trace"]


@dataclass
class Stitched:
    """Faults (columns of `FAULTS`), the windows that the ioctls show, and what could not be joined."""

    faults: pl.DataFrame
    windows: list[WindowSpan]
    report: StitchReport


def stitch(trace: Trace) -> pl.DataFrame:
    """The faults of a trace (columns of `FAULTS`), sorted by (`start_ns`, `tid`)."""
    return stitch_trace(trace).faults


def stitch_trace(trace: Trace) -> Stitched:
    """Faults, windows and the report of a trace."""
    return stitch_events(trace.events(kinds=sorted(USED)), trace.meta)


def stitch_events(frame: pl.DataFrame, meta: Meta | None = None) -> Stitched:
    """Faults of raw events (columns of `EVENTS`, sorted by `ts_ns`).

    Args:
        frame: the events.
        meta: where threads, memory slots and page sizes are known from, besides the events.
    """
    meta = meta or Meta()
    events = Events(frame)
    context = Context(events, Memory(meta, events), ShedSpans(meta.extra), meta.host.kvm_flavour)
    report = StitchReport()

    userfaults = stitch_userfaults(context, report)
    exits = stitch_exits(context, Claims(context.axis, userfaults), report)
    found = Found.concat([userfaults, exits])
    found = Found.concat([found, stitch_stage2(context, Claims(context.axis, found), report)])
    found = Found.concat([found, stitch_process_faults(context, Claims(context.axis, found), report)])

    windows = find_windows(context)
    mark_windowed(context, found, windows)
    found.vcpu = _vcpu_numbers(context, meta, found.thread)
    faults = to_frame(found, events.threads, context.sleeps)
    _count(report, context, faults)
    return Stitched(faults, windows, report)


def _vcpu_numbers(context: Context, meta: Meta, thread: I64) -> I64:
    """vCPU number of each fault's thread: from the targets, else from the events, else by the order of the vCPU fds."""
    threads = context.events.threads
    number = np.full(len(threads), -1, np.int64)
    runs = context.runs
    for rows in (runs.exit, runs.enter):
        _, first = np.unique(rows.thread, return_index=True)
        number[rows.thread[first]] = rows.vcpu[first]
    unknown = runs.told_threads[number[runs.told_threads] < 0]
    if len(unknown):
        fd = np.full(len(threads), -1, np.int64)
        for rows in (runs.exit, runs.enter):
            fd[rows.thread] = rows.fd
        owner = context.tgid_of[unknown]
        for tgid in np.unique(owner):
            mine = unknown[owner == tgid]
            number[mine[np.lexsort((mine, fd[mine]))]] = np.arange(len(mine))
    for target in meta.targets:
        for member in target.threads:
            at = threads.of(np.array([member.tid], np.int64))[0]
            if at >= 0 and member.role == "vcpu" and member.vcpu >= 0:
                number[at] = member.vcpu
    number = np.where(number >= 0, number, context.events.vcpu_of(np.arange(len(threads))))
    return take(number, thread, -1)


def _count(report: StitchReport, context: Context, faults: pl.DataFrame) -> None:
    placements = context.placements
    report.doubled = context.guest.doubled
    report.count_unasked(np.flatnonzero(placements.wakes))
    failed = -placements.rows.value[placements.rows.value < 0]
    report.placements_failed = {int(k): v for k, v in sorted(Counter(failed.tolist()).items())}
    by_cause = faults.group_by("cause").len().sort("cause")
    report.faults_by_cause = dict(by_cause.iter_rows())
    unjoined = faults.filter(faults["end_ns"].is_null()).group_by("cause").len().sort("cause")
    report.unjoined_by_cause = dict(unjoined.iter_rows())
    start_ns, tid = faults["start_ns"].to_numpy(), faults["tid"].to_numpy().astype(np.int64)
    shed = context.shed.touch(start_ns, until_next(tid, start_ns, NEVER)) & faults["end_ns"].is_null().to_numpy()
    report.unjoined_shed_by_cause = dict(faults.filter(shed).group_by("cause").len().sort("cause").iter_rows())
    report.joins = dict(faults.group_by("join").len().sort("join").iter_rows())
