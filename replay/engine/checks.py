"""What must hold before a run and after it. A number whose books do not add up is refused, not printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine import layout as o
from faultreplay.replay.engine.jit import jit
from faultreplay.replay.language.compiler import Program
from faultreplay.replay.workload.workload import Workload, derived

Ints = npt.NDArray[np.int64]
MOST_CPUS: Final = 65_536
MOST_SLICES: Final = 1 << 26
"""Slices of a run's CPU time, some thirty seconds of computing: at 2.8 ms each, 52 hours of all CPUs together."""
EVENTS_EACH: Final = 1 << 12
"""Events of a fault, and again at each window: what a run with host CPUs may have on top of `MOST_SLICES`."""
_SUM_LIMIT: Final = float(1 << 62)


@dataclass(frozen=True)
class Books:
    """What one run leaves to be checked; arrays as in `result.Result` and `layout`."""

    mechanism: str
    program: Program
    sums: Ints
    """int64[A, A_COLUMNS]"""
    resources: Ints
    """int64[instances, R_COLUMNS], closed by `close_resources`"""
    start_ns: Ints
    stall_ns: Ints
    """int64[F] each, or empty: rows were not kept"""
    histogram: Ints
    span_ns: int
    """how long resources and CPUs could be busy"""
    cpus: int
    cpu_work_ns: int
    stopped: bool
    """before its end, at `until_ns`"""


def check_workload(workload: Workload) -> None:
    """Times that enter the engine can be added up in 64 bits.

    Raises:
        UsageError: a think time, stall or start is negative or longer than `LONGEST_NS`, or their sum is.
    """
    if problem := derived(workload, "times", lambda: _bad_time(workload)):
        raise UsageError(problem)


def _bad_time(w: Workload) -> str:
    for name, values, least in (
        ("think time", w.think_ns, 0),
        ("time after the last fault", w.tail_ns, 0),
        ("time asleep", w.asleep_ns, 0),
        ("time preempted", w.preempted_ns, 0),
        ("recorded stall", w.recorded_stall_ns, -1),
        ("recorded start", w.recorded_start_ns, -1),
    ):
        if values.size and not least <= int(values.min()) <= int(values.max()) <= LONGEST_NS:
            worst = int(values.min()) if values.min() < least else int(values.max())
            return f"a {name} of {worst} ns cannot be replayed: it must be from 0 to 1e15 ns (11 days)"
    if w.think_ns.sum(dtype=np.float64) > _SUM_LIMIT:
        return "the think times add up to more than 146 years of CPU time, more than 64 bits count in ns"
    return ""


def check_windows(windows: Ints, pages: int) -> None:
    """What windows take can be added up, with `pages` touched before each.

    Raises:
        UsageError: a window or a cost of it is longer than `LONGEST_NS`.
    """
    if not windows.size:
        return
    times = windows[:, [o.W_START, o.W_LENGTH, o.W_ENTER, o.W_LEAVE, o.W_RESUME]]
    per_page = windows[:, [o.W_ENTER_PER_PAGE_PS, o.W_LEAVE_PER_PAGE_PS]].astype(np.float64) * pages / 1_000
    if int(times.min()) < 0 or int(times.max()) > LONGEST_NS or per_page.max() > LONGEST_NS:
        raise UsageError("a window that begins, lasts or costs more than 1e15 ns (11 days), or less than 0, is refused")


def close_resources(resources: Ints, end_ns: int) -> None:
    """Account what is held, waited for, or known ahead, at `end_ns`, in place."""
    free_at, begin = resources[:, o.R_FREE_AT], resources[:, o.R_BEGIN]
    held = np.where(resources[:, o.R_SERVERS] > 0, resources[:, o.R_SERVERS] - resources[:, o.R_FREE], 0)
    resources[:, o.R_BUSY] += held * np.maximum(begin, end_ns)
    # The hold before one that begins later lasts until then.
    resources[:, o.R_BUSY] -= np.where((held > 0) & (begin > end_ns), begin - end_ns, 0)
    resources[:, o.R_BUSY] -= np.where((held == 0) & (free_at > end_ns), free_at - end_ns, 0)
    resources[:, o.R_WAIT] += resources[:, o.R_QUEUED] * end_ns
    resources[:, o.R_WAIT] -= np.where((held > 0) & (begin > end_ns), begin - end_ns, 0)


def check_run(books: Books) -> None:
    """Every fault ended once, nothing was busier than it can be, all sums agree.

    Raises:
        UsageError: faults wait for each other for ever.
        FaultreplayError: an error of the engine; it says how to report it.
    """
    ended = int(books.sums[:, o.S_FAULTS].sum())
    due = int((books.sums[:, o.A_STOP] - books.sums[:, o.A_FIRST]).sum())
    if not books.stopped and ended < due:
        _waiting(books, due - ended)
    for wrong, what in (*_faults(books, ended, due), *_resources(books)):
        if wrong:
            raise engine_error(books.mechanism, what)


