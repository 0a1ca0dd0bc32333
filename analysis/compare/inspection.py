"""What a trace holds: one record, from the trace and its stitch. Nothing is printed here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.faulttrace.meta import Meta, WindowSpan
from faultreplay.faulttrace.schema import CAUSES, Kind
from faultreplay.faulttrace.stitch import StitchReport
from faultreplay.faulttrace.stitch.zap_groups import ZapGroup, zap_groups

if TYPE_CHECKING:
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


def inspect_trace(trace: Trace, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Stitch a trace, where its faults are not kept, and count what is in it.

    `progress` gets how much of the stitch is done, and of how much.
    """
    facts = trace.stitch_facts(progress)
    groups, stall = _groups(trace)
    return Inspection(
        path=str(trace.path),
        name=trace.name,
        meta=trace.meta,
        notes=list(trace.notes),
        end_ns=trace.end_ns,
        events=trace.event_rows,
        size_bytes=trace.size_bytes,
        kinds=_kinds(trace),
        groups=groups,
        histogram=stall,
        report=facts.report,
        windows=facts.windows,
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


def _numbered(table: pa.Table, names: dict[tuple[str, str, str], int]) -> npt.NDArray[np.int16]:
    """Per fault the number of its (cause, resolution, accessor); `names` grows."""
    words: list[list[str]] = []
    number = np.zeros(table.num_rows, np.int64)
    for name in ("cause", "resolution", "accessor"):
        words.append(table[name].unique().to_pylist())
        code = pc.index_in(table[name], pa.array(words[-1], pa.string())).to_numpy().astype(np.int64)
        number = number * len(words[-1]) + code
    there, place = np.unique(number, return_inverse=True)
    keys = list(itertools.product(*words))
    numbers = [names.setdefault(keys[one], len(names)) for one in there.tolist()]
    return np.array(numbers, np.int16)[place]


def _kinds(trace: Trace) -> dict[str, int]:
    """Events by kind, the most frequent first."""
    counts = np.zeros(256, np.int64)
    for frame in trace.source(None).frames(columns=["kind"]):
        counts += np.bincount(frame["kind"].to_numpy(), minlength=256)
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda kind: (-counts[kind], kind))
    return {_kind_name(kind): int(counts[kind]) for kind in order}


def _groups(trace: Trace) -> tuple[list[Group], list[Bucket]]:
    """Faults by cause, resolution and accessor; and all stalls. One column of times is in memory at a time."""
    names: dict[tuple[str, str, str], int] = {}
    numbers, ended = [np.zeros(0, np.int16)], [np.zeros(0, bool)]
    for table in trace.fault_groups(["cause", "resolution", "accessor", "end_ns"]):
        numbers.append(_numbered(table, names))
        ended.append(table["end_ns"].is_valid().to_numpy())
    number, joined = np.concatenate(numbers), np.concatenate(ended)
    spreads: dict[str, list[Spread]] = {}
    buckets: list[Bucket] = []
    for stage in ("stall", *STAGES):
        parts = [table[f"{stage}_ns"].fill_null(-1).to_numpy() for table in trace.fault_groups([f"{stage}_ns"])]
        values = np.concatenate(parts or [np.zeros(0, np.int64)])
        known = joined & (values >= 0)
        spreads[stage] = [spread(values[known & (number == one)]) for one in range(len(names))]
        buckets = histogram(values[values >= 0]) if stage == "stall" else buckets
    groups = [
        Group(
            *key,
            faults=int((number == one).sum()),
            joined=int((joined & (number == one)).sum()),
            stall=spreads["stall"][one],
            stages={stage: spreads[stage][one] for stage in STAGES},
        )
        for key, one in names.items()
    ]
    return sorted(groups, key=lambda g: (CAUSES.index(g.cause), -g.faults, g.resolution, g.accessor)), buckets


def _kind_name(kind: int) -> str:
    return Kind(kind).name if kind in set(Kind) else f"kind {kind}"
