"""What the faults of a trace show of each cost: samples, in ns, of the intervals that its name stands for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.calibrate.kernel import fills_in

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

from faultreplay.analysis.calibrate.observed import MIN_SAMPLES, Observed, Samples
from faultreplay.analysis.calibrate.pieces import COLUMNS, PLACED, USERFAULTS, Pieces, Userfaults, together

__all__ = ["COLUMNS", "MIN_SAMPLES", "PLACED", "USERFAULTS", "Observed", "Samples", "observe", "wake_walk_ns"]

_IDLE_NS: Final = 1000
"""A handler that ended its last fault this long before is taken to be back in read()."""
_IDLE_SHARE: Final = 0.02
"""A handler that was idle at a smaller share of the faults does not show what every fault costs."""
_IN_TIME: Final = 0.05
"""An idle handler's loop is taken to be no longer than this quantile of the time it had."""


def observe(
    faults: pl.DataFrame | Iterable[pl.DataFrame],
    meta: Meta,
    *,
    exits_alone: bool = False,
    waits: bool = True,
    logged_from_ns: int | None = None,
) -> Observed:
    """The samples that `faults` (sorted by start) hold.

    Args:
        faults: `COLUMNS` of them, whole or a piece at a time: of each piece only what is looked at is kept.
        meta: of their trace.
        exits_alone: of an MMIO exit only the way out and back, whatever the trace's mechanism did in between.
        waits: with what threads that could have run waited for a CPU; without, faults in which one was preempted
            are left out.
        logged_from_ns: since when KVM logs writes, if it does.
    """
    pieces = Pieces(meta, waits, logged_from_ns)
    for piece in [faults] if isinstance(faults, pl.DataFrame) else faults:
        pieces.add(piece)
    # The order of faults, and how many wait at once, must be determined from all of them.
    userfaults = Userfaults(pieces.userfaults)
    exits, mmio = together(pieces.exits), together(pieces.mmio)
    samples, at_most_ns = _userfault_samples(userfaults, waits)
    samples["fetch"] = np.concatenate([samples["fetch"], exits["service_ns"] - exits["resolve_ns"]])
    samples["resolve"] = exits["resolve_ns"]
    samples["exit_userspace"] = exits["queue_ns"][exits["queue_ns"] >= 0]
    samples["reenter"] = exits["wake_ns"][exits["wake_ns"] >= 0]
    alone, uncharged = pieces.kernel.found()
    samples |= alone
    native, huge = userfaults.unpreempted & (userfaults.pages == 1), userfaults.unpreempted & (userfaults.pages > 1)
    native, continued = native & ~userfaults.continued, native & userfaults.continued
    sleepers = _sleepers(userfaults)
    samples["resolve_continue"] = _without_walk(userfaults.resolve_ns[continued], sleepers[continued])
    sleepers = sleepers[native]
    samples["preempt"] = _preempt_samples(userfaults)
    samples["resolve_per_page"] = userfaults.resolve_ns[huge] // userfaults.pages[huge]
    # Under the lab's mmio-exit the one cost of its path is all of the stall: the fetch and the new memslot too.
    whole = mmio["end_ns"] - mmio["start_ns"]
    all_of_it = fills_in(meta) == "mmio-exit" and not exits_alone
    samples["mmio_exit"] = whole if all_of_it else mmio["queue_ns"] + mmio["wake_ns"]
    idle, busy = _woken_samples(userfaults)
    placing_ns = userfaults.resolve_ns[native]
    return Observed(samples, placing_ns, sleepers, idle, busy, uncharged, pieces.preempted, at_most_ns)


def _without_walk(placing_ns: Samples, sleepers: Samples) -> Samples:
    """Placing ioctls less their walk over other sleepers, as far as they show it themselves."""
    walk_ns = wake_walk_ns(Observed({}, placing_ns, sleepers)) if len(placing_ns) else 0
    left: Samples = np.maximum(placing_ns - walk_ns * sleepers, 0)
    return left


