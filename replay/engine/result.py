"""What a replay reports: one record, and one for each resource."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from faultreplay.replay.engine.restored import Restored

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ResourceUse:
    """What one resource did; `instances` of it are added up."""

    kind: str
    servers: int
    """per instance; 0: no limit"""
    instances: int
    busy_ns: int
    acquired: int
    wait_ns: int
    max_queue: int
    bytes_moved: int

    def busy_share(self, span_ns: int) -> float:
        """Share of `Result.span_ns` that its servers were busy; 0 where there is no limit."""
        capacity = self.servers * self.instances * span_ns
        return self.busy_ns / capacity if capacity else 0.0


@dataclass(frozen=True)
class Result:
    """One replay. Rows are in the workload's order; -1 in `start_ns`: not reached before `until_ns`."""

    mechanism: str
    params: Mapping[str, float]
    seed: int
    loop: str
    start_ns: Ints
    """int64[F] from the beginning; empty when rows were not kept"""
    stall_ns: Ints
    latency_ns: Ints
    """int64[F]: fault until its content was there, for mechanisms whose accessor does not wait for it; else empty"""
    cause: npt.NDArray[np.uint8]
    accessor: npt.NDArray[np.int32]
    accessor_name: tuple[str, ...]
    accessor_kind: npt.NDArray[np.uint8]
    accessor_stall_ns: Ints
    """int64[A]: sum over its faults, refaults included"""
    accessor_faults: Ints
    window_stall_ns: Ints
    """int64[A]: time an accessor was stopped by a window, which is no fault's stall"""
    refaults: Ints
    """int64[A]: faults on emptied stage 2 that are assumed, not recorded (retouch working-set)"""
    refault_stall_ns: Ints
    run_time_ns: int
    """until the guest was through"""
    span_ns: int
    """how long resources could be busy: `run_time_ns`, and longer where streams work on when the guest is through"""
    resources: Mapping[str, ResourceUse]
    bytes_moved: int
    hazards: Mapping[str, int]
    """accessor kind -> writes inside a window that its rule does not stop"""
    windows: tuple[tuple[int, int], ...]
    """(begin, end) as they came out, with the costs of entering and leaving"""
    costs_used: Mapping[str, str]
    stage_ns: Mapping[str, int]
    """word of `time_words.TIME_WORDS` -> ns of stall before accessors ran again; adds up exactly to the stalls of all
    simulated faults, refaults included. With CPUs ``queue`` holds the waiting for them. Empty for a run that
    `until_ns` stopped."""
    histogram: Ints
    """int64[classes, bins] when rows were not kept, else empty; bounds: `histogram_edges_ns`"""
    events: int
    restored: Restored | None = field(default=None, kw_only=True)
    """of a mechanism with storage, neighbours or streams"""
    warnings: tuple[str, ...]

    @property
    def end_ns(self) -> Ints:
        """int64[F]: when each accessor ran again; -1 where not reached."""
        return np.where(self.start_ns >= 0, self.start_ns + self.stall_ns, -1)

    @property
    def total_stall_ns(self) -> int:
        """Stall of all faults and of the windows."""
        return int(self.accessor_stall_ns.sum() + self.window_stall_ns.sum())

    def without_rows(self) -> Self:
        """The same with no row a fault, as of a run that did not keep them."""
        none = np.zeros(0, np.int64)
        cause, accessor = self.cause[:0].copy(), self.accessor[:0].copy()
        return replace(self, start_ns=none, stall_ns=none, latency_ns=none, cause=cause, accessor=accessor)
