"""What the faults of a trace show of each cost: samples, in ns, of the intervals that its name stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.analysis.calibrate.kernel import fills_in, kernel_samples

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.meta import Meta

from faultreplay.analysis.calibrate.observed import Observed, Samples

__all__ = ["MIN_SAMPLES", "PLACED", "USERFAULTS", "Observed", "Samples", "observe", "wake_walk_ns"]

MIN_SAMPLES: Final = 30
USERFAULTS: Final = ("missing", "minor", "write-protect")
PLACED: Final = ("copy", "zeropage", "continue", "move", "unprotect")
_UNKNOWN: Final = -1
_PAGE_BYTES: Final = 4096
_IDLE_NS: Final = 1000
"""A handler that ended its last fault this long before is taken to be back in read()."""
_IDLE_SHARE: Final = 0.02
"""A handler that was idle at a smaller share of the faults does not show what every fault costs."""
_IN_TIME: Final = 0.05
"""An idle handler's loop is taken to be no longer than this quantile of the time it had."""


def observe(
    faults: pl.DataFrame,
    meta: Meta,
    *,
    exits_alone: bool = False,
    waits: bool = True,
    logged_from_ns: int | None = None,
) -> Observed:
    """The samples that `faults` (sorted by start) hold.

    Args:
        faults: columns of `FAULTS`.
        meta: of their trace.
        exits_alone: of an MMIO exit only the way out and back, whatever the trace's mechanism did in between.
        waits: with what threads that could have run waited for a CPU; without, faults in which one was preempted
            are left out.
        logged_from_ns: since when KVM logs writes, if it does.
    """
    joined = faults.filter(faults["end_ns"].is_not_null())
    unpreempted = (joined["preempted_ns"].fill_null(0) == 0) & (joined["service_preempted_ns"].fill_null(0) == 0)
    preempted = 0 if waits else int((~unpreempted).sum())
    if waits:
        unpreempted |= True
    # The order of faults, and how many wait at once, must be determined from all of them.
    userfaults = _Columns(joined.filter(_is_userfault(joined)), waits)
    exits = _Columns(
        joined.filter(unpreempted & (joined["cause"] == "exit") & joined["resolve_ns"].is_not_null()), waits
    )
    samples, at_most_ns = _userfault_samples(userfaults, waits)
    samples["fetch"] = np.concatenate([samples["fetch"], exits.service_ns - exits.resolve_ns])
    samples["resolve"] = exits.resolve_ns
    samples["exit_userspace"] = exits.queue_ns[exits.queue_ns >= 0]
    samples["reenter"] = exits.wake_ns[exits.wake_ns >= 0]
    alone, uncharged = kernel_samples(joined, meta, unpreempted, logged_from_ns)
    samples |= alone
    native, huge = userfaults.unpreempted & (userfaults.pages == 1), userfaults.unpreempted & (userfaults.pages > 1)
    native, continued = native & ~userfaults.continued, native & userfaults.continued
    walked = _without_walk(userfaults.resolve_ns[continued], _sleepers(userfaults)[continued])
    samples["resolve_continue"] = walked
    samples["preempt"] = _preempt_samples(userfaults)
    samples["resolve_per_page"] = userfaults.resolve_ns[huge] // userfaults.pages[huge]
    mmio = _Columns(joined.filter(unpreempted & (joined["cause"] == "mmio") & joined["wake_ns"].is_not_null()), waits)
    # Under the lab's mmio-exit the one cost of its path is all of the stall: the fetch and the new memslot too.
    whole = mmio.end_ns - mmio.start_ns
    all_of_it = fills_in(meta) == "mmio-exit" and not exits_alone
    samples["mmio_exit"] = whole if all_of_it else mmio.queue_ns + mmio.wake_ns
    idle, busy = _woken_samples(userfaults)
    placing_ns, sleepers = userfaults.resolve_ns[native], _sleepers(userfaults)[native]
    return Observed(samples, placing_ns, sleepers, idle, busy, uncharged, preempted, at_most_ns)


def _without_walk(placing_ns: Samples, sleepers: Samples) -> Samples:
    """Placing ioctls less their walk over other sleepers, as far as they show it themselves."""
    walk_ns = wake_walk_ns(Observed({}, placing_ns, sleepers)) if len(placing_ns) else 0
    left: Samples = np.maximum(placing_ns - walk_ns * sleepers, 0)
    return left


