"""What bpftrace cannot put into its columns: the process whose memory another process zapped, and the trace's clock."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from faultreplay.collect.targets.ranges import VmRanges
from faultreplay.faulttrace.schema import Kind


class Owners:
    """Whose memory lies where."""

    def __init__(self) -> None:
        self.ranges = VmRanges()
        self._zapped: dict[int, int] = {}  # thread of no target -> the process whose memory it zapped last, or 0

    def find(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Fill in the process whose memory other threads zapped; 0 if it is not a target's."""
        kind, tgid = columns["kind"], columns["tgid"]
        for i in np.flatnonzero((kind == Kind.KVM_SET_MEMSLOT) & (columns["value"] == 0)).tolist():
            start, size = int(columns["ip"][i]), int(columns["size"][i])
            self.ranges.add(int(tgid[i]), start, start + size)
        strange = (tgid == 0) & ((kind == Kind.KVM_UNMAP_HVA_RANGE) | (kind == Kind.MM_CAUSE))
        for i in np.flatnonzero(strange).tolist():
            tid = int(columns["tid"][i])
            if kind[i] == Kind.KVM_UNMAP_HVA_RANGE:
                start, size = int(columns["addr"][i]), int(columns["size"][i])
                self._zapped[tid] = self.ranges.owner(start, start + size)
            tgid[i] = self._zapped.get(tid, 0)


def clock_offset_ns(nsecs: int) -> int:
    """What to take from bpftrace's `nsecs`, which may count time in suspend, to have CLOCK_MONOTONIC."""
    monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return boot - monotonic if abs(boot - nsecs) < abs(monotonic - nsecs) else 0
