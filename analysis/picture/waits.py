"""Each accessor's recorded stall, and who it waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.compare.metrics import Ints, union_ns

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

MOST_NAMED: Final = 8
"""So many others are told apart; with more accessors they are one."""
HANDLER_IDLE: Final = "handler, at nobody's fault"
SERVED: Final = "handler, at its own fault"
KERNEL: Final = "kernel, or not told apart"
BACK: Final = "its own way back"
CPU: Final = "a host CPU"
OTHERS: Final = "handler, at others' faults"


def who_waited(faults: pl.DataFrame, meta: Meta) -> pl.DataFrame:
    """The stall of each accessor by whom it waited for.

    Columns: `accessor`, `waited_for`, `stall_ns`. The rows of an accessor add up to its stall (faults whose end was
    seen). While a fault was queued its handler was at another's fault (that of the accessor named), or at nobody's: it
    was being woken or worked for itself. Time off the CPU wanting one, of handler or accessor, is `a host CPU`.
    """
    seen = faults.filter(faults["stall_ns"].is_not_null()).sort("start_ns")
    names = accessor_names(seen, meta)
    schema = {"accessor": pl.String, "waited_for": pl.String, "stall_ns": pl.Int64}
    if not len(seen):
        return pl.DataFrame(schema=schema)
    keys = list(names)
    index = {key: n for n, key in enumerate(keys)}
    who = np.array([index[key] for key in zip(seen["vm"], seen["tid"], strict=True)], dtype=np.int64)
    behind = _behind(seen, who, len(keys))
    parts: dict[tuple[str, str], int] = {}
    numbers = _by_accessor(seen, who, len(keys))
    for n, key in enumerate(keys):
        mine = {name: int(values[n]) for name, values in numbers.items()}
        # Of a fault that waits behind several handlers' work at once no more than its queue can be told.
        others = {names[keys[m]]: int(behind[n, m]) for m in np.flatnonzero(behind[n]) if behind[n, m] > 0}
        if len(keys) > MOST_NAMED and others:
            others = {OTHERS: sum(others.values())}
        told = sum(others.values())
        known = {
            **{(f"handler, at {name}'s fault" if name != OTHERS else name): ns for name, ns in others.items()},
            CPU: mine["preempted"],
            HANDLER_IDLE: max(mine["queue"] - told - mine["read_preempted"], 0),
            SERVED: max(mine["service"] - mine["service_preempted"], 0),
            BACK: max(mine["wake"] - mine["wake_preempted"], 0),
        }
        rest = mine["stall"] - sum(known.values())
        known[KERNEL] = max(rest, 0)
        if rest < 0:  # counted twice: taken off what is least sure
            for least in (HANDLER_IDLE, SERVED, BACK, CPU):
                taken = min(known[least], -rest)
                known[least] -= taken
                rest += taken
        for whom, ns in known.items():
            if ns:
                parts[names[key], whom] = parts.get((names[key], whom), 0) + ns
    return pl.DataFrame([(a, w, ns) for (a, w), ns in parts.items()], schema=schema, orient="row")


def accessor_names(faults: pl.DataFrame, meta: Meta) -> dict[tuple[int, int], str]:
    """(process, thread) -> `vCPU 0`, or the thread's name and number; with its process where there are several."""
    threads = {t.tid: t.comm for target in meta.targets for t in target.threads}
    known = faults.select("vm", "tid", "vcpu").unique().sort("vcpu", "vm", "tid")
    several = known["vm"].n_unique() > 1
    names: dict[tuple[int, int], str] = {}
    for vm, tid, vcpu in known.iter_rows():
        name = f"vCPU {vcpu}" if vcpu >= 0 else f"{threads.get(tid) or 'thread'} ({tid})"
        names.setdefault((vm, tid), f"{name} of {vm}" if several else name)
    return names


def _by_accessor(seen: pl.DataFrame, who: npt.NDArray[np.int64], count: int) -> dict[str, Ints]:
    def total(values: Ints) -> Ints:
        out = np.zeros(count, dtype=np.int64)
        np.add.at(out, who, values)
        return out

    def column(name: str) -> Ints:
        values: Ints = seen[name].fill_null(0).clip(0).to_numpy().astype(np.int64)
        return values

    served = np.minimum(column("service_preempted_ns"), column("service_ns"))
    read = np.minimum(column("read_preempted_ns"), column("queue_ns"))
    # `preempted_ns` is of the accessor; a sleeper that was woken and waits for a CPU does so on its way back.
    back = np.minimum(column("preempted_ns"), column("wake_ns"))
    return {
        "stall": total(column("stall_ns")),
        "queue": total(column("queue_ns")),
        "service": total(column("service_ns")),
        "wake": total(column("wake_ns")),
        "service_preempted": total(served),
        "read_preempted": total(read),
        "wake_preempted": total(back),
        "preempted": total(served + read + back),
    }


def _behind(seen: pl.DataFrame, who: npt.NDArray[np.int64], count: int) -> Ints:
    """int64[A, A]: time of each accessor's queueing in which its handler was at a fault of each other one."""
    found = np.zeros((count, count), dtype=np.int64)
    served = (seen["handler_tid"] > 0) & seen["queue_ns"].is_not_null() & seen["service_ns"].is_not_null()
    mask = served.to_numpy()
    if not mask.any():
        return found
    part = seen.filter(served)
    mine, handler = who[mask], part["handler_tid"].to_numpy()
    start = part["start_ns"].to_numpy().astype(np.int64)
    read = start + np.maximum(part["queue_ns"].to_numpy().astype(np.int64), 0)
    placed = read + np.maximum(part["service_ns"].to_numpy().astype(np.int64), 0)
    for one in np.unique(handler):
        at = handler == one
        for other in np.unique(mine[at]):
            begins, ends = union_ns(read[at & (mine == other)], placed[at & (mine == other)])
            if not len(begins):
                continue
            waiting = at & (mine != other)
            spent = _covered(begins, ends, read[waiting]) - _covered(begins, ends, start[waiting])
            np.add.at(found[:, other], mine[waiting], spent)
    return found


def _covered(begins: Ints, ends: Ints, at: Ints) -> Ints:
    """Time that disjoint, sorted spans cover up to each moment."""
    before = np.concatenate(([0], np.cumsum(ends - begins)))
    place = np.searchsorted(begins, at, side="right")
    last = np.maximum(place - 1, 0)
    inside = np.where(place > 0, np.minimum(at, ends[last]) - begins[last], 0)
    whole: Ints = before[last] + np.where(place > 0, inside, 0)
    return whole
