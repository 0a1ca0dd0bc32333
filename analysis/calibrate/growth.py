"""The lab's growing runs: the same saturated load with 1, 2, 4 ... accessors, up to what the host has CPUs for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from faultreplay.analysis.calibrate.saturated import Row
from faultreplay.faulttrace.errors import MissingFeature

if TYPE_CHECKING:
    from faultreplay.lab.spec import LabSpec

PAGES: Final = 2000
"""Of each accessor: some tens of milliseconds."""


@dataclass(frozen=True)
class Series:
    """A lab mechanism, and how many handlers go with n accessors."""

    name: str
    mechanism: str
    handlers: Callable[[int], int]
    params: Callable[[int], Mapping[str, float]]
    """of the replay's mechanism, which has the lab's name"""
    target: str = "kvm"
    """or `process`: threads that touch their own memory, without a guest"""

    def threads(self, accessors: int) -> int:
        """Threads that want a CPU each."""
        return accessors + self.handlers(accessors)


SERIES: Final = (
    Series("plain faults", "host-lazy", lambda n: 0, lambda n: {}),
    Series("KVM exits", "kvm-exit", lambda n: 0, lambda n: {}),
    Series("userfaultfd, one reader", "uffd-missing", lambda n: 1, lambda n: {"handlers": 1}),
    Series("userfaultfd, a reader each", "uffd-missing", lambda n: n, lambda n: {"handlers": n}),
    Series("a userfaultfd each", "uffd-sharded", lambda n: n, lambda n: {"shards": n, "handlers": 1}),
    Series("memfd, a reader each", "uffd-minor", lambda n: n, lambda n: {"handlers": n}),
    # Without an exit to the host the address space's own part of a fault shows most.
    Series("process, plain faults", "host-lazy", lambda n: 0, lambda n: {}, "process"),
    # Without a guest the locks of userfaultfd are more of a fault, and a host without KVM has these alone.
    Series("process, one reader", "uffd-missing", lambda n: 1, lambda n: {"handlers": 1}, "process"),
    Series("process, a reader each", "uffd-missing", lambda n: n, lambda n: {"handlers": n}, "process"),
    Series(
        "process, a userfaultfd each", "uffd-sharded", lambda n: n, lambda n: {"shards": n, "handlers": 1}, "process"
    ),
)


@dataclass
class Growth:
    """What growing runs gave."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """series or run -> why it was not made"""

    @classmethod
    def together(cls, passes: Sequence[Growth]) -> Growth:
        """The same runs made again and again: each row with a rate for each time."""
        rows: dict[tuple[str, int], Row] = {}
        for row in (row for one in passes for row in one.rows):
            key = (row.series, row.accessors)
            before = rows[key].faults_per_s if key in rows else ()
            rows[key] = replace(row, faults_per_s=(*before, *row.faults_per_s))
        left_out = {what: why for one in passes for what, why in one.left_out.items()}
        for key in [key for key, row in rows.items() if len(row.faults_per_s) < len(passes)]:
            left_out.setdefault(f"{key[0]}, {key[1]}", "not made each time")
            del rows[key]
        return cls(list(rows.values()), left_out)


def planned(cpus: int) -> tuple[list[tuple[Series, int]], dict[str, str]]:
    """Series and accessors of each run for so many CPUs, and the series that need more.

    Each thread has its own CPU: a thread that waits for one does not contend.
    """
    from faultreplay.lab.spec import MAX_ACCESSORS

    runs, left_out = [], {}
    counts = [1 << n for n in range(MAX_ACCESSORS.bit_length()) if 1 << n <= MAX_ACCESSORS]
    for series in SERIES:
        fits = [n for n in counts if series.threads(n) <= cpus]
        if len(fits) > 1:
            runs += [(series, n) for n in fits]
        else:
            left_out[series.name] = f"2 accessors and their readers need {series.threads(2)} CPUs"
    return runs, left_out


def spec_of(series: Series, accessors: int) -> LabSpec:
    """Private pages, no think time, no fetch, each thread on its own CPU."""
    from faultreplay.lab.spec import LabSpec

    return LabSpec(
        series.mechanism,
        target=series.target,
        vcpus=accessors,
        handlers=series.handlers(accessors) or None,
        pages=PAGES,
        access="w",
        think="0us",
        fetch="0us",
        pin=True,
    )


def growing_runs(say: Callable[[str], None], cpus: int | None = None) -> Growth:
    """Make them once, without recording: probes would be in each other's way, too.

    Args:
        say: called with a word on each run.
        cpus: to take; None: all that this process may use.
    """
    from faultreplay.lab.runner import run

    runs, left_out = planned(cpus or len(os.sched_getaffinity(0)))
    growth = Growth(left_out=left_out)
    for series, accessors in runs:
        say(f"lab: {series.name}, {accessors}")
        try:
            result = run(spec_of(series, accessors))
        except MissingFeature as error:
            growth.left_out[series.name] = str(error)
            continue
        if result.problem:
            growth.left_out[f"{series.name}, {accessors}"] = result.problem
            continue
        rate = accessors * PAGES / result.run_time_ns * 1e9
        growth.rows.append(Row(series.name, series.mechanism, accessors, (rate,), series.params(accessors)))
    return growth
