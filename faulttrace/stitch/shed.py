"""Intervals in which the recorder switched off groups of probes to keep to a limit: what is missing there is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from faultreplay.faulttrace.stitch.keys import I64, Bools

_NEEDED: Final = ("faults", "kvm", "sched")
"""Groups whose events a join is made of."""


class ShedSpans:
    """The intervals of `Meta.extra` in which a group that the stitch needs was off."""

    def __init__(self, extra: Mapping[str, Any]) -> None:
        spans = [span for span in extra.get("shed", []) if span.get("group") in _NEEDED]
        self._spans = [(int(span["start_ns"]), int(span["end_ns"])) for span in spans if "end_ns" in span]

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._spans)

    def touch(self, start_ns: I64, end_ns: I64) -> Bools:
        """Whether a group was off at some time in each interval."""
        touched = np.zeros(len(start_ns), bool)
        for begin, end in self._spans:
            touched |= (start_ns <= end) & (end_ns >= begin)
        return touched


def until_next(thread: I64, start_ns: I64, never: int) -> I64:
    """When the same thread's next fault begins, `never` for the last one."""
    order = np.lexsort((start_ns, thread))
    until = np.full(len(thread), never, np.int64)
    same = thread[order][1:] == thread[order][:-1]
    until[order[:-1]] = np.where(same, start_ns[order][1:], never)
    return until
