"""What a trace holds: one record, from the trace and its stitch. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.faulttrace.meta import Meta, WindowSpan
from faultreplay.faulttrace.schema import CAUSES, Kind
from faultreplay.faulttrace.stitch import StitchReport, stitch_trace
from faultreplay.faulttrace.stitch.zaps import ZapGroup, zap_groups

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

STAGES: Final = ("queue", "service", "resolve", "wake")


@dataclass(frozen=True)
class Spread:
    """A set of times, in ns; all 0 of none."""

    n: int
    total_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True)
class Group:
    """Faults of one cause and resolution. `stages`: queue, service, resolve (part of service) and wake."""

    cause: str
    resolution: str
    accessor: str
    faults: int
    joined: int
    stall: Spread
    stages: Mapping[str, Spread]

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        record: dict[str, Any] = {
            "cause": self.cause,
            "resolution": self.resolution,
            "accessor": self.accessor,
            "faults": self.faults,
            "joined": self.joined,
            "unjoined": self.faults - self.joined,
        }
        for name, spread in {"stall": self.stall, **self.stages}.items():
            known = {key: value for key, value in spread.__dict__.items() if key != "n"}
            record |= {f"{name}_{key}": value if spread.n else None for key, value in known.items()}
        return record


@dataclass(frozen=True)
class Bucket:
    """Stalls from `from_ns` up to below `until_ns`."""

    from_ns: int
    until_ns: int
    faults: int


@dataclass(frozen=True)
class Inspection:
    """All that `faultreplay inspect` shows."""

    path: str
    name: str
    meta: Meta
    notes: Sequence[str]
    end_ns: int
    """CLOCK_MONOTONIC"""
    events: int
    size_bytes: int
    kinds: Mapping[str, int]
    groups: Sequence[Group]
    histogram: Sequence[Bucket]
    report: StitchReport
    windows: Sequence[WindowSpan]
    """What the ioctls show; `meta.windows` holds what the recorder was told."""
    zaps: Sequence[ZapGroup]
    """Guest memory taken away by mmu notifiers, by cause."""

    @property
    def duration_ns(self) -> int:
        """Length of the recording; of one whose recorder was killed, up to its last event."""
        return max(self.end_ns - self.meta.clock.start_ns, 0)

    @property
    def faults(self) -> int:
        """Faults of all kinds."""
        return sum(group.faults for group in self.groups)


def inspect_trace(trace: Trace) -> Inspection:
    """Stitch a trace and count what is in it."""
    stitched = stitch_trace(trace)
    made = trace.meta.origin == "synthetic" and not trace.event_rows  # its faults have no events behind them
    faults = trace.faults() if made else stitched.faults
    if not made and not trace.faults_are_kept():
        trace.keep_faults(faults)  # so that a copy of the trace can be read from far away
    kinds = trace.events(columns=["kind"]).group_by("kind").len().sort("len", "kind", descending=[True, False])
    stall = faults["stall_ns"].drop_nulls().to_numpy()
    return Inspection(
        path=str(trace.path),
        name=trace.name,
        meta=trace.meta,
        notes=list(trace.notes),
        end_ns=trace.end_ns,
        events=trace.event_rows,
        size_bytes=trace.size_bytes,
        kinds={_kind_name(kind): count for kind, count in kinds.iter_rows()},
        groups=_groups(faults),
        histogram=histogram(stall),
        report=stitched.report,
        windows=stitched.windows,
        zaps=zap_groups(trace),
    )


def spread(values_ns: Ints) -> Spread:
    """Count, sum, quantiles (nearest rank) and maximum."""
    ranked = np.sort(values_ns.astype(np.int64))
    if not len(ranked):
        return Spread(0, 0, 0, 0, 0, 0)
    p50, p90, p99 = (quantile(ranked, q) for q in (0.5, 0.9, 0.99))
    return Spread(len(ranked), int(ranked.sum()), p50, p90, p99, int(ranked[-1]))


def histogram(stall_ns: Ints) -> list[Bucket]:
    """Stalls in buckets of powers of two of a microsecond, from the least that is used to the greatest."""
    if not len(stall_ns):
        return []
    # Bucket 0 is below 1 us, bucket k from 2^(k-1) us to below 2^k us.
    number = np.ceil(np.log2(np.maximum(stall_ns // 1000, 0) + 1)).astype(np.int64)
    low, counts = int(number.min()), np.bincount(number - number.min())
    edge = [0] + [1000 << k for k in range(int(number.max()) + 1)]
    return [Bucket(edge[low + i], edge[low + i + 1], int(count)) for i, count in enumerate(counts)]


def _groups(faults: pl.DataFrame) -> list[Group]:
    groups = []
    for (cause, resolution, accessor), part in faults.group_by("cause", "resolution", "accessor"):
        joined = part.filter(part["end_ns"].is_not_null())
        stages = {stage: spread(joined[f"{stage}_ns"].drop_nulls().to_numpy()) for stage in STAGES}
        stall = spread(joined["stall_ns"].drop_nulls().to_numpy())
        groups.append(Group(str(cause), str(resolution), str(accessor), len(part), len(joined), stall, stages))
    return sorted(groups, key=lambda g: (CAUSES.index(g.cause), -g.faults, g.resolution, g.accessor))


def _kind_name(kind: int) -> str:
    return Kind(kind).name if kind in set(Kind) else f"kind {kind}"
