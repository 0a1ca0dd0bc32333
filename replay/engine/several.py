"""Several VMs as one workload, so that they share a storage device: each keeps its own handlers, locks and streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.workload.workload import Ints, Workload

_APART_BYTES: Final = 64 << 20
"""Memory of two VMs: no range and no readahead window reaches from one to the other."""


def together(several: Sequence[tuple[str, Workload, Knowledge]]) -> tuple[Workload, Knowledge]:
    """One workload of the (name, workload, what is known of it) of several VMs, which all begin at 0.

    Pages are numbered anew, VM by VM, each with a file of its own; how they lie in ranges up to 64 MiB stays.

    Raises:
        UsageError: fewer than two, or their pages are of different sizes.
    """
    sizes = {workload.page_bytes for _, workload, _ in several}
    if len(several) < 2 or len(sizes) > 1:
        raise UsageError(
            f"{len(several)} VMs with pages of {sorted(sizes)} bytes: two and more of one size are asked for"
        )
    apart = max(_APART_BYTES // sizes.pop(), 1)
    starts, moves = _places([_extent(workload, known) for _, workload, known in several], apart)
    works = [workload for _, workload, _ in several]

    def joined(of: Callable[[Workload], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([of(work) for work in works])

    def known_in_all(of: Callable[[Workload], Ints], unknown: int) -> Ints:
        if not any(of(work).size for work in works):
            return np.zeros(0, np.int64)
        return np.concatenate([of(w) if of(w).size else np.full(w.faults, unknown, np.int64) for w in works])

    before = np.concatenate([[0], np.cumsum([work.faults for work in works])])
    moved = [work.page.astype(np.int64) + move for work, move in zip(works, moves, strict=True)]
    workload = Workload(
        accessor_start=np.concatenate([[0], *(w.accessor_start[1:] + n for w, n in zip(works, before, strict=False))]),
        think_ns=joined(lambda w: w.think_ns),
        page=np.concatenate(moved),
        access=joined(lambda w: w.access),
        cause=joined(lambda w: w.cause),
        recorded_stall_ns=known_in_all(lambda w: w.recorded_stall_ns, -1),
        recorded_start_ns=known_in_all(lambda w: w.recorded_start_ns, -1),
        accessor_kind=joined(lambda w: w.accessor_kind),
        accessor_name=tuple(f"{name}: {one}" for name, work, _ in several for one in work.accessor_name),
        tail_ns=joined(lambda w: w.tail_ns),
        asleep_ns=known_in_all(lambda w: w.asleep_ns, 0),
        preempted_ns=known_in_all(lambda w: w.preempted_ns, 0),
        page_bytes=works[0].page_bytes,
        origin="several",
        vm_start=starts,
    )
    sets = [known.working_set for _, _, known in several]
    if any(one is None for one in sets) and not all(one is None for one in sets):
        raise UsageError("of some VMs an earlier run is known, of others none: all or none")
    working_set = None
    if sets[0] is not None:
        working_set = np.concatenate([one + move for one, move in zip(sets, moves, strict=True) if one is not None])
    memory = [
        (first + int(move), count)
        for (_, _, known), move in zip(several, moves, strict=True)
        for first, count in known.memory
    ]
    every = all(known.memory for _, _, known in several)
    return workload, Knowledge(working_set, tuple(memory) if every else ())


def _extent(workload: Workload, known: Knowledge) -> tuple[int, int]:
    """The first page that matters, and the one behind the last."""
    pages = [workload.page.astype(np.int64)]
    if known.working_set is not None:
        pages.append(known.working_set)
    pages += [np.array([first, first + count - 1]) for first, count in known.memory if count]
    every = np.concatenate(pages)
    return (int(every.min()), int(every.max()) + 1) if every.size else (0, 1)


def _places(extents: Sequence[tuple[int, int]], apart: int) -> tuple[Ints, Ints]:
    """(first page of each VM's range, how far its pages move)."""
    starts, moves, begin = [], [], apart
    for low, high in extents:
        floor = low // apart * apart
        starts.append(begin)
        moves.append(begin - floor)
        begin += -(-(high - floor) // apart) * apart + apart
    return np.array(starts, np.int64), np.array(moves, np.int64)
