"""What the lab stores about its run: `lab` in `meta.json`. All keys are absent in traces of other origins."""

from __future__ import annotations

from typing import Any, TypedDict


class LabWindow(TypedDict, total=False):
    """One window as it ran; times are ns of CLOCK_MONOTONIC."""

    kind: str
    ran: int
    """1: it began"""
    begin_from_ns: int
    """its set-up began (protect, delete, kick)"""
    begin_ns: int
    """set-up was done: the work inside the window begins"""
    end_from_ns: int
    """the work was done: tear-down began"""
    end_ns: int
    """tear-down was done"""
    pages_checked: int
    pages_changed: int
    """between begin and end; must be 0"""


class LabWaiters(TypedDict, total=False):
    """Accesses in progress when a window began to end."""

    kind: str
    accesses: int
    writers: int
    """messages of writers that were stopped by a freeze"""
    first_start_ns: int
    last_end_ns: int
    waited_ns: int
    """sum over the accesses"""


class LabAccessor(TypedDict, total=False):
    """One vCPU or thread, by the host program's own counts."""

    done: int
    left: int
    efault_exits: int
    mmio_exits: int
    kicks: int
    parked_ns: int
    """time stopped in pauses"""


class LabTotals(TypedDict, total=False):
    """One vCPU or thread, by its own clock."""

    tid: int
    accesses: int
    access_ns: int
    run_time_ns: int


class LabServices(TypedDict, total=False):
    """Resolutions by the resolver's own clock."""

    resolved: int
    already_there: int
    waited_for_thaw: int
    fetch_ns: dict[str, float]
    """n, mean, sd, p50, p90, p99, max"""
    resolve_ns: dict[str, float]


class LabPrefetch(TypedDict, total=False):
    """Pages that were prefetched; times are ns of CLOCK_MONOTONIC."""

    set_pages: int
    """pages of 4 KiB in the prefetch set"""
    from_ns: int
    end_ns: int
    """the last thread had finished, or the run had ended"""
    placed: int
    already_there: int
    """already placed by a fault, or with the granule of an earlier page"""
    fetch_ns: dict[str, float]
    """n, mean, sd, p50, p90, p99, max"""
    resolve_ns: dict[str, float]


class LabFacts(TypedDict, total=False):
    """All of `lab`."""

    spec: dict[str, Any]
    """the parameters of the run: the fields of `faultreplay.lab.spec.LabSpec`"""
    base_ns: int
    """the accessors' common start, CLOCK_MONOTONIC"""
    run_time_ns: int
    """from `base_ns` to the end of the last access"""
    clock_error_ns: float
    """bound of the error of the accessors' clock to CLOCK_MONOTONIC"""
    data_pages: int
    pinned: bool
    """each thread was pinned to one CPU"""
    accesses: int
    accessors: list[LabAccessor]
    per_accessor: list[LabTotals]
    services: LabServices
    windows: list[LabWindow]
    window_writes: int
    """pages that changed inside windows that must stop all writes"""
    waiters: list[LabWaiters]
    """one per window"""
    startup_ns: int
    """work of a restore before the accessors start (copy, prefetch): not part of any stall"""
    prefetch: LabPrefetch
    cached_pages: int
    """pages of 4 KiB of the snapshot file that were in the page cache before the start"""
    storage_bytes_per_s: int
    """bandwidth of the device of a cold snapshot, measured before the run by large and small reads that bypass the page
    cache"""
    dirty: dict[str, int]
    """dirty logging: rounds, pages, ns"""
    verified: dict[str, int]
    """pages touched, and what was wrong with them"""
    notes: list[str]
    """what was left out when a recorded trace was repeated"""
    problem: str
    """why the run is not valid; empty: it is valid"""