def engine_error(mechanism: str, what: str) -> FaultreplayError:
    """The refusal of a number."""
    return FaultreplayError(
        f"{mechanism}: error in the replay engine: {what}. The run's figures are not shown, because they may be wrong. "
        "Please report it with this command, the mechanism file and, if you can, the trace"
    )


def most_events(workload: Workload, windows: Ints) -> int:
    """After how many events a run with host CPUs has gone on for far longer than its faults take."""
    return MOST_SLICES + EVENTS_EACH * workload.faults * (1 + len(windows))


def too_many_slices(mechanism: str, cpus: int, events: int, sums: Ints) -> FaultreplayError:
    """The end of a run whose CPUs work for far longer than its faults take; `sums` as in `Books`."""
    ended = int(sums[:, o.S_FAULTS].sum())
    due = int((sums[:, o.A_STOP] - sums[:, o.A_FIRST]).sum())
    return FaultreplayError(
        f"{mechanism}: {events} events on {cpus} host CPUs, and only {ended} of {due} faults have ended: look "
        "for a cost, think time or window that is too long, replay a part of the trace, or leave --cpus out"
    )


def _waiting(books: Books, missing: int) -> None:
    full = [
        item.name
        for item in books.program.resources
        if item.kind == "servers" and books.resources[item.first : item.first + item.count, o.R_QUEUED].any()
    ]
    if full:
        raise UsageError(
            f"{books.mechanism}: {missing} faults never end: they wait for {' and '.join(full)}, which nobody gives "
            "back. A path that holds one resource and waits for another, while a second path does so in the other "
            "order, is a deadlock; if no path does, please report this as an error of the engine"
        )


@jit
def _sums(start_ns: Any, stall_ns: Any) -> Any:
    """Of rows that were reached: how many, least and total stall, the total in units of 2**32 ns, which cannot
    overflow, last end.
    """
    done = least = total = high = ends = np.int64(0)
    for row in range(start_ns.size):
        start, stall = start_ns[row], stall_ns[row]
        reached = start >= 0
        stall = stall if reached else np.int64(0)
        done += reached
        least = min(least, stall)
        total += stall
        high += stall >> 32
        ends = max(ends, start + stall)
    return done, least, total, high, ends


def _faults(books: Books, ended: int, due: int) -> list[tuple[bool, str]]:
    kept = books.start_ns.size > 0 or books.histogram.shape[1] <= 1  # of no fault there are no rows either
    done, least, total, high, ends_ns = _sums(books.start_ns, books.stall_ns)
    most = (high + done) * 2.0**32  # the total is less, by up to 2**32 ns a row
    stall = int(books.sums[:, o.S_STALL].sum())
    if not kept:
        total = stall
        edges = histogram_edges_ns()[:-1]
        most = float(books.histogram.sum(axis=0)[: edges.size] @ edges.astype(np.float64))
    return [
        (not books.stopped and ended != due, f"{due - ended} of {due} faults did not end"),
        (kept and done != ended, f"{ended} faults ended, but {done} rows were written"),
        (not kept and int(books.histogram.sum()) != ended, "the histogram does not hold each fault once"),
        (kept and least < 0, "a stall is negative"),
        (not books.stopped and ends_ns > books.span_ns, "a fault ends after the run"),
        (most > 2 * _SUM_LIMIT, "the stalls add up to more than 64 bits count in ns"),
        (total != stall, f"the rows' stalls add up to {total} ns, the accessors' to {stall} ns"),
        (bool((books.sums[:, o.S_STALL : o.S_END + 1] < 0).any()), "a sum of an accessor is negative"),
    ]


def _resources(books: Books) -> list[tuple[bool, str]]:
    part = books.resources
    servers = part[:, o.R_SERVERS]
    busy, wait = part[:, o.R_BUSY], part[:, o.R_WAIT]
    over = (servers > 0) & (busy > servers * books.span_ns)
    idle = books.stopped or bool(((part[:, o.R_FREE] == servers) & (part[:, o.R_QUEUED] == 0)).all())
    return [
        (bool((busy < 0).any() or (wait < 0).any()), "the busy or waiting time of a resource is negative"),
        (bool(over.any()), "a resource was busy for longer than the run lasted"),
        (not idle, "a server is held after the last fault"),
        (not books.stopped and bool(part[:, o.R_SLEEPERS].any()), "a wait queue has sleepers after the last fault"),
        (not 0 <= books.cpu_work_ns <= books.cpus * books.span_ns, "the CPUs worked for longer than the run lasted"),
    ]


def histogram_edges_ns() -> Ints:
    """Lower bounds of the bins of `Result.histogram`, ns, and the upper bound of the last."""
    first = np.arange(64, dtype=np.int64)
    doublings = [(np.arange(32, 64, dtype=np.int64) << e) for e in range(1, 57)]
    return np.concatenate([first, *doublings, np.array([64 << 56], np.int64)])
