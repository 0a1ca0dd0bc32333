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
HANDLER_IDLE: Final = "handler: no fault (waking, other work)"
SERVED: Final = "handler: own fault"
KERNEL: Final = "kernel, or unknown"
BACK: Final = "wake-up"
CPU: Final = "host CPU"
OTHERS: Final = "handler: faults of others"
MOST_SHOWN: Final = 24
"""So many accessors have a bar of their own."""


def who_waited(faults: pl.DataFrame, meta: Meta) -> pl.DataFrame:
    """The stall of each accessor by whom it waited for.

    Columns: `accessor`, `waited_for`, `stall_ns`. The rows of an accessor add up to its stall (faults whose end was
    seen). While a fault was queued its handler was at another's fault (that of the accessor named), or at nobody's: it
    was being woken or worked for itself. Time off the CPU wanting one, of handler or accessor, is `host CPU`. Of more
    than `MOST_SHOWN` accessors those with the least stall are one.
    """
    seen = faults.filter(faults["stall_ns"].is_not_null()).sort("start_ns")
    names = accessor_names(seen, meta)
    schema = {"accessor": pl.String, "waited_for": pl.String, "stall_ns": pl.Int64}
    if not len(seen):
        return pl.DataFrame(schema=schema)
    keys = list(names)
    index = pl.DataFrame(
        {"vm": [vm for vm, _ in keys], "tid": [tid for _, tid in keys], "who": range(len(keys))},
        schema={"vm": seen["vm"].dtype, "tid": seen["tid"].dtype, "who": pl.Int64},
    )
    who = seen.select("vm", "tid").join(index, on=["vm", "tid"], how="left", maintain_order="left")["who"].to_numpy()
    numbers = _by_accessor(seen, who, len(keys))
    behind, told = _behind(seen, who, len(keys))
    shown = {keys[n]: names[keys[n]] for n in np.argsort(-numbers["stall"], kind="stable")[:MOST_SHOWN]}
    rest = f"{len(keys) - len(shown)} more"
    parts: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        # Of a fault that waits behind several handlers' work at once no more than its queue can be told.
        others = {f"handler: fault of {names[keys[m]]}": ns for m, ns in behind[n].items()}
        if len(keys) > MOST_NAMED:
            others = {OTHERS: int(told[n])}
        mine = {name: int(values[n]) for name, values in numbers.items()}
        for whom, ns in _told_apart(mine, others).items():
            if ns:
                place = (shown.get(key, rest), whom)
                parts[place] = parts.get(place, 0) + ns
    order = [name for key, name in names.items() if key in shown] + [rest]
    rows = sorted(((a, w, ns) for (a, w), ns in parts.items()), key=lambda row: order.index(row[0]))
    return pl.DataFrame(rows, schema=schema, orient="row")


def _told_apart(mine: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """The stall of one accessor by whom it waited for, ns; what none of them holds is the kernel's."""
    known = {
        **others,
        CPU: mine["preempted"],
        HANDLER_IDLE: max(mine["queue"] - sum(others.values()) - mine["read_preempted"], 0),
        SERVED: max(mine["service"] - mine["service_preempted"], 0),
        BACK: max(mine["wake"] - mine["wake_preempted"], 0),
    }
    rest = mine["stall"] - sum(known.values())
    known[KERNEL] = max(rest, 0)
    # Counted twice: taken off what is least sure.
    for least in (HANDLER_IDLE, SERVED, BACK, CPU, *others):
        if rest >= 0:
            break
        taken = min(known[least], -rest)
        known[least] -= taken
        rest += taken
    return known


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


def _behind(seen: pl.DataFrame, who: npt.NDArray[np.int64], count: int) -> tuple[list[dict[int, int]], Ints]:
    """Time of each accessor's queueing in which its handler was at a fault of each other one, and of any.

    With more than `MOST_NAMED` accessors only the second is told.
    """
    each: list[dict[int, int]] = [{} for _ in range(count)]
    told = np.zeros(count, dtype=np.int64)
    served = (seen["handler_tid"] > 0) & seen["queue_ns"].is_not_null() & seen["service_ns"].is_not_null()
    mask = served.fill_null(False).to_numpy()
    if not mask.any():
        return each, told
    part = seen.filter(mask)
    mine, handler = who[mask], part["handler_tid"].to_numpy()
    start = part["start_ns"].to_numpy().astype(np.int64)
    read = start + np.maximum(part["queue_ns"].to_numpy().astype(np.int64), 0)
    placed = read + np.maximum(part["service_ns"].to_numpy().astype(np.int64), 0)
    for at in _groups(handler):
        if count > MOST_NAMED:
            begins, ends = union_ns(read[at], placed[at])
            np.add.at(told, mine[at], _waited(begins, ends, start[at], read[at]))
        for place in _groups(mine[at]):
            his = at[place]
            other = int(mine[his[0]])
            begins, ends = union_ns(read[his], placed[his])
            if count > MOST_NAMED:  # one's own other faults are taken off all that the handler did
                told[other] -= int(_waited(begins, ends, start[his], read[his]).sum())
                continue
            waiting = at[mine[at] != other]
            spent = np.zeros(count, dtype=np.int64)
            np.add.at(spent, mine[waiting], _waited(begins, ends, start[waiting], read[waiting]))
            for n in np.flatnonzero(spent):
                each[n][other] = each[n].get(other, 0) + int(spent[n])
    return each, np.maximum(told, 0)


def _groups(keys: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Indices of the rows of each key, in order."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(keys) else []


def _waited(begins: Ints, ends: Ints, start: Ints, read: Ints) -> Ints:
    """How much of each wait from `start` to `read` disjoint, sorted spans cover."""
    if not len(begins):
        return np.zeros(len(start), dtype=np.int64)
    return _covered(begins, ends, read) - _covered(begins, ends, start)


def _covered(begins: Ints, ends: Ints, at: Ints) -> Ints:
    """Time that disjoint, sorted spans cover up to each moment."""
    before = np.concatenate(([0], np.cumsum(ends - begins)))
    place = np.searchsorted(begins, at, side="right")
    last = np.maximum(place - 1, 0)
    inside = np.where(place > 0, np.minimum(at, ends[last]) - begins[last], 0)
    whole: Ints = before[last] + np.where(place > 0, inside, 0)
    return whole