class _Columns:
    """Numbers of faults; `_UNKNOWN` for null."""

    def __init__(self, faults: pl.DataFrame, waits: bool) -> None:
        def column(name: str) -> Samples:
            return faults[name].fill_null(_UNKNOWN).to_numpy().astype(np.int64)

        self.vm, self.tid, self.handler = column("vm"), column("tid"), column("handler_tid")
        self.start_ns, self.end_ns = column("start_ns"), column("end_ns")
        self.queue_ns, self.service_ns = column("queue_ns"), column("service_ns")
        self.resolve_ns, self.wake_ns = column("resolve_ns"), column("wake_ns")
        self.read_run_ns, self.read_after = column("read_run_ns"), column("read_after_tid")
        self.wake_run_ns, self.wake_after = column("wake_run_ns"), column("wake_after_tid")
        self.read_preempts = faults["read_preempts"].fill_null(False).to_numpy()
        self.wake_preempts = faults["wake_preempts"].fill_null(False).to_numpy()
        self.offcpu_ns = column("offcpu_ns")
        every = np.ones(len(faults), bool)
        self.unpreempted = every if waits else (column("preempted_ns") <= 0) & (column("service_preempted_ns") <= 0)
        """faults to use"""
        self.unpreempted_read = every if waits else self.unpreempted & (column("read_preempted_ns") <= 0)
        """of these, the ones in which the handler was not preempted before it read"""
        self.pages = np.maximum(column("granule") // _PAGE_BYTES, 1)
        self.continued = (faults["resolution"] == "continue").to_numpy()

    @property
    def fault_entry_ns(self) -> Samples:
        """From the fault until the accessor slept, by what is left of its stall; `_UNKNOWN` where that is not known."""
        seen = (self.wake_run_ns >= 0) & (self.offcpu_ns > 0)
        awake = self.end_ns - self.start_ns - self.offcpu_ns - self.wake_run_ns
        return np.where(seen & (awake >= 0), np.minimum(awake, np.maximum(self.queue_ns, 0)), _UNKNOWN)

    @property
    def read_ns(self) -> Samples:
        return self.start_ns + self.queue_ns

    @property
    def placed_ns(self) -> Samples:
        return self.read_ns + self.service_ns


def _is_userfault(faults: pl.DataFrame) -> pl.Series:
    served = faults["service_ns"].is_not_null() & faults["queue_ns"].is_not_null() & faults["wake_ns"].is_not_null()
    return served & faults["cause"].is_in(USERFAULTS) & faults["resolution"].is_in(PLACED)


def _userfault_samples(faults: _Columns, waits: bool) -> tuple[dict[str, Samples], dict[str, int]]:
    order = np.lexsort((faults.read_ns, faults.handler))
    handler, read_ns, placed_ns = faults.handler[order], faults.read_ns[order], faults.placed_ns[order]
    start_ns, queue_ns = faults.start_ns[order], faults.queue_ns[order]
    unpreempted, unpreempted_read = faults.unpreempted[order], faults.unpreempted_read[order]
    follows = np.zeros(len(order), bool)
    follows[1:] = handler[1:] == handler[:-1]
    before_ns = np.concatenate(([0], placed_ns[:-1]))[: len(order)]
    # A reader that hands the fetch on to others (QEMU's post-copy) reads again before the page is placed: it is idle.
    handed_on = follows & (read_ns < before_ns)
    idle = ~follows | handed_on | (start_ns - before_ns >= _IDLE_NS)
    if idle.sum() < _IDLE_SHARE * len(order):
        # A handler that is busy all the time is idle only after something held the accessors up: what such faults
        # show is that disturbance, and it would be charged to every fault.
        idle = np.zeros(len(order), bool)
    # The message lay ready when the handler came back: what passed was the handler's own way round its loop.
    ready = start_ns + (np.median(queue_ns[idle]) if idle.any() else 0)
    waiting = follows & ~handed_on & (ready < before_ns) & unpreempted_read
    idle &= unpreempted_read
    taken, entry = queue_ns[idle], faults.fault_entry_ns[order]
    known = (entry >= 0) & unpreempted
    # No event tells when the message was ready. The accessor is asleep soon after; where that was not seen, only the
    # sum of the two is known, and only that counts for an idle handler.
    halves = taken // 2
    # Without CPUs as a resource the sum must be right, so both are of the same faults: those of idle handlers.
    told = known & idle if waits and idle.any() else known
    typical = np.minimum(round(float(np.median(entry[told]))), taken) if told.any() else halves
    # What an idle handler took from the message to its read is in `reader_wakeup` already: the loop before it was over
    # when the message came. It was so for nearly all of them, a few may have waited a little.
    before = (idle & follows & ~handed_on).nonzero()[0]
    spare: Samples = (start_ns + (round(float(np.median(entry[told]))) if told.any() else 0) - before_ns)[before]
    at_most = {"handler_loop": max(int(np.quantile(spare, _IN_TIME)), 0)} if len(spare) >= MIN_SAMPLES else {}
    return {
        "fault_entry": entry[told] if told.any() else halves,
        "reader_wakeup": np.maximum(taken - np.where(known[idle], entry[idle], typical), 0),
        "fetch": (faults.service_ns - faults.resolve_ns)[faults.unpreempted],
        "wake": faults.wake_ns[faults.unpreempted],
        "handler_loop": (read_ns - before_ns)[waiting],
    }, at_most


def _woken_samples(faults: _Columns) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """`reader_wakeup` and `wake` where the woken thread's CPU was idle; and where another had it, from then on."""
    entry = faults.fault_entry_ns
    # What a replay knows of: after a thread of the host's own, a switch costs other than after a guest.
    own = np.union1d(faults.tid, faults.handler)
    # The first message that a handler reads once it has its CPU; later ones wait while it serves those before.
    first = faults.unpreempted_read & (faults.read_ns - faults.read_run_ns >= _placed_before(faults))
    idle = {
        "reader_wakeup": (faults.queue_ns - entry)[first & (faults.read_after == 0) & (entry >= 0)],
        "wake": faults.wake_ns[faults.unpreempted & (faults.wake_after == 0)],
    }
    busy = {
        "reader_wakeup": faults.read_run_ns[first & np.isin(faults.read_after, own)],
        "wake": faults.wake_run_ns[faults.unpreempted & np.isin(faults.wake_after, own)],
    }
    return idle, busy


def _preempt_samples(faults: _Columns) -> Samples:
    """From the wake-up of a thread until it has the CPU of one that is preempted for it."""
    entry, own = faults.fault_entry_ns, np.union1d(faults.tid, faults.handler)
    read = faults.unpreempted_read & (entry >= 0) & faults.read_preempts & np.isin(faults.read_after, own)
    read &= faults.read_ns - faults.read_run_ns >= _placed_before(faults)
    # Not who woke it: that one is on its way to sleep, and hands its CPU over in passing.
    read &= faults.read_after != faults.tid
    woke = (
        faults.unpreempted
        & faults.wake_preempts
        & np.isin(faults.wake_after, own)
        & (faults.wake_after != faults.handler)
    )
    waits = (faults.queue_ns - entry - faults.read_run_ns)[read], (faults.wake_ns - faults.wake_run_ns)[woke]
    together: Samples = np.maximum(np.concatenate(waits), 0)
    return together


def _placed_before(faults: _Columns) -> Samples:
    """When the handler of each fault had placed the page before; 0 for its first."""
    order = np.lexsort((faults.read_ns, faults.handler))
    handler, placed_ns = faults.handler[order], faults.placed_ns[order]
    before = np.zeros(len(order), np.int64)
    same = np.flatnonzero(handler[1:] == handler[:-1]) + 1
    before[order[same]] = placed_ns[same - 1]
    return before


def wake_walk_ns(observed: Observed) -> int:
    """What the placing ioctl takes for each other sleeper, ns: the slope of its time over their number.

    0 where the number of sleepers does not vary or the slope is not beyond three of its standard errors.
    """
    others = observed.sleepers
    if len(others) < MIN_SAMPLES or others.max() - others.min() < 4:
        return 0
    # A preempted handler makes outliers of milliseconds: medians by number of sleepers are the points of the line.
    counts, inverse, weight = np.unique(others, return_inverse=True, return_counts=True)
    by_count = np.split(observed.placing_ns[np.argsort(inverse, kind="stable")], np.cumsum(weight)[:-1])
    points = [(n, w, float(np.median(g))) for n, w, g in zip(counts, weight, by_count, strict=True) if w >= 5]
    if len(points) < 4:
        return 0
    x, w, y = (np.array(column, np.float64) for column in zip(*points, strict=True))
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    spread = float((w * x**2).sum())
    slope = float((w * x * y).sum()) / spread
    error = float(np.sqrt((w * (y - slope * x) ** 2).sum() / (len(x) - 2) / spread))
    return round(slope) if slope > 3 * error else 0


def _sleepers(faults: _Columns) -> Samples:
    """How many other faults of the same memory were waiting when each was placed."""
    others = np.zeros(len(faults.vm), np.int64)
    for vm in np.unique(faults.vm):
        mine = np.flatnonzero(faults.vm == vm)
        placed = faults.placed_ns[mine]
        begun = np.searchsorted(np.sort(faults.start_ns[mine]), placed, side="right")
        over = np.searchsorted(np.sort(placed), placed, side="right")
        others[mine] = np.maximum(begun - over, 0)
    return others
