"""What the lab stores about its run: `lab` in `meta.json`. All keys are absent in traces of other origins."""

from __future__ import annotations

from typing import Any, TypedDict


class LabWindow(TypedDict, total=False):
    """One window as it ran; times are ns of CLOCK_MONOTONIC."""

    kind: str
    ran: int
    """1: it began"""
    begin_from_ns: int
    """making it began (protect, delete, kick)"""
    begin_ns: int
    """it was made: its work begins"""
    end_from_ns: int
    """its work was done: undoing it began"""
    end_ns: int
    """it was undone"""
    pages_checked: int
    pages_changed: int
    """between begin and end; must be 0"""


class LabWaiters(TypedDict, total=False):
    """Accesses in progress when a window began to end."""

    kind: str
    accesses: int
    writers: int
    """messages of writers that met a freeze"""
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
    """stood still in pauses"""


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
    """Pages that were brought unasked; times are ns of CLOCK_MONOTONIC."""

    set_pages: int
    """in the set, pages of 4 KiB"""
    from_ns: int
    end_ns: int
    """the last thread was through, or the run was over"""
    placed: int
    already_there: int
    """a fault, or a granule with a page before, had brought them"""
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
    """from there to the end of the last access"""
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
    """one a window"""
    startup_ns: int
    """work of a restore before the accessors start (copy, prefetch): in no stall"""
    prefetch: LabPrefetch
    cached_pages: int
    """of the snapshot file, in the page cache before the start, pages of 4 KiB"""
    storage_bytes_per_s: int
    """of the device under a cold snapshot, by large and small reads past the page cache before the run"""
    dirty: dict[str, int]
    """dirty logging: rounds, pages, ns"""
    verified: dict[str, int]
    """pages touched, and what was wrong with them"""
    notes: list[str]
    """what was left out where a recorded trace was done again"""
    problem: str
    """why the run is not good; empty: it is"""