def _userfault_samples(faults: Userfaults, waits: bool) -> tuple[dict[str, Samples], dict[str, int]]:
    order = np.lexsort((faults.read_ns, faults.handler))
    follows = _follows(faults.handler[order])
    before_ns = np.zeros(len(order), np.int64)
    before_ns[1:] = faults.placed_ns[order[:-1]]
    read_ns = faults.read_ns[order]
    # A reader that hands the fetch on to others (QEMU's post-copy) reads again before the page is placed: it is idle.
    own = follows & (read_ns >= before_ns)
    read_ns -= before_ns  # from here on the time since the handler was through with the fault before
    start_ns, queue_ns = faults.start_ns[order], faults.queue_ns[order]
    idle = ~own | (start_ns - before_ns >= _IDLE_NS)
    if idle.sum() < _IDLE_SHARE * len(order):
        # A handler that is busy all the time is idle only after something held the accessors up: what such faults
        # show is that disturbance, and it would be charged to every fault.
        idle = np.zeros(len(order), bool)
    unpreempted_read = faults.unpreempted_read[order]
    # The message lay ready when the handler came back: what passed was the handler's own way round its loop.
    waiting = own & (start_ns + (np.median(queue_ns[idle]) if idle.any() else 0) < before_ns) & unpreempted_read
    idle &= unpreempted_read
    loop_ns, taken = read_ns[waiting], queue_ns[idle]
    del read_ns, queue_ns, waiting
    entry, unpreempted = faults.fault_entry_ns[order], faults.unpreempted[order]
    del order
    known = (entry >= 0) & unpreempted
    # No event tells when the message was ready. The accessor is asleep soon after; where that was not seen, only the
    # sum of the two is known, and only that counts for an idle handler.
    # Without CPUs as a resource the sum must be right, so both are of the same faults: those of idle handlers.
    told = known & idle if waits and idle.any() else known
    usual = round(float(np.median(entry[told]))) if told.any() else None
    # What an idle handler took from the message to its read is in `reader_wakeup` already: the loop before it was over
    # when the message came. It was so for nearly all of them, a few may have waited a little.
    before = (idle & own).nonzero()[0]
    spare: Samples = start_ns[before] + (usual or 0) - before_ns[before]
    at_most = {"handler_loop": max(int(np.quantile(spare, _IN_TIME)), 0)} if len(spare) >= MIN_SAMPLES else {}
    del start_ns, before_ns, spare
    typical = taken // 2 if usual is None else np.minimum(usual, taken)
    return {
        "fault_entry": taken // 2 if usual is None else entry[told],
        "reader_wakeup": np.maximum(taken - np.where(known[idle], entry[idle], typical), 0),
        "fetch": (faults.service_ns - faults.resolve_ns)[faults.unpreempted],
        "wake": faults.wake_ns[faults.unpreempted],
        "handler_loop": loop_ns,
    }, at_most


def _follows(handler: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Whether the row before is of the same handler."""
    follows = np.zeros(len(handler), bool)
    follows[1:] = handler[1:] == handler[:-1]
    return follows


def _woken_samples(faults: Userfaults) -> tuple[dict[str, Samples], dict[str, Samples]]:
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


def _preempt_samples(faults: Userfaults) -> Samples:
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


def _placed_before(faults: Userfaults) -> Samples:
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


def _sleepers(faults: Userfaults) -> Samples:
    """How many other faults of the same memory were waiting when each was placed."""
    others = np.zeros(len(faults.vm), np.int64)
    for vm in np.unique(faults.vm):
        mine = np.flatnonzero(faults.vm == vm)
        placed = faults.placed_ns[mine]
        begun = np.searchsorted(np.sort(faults.start_ns[mine]), placed, side="right")
        over = np.searchsorted(np.sort(placed), placed, side="right")
        others[mine] = np.maximum(begun - over, 0)
    return others
