"""When a restored guest runs, has got going, and has all it needs; and what a prefetch brought for it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.metrics import Ints
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.language.words import CONTENT_CAUSES
from faultreplay.replay.workload.workload import Workload

_CONTENT: Final = np.array([name in CONTENT_CAUSES for name in CAUSES])
FIRST: Final = 1000


def restore_metrics(result: Result, first: int = FIRST, resume_ns: int = 0) -> dict[str, Any]:
    """Fields of `metrics.Metrics`: times from the beginning of the restore, shares of pages.

    `resume_ns`: when the guest resumed, on the replay's clock.
    """
    found = result.restored
    startup_ns = found.startup_ns if found else 0
    done = result.start_ns >= 0
    ends = result.end_ns
    fields: dict[str, Any] = {"startup_ns": startup_ns, "first_ns": _nth_ns(ends[done], first, startup_ns - resume_ns)}
    if found is None:
        content = done & _CONTENT[result.cause]
        return fields | {"all_there_ns": max(int(ends.max(initial=0, where=content)) - resume_ns, 0)}
    return fields | {
        "all_there_ns": found.all_there_ns,
        "coverage_percent": None if found.coverage is None else 100 * found.coverage,
        "waste_percent": None if found.waste is None else 100 * found.waste,
        "late_pages": found.late_pages if found.set_pages else None,
    }


def recorded_restore_metrics(workload: Workload, startup_ns: int = 0, first: int = FIRST) -> dict[str, Any]:
    """The same of a recording, whose stalls are known: nobody knows what its prefetch brought."""
    known = workload.recorded_stall_ns >= 0 if workload.recorded_stall_ns.size else np.zeros(workload.faults, bool)
    if not known.any():
        return {}
    ends = workload.recorded_start_ns[known] + workload.recorded_stall_ns[known]
    content = _CONTENT[workload.cause[known]]
    return {
        "startup_ns": startup_ns,
        "first_ns": _nth_ns(ends, first, startup_ns - workload.resume_ns),
        "all_there_ns": startup_ns + max(int(ends[content].max(initial=0)) - workload.resume_ns, 0),
    }


def last_first_touch_ns(page: npt.NDArray[np.integer[Any]], start_ns: Ints, stall_ns: Ints) -> int:
    """When the last of the pages' first faults was over; 0 of none."""
    order = np.argsort(start_ns, kind="stable")
    _, first = np.unique(page[order], return_index=True)
    return int((start_ns + stall_ns)[order[first]].max(initial=0))


def _nth_ns(ends: Ints, first: int, later_ns: int) -> int | None:
    """When the first `first` accesses were over, or all of fewer, plus `later_ns`."""
    if not ends.size:
        return None
    place = min(first, ends.size) - 1
    return max(later_ns + int(np.partition(ends, place)[place]), 0)
