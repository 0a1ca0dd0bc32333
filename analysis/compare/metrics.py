"""The metrics of a set of stalls. Arrays in, one frozen record out; `docs/metrics.md` says what each number means.

Four times are kept apart and never added up: the stalls of accessors, the latency until content is there (more than the
stall where faults are asynchronous), the time a vCPU was blocked (the union of its stalls), and the time in which every
vCPU was blocked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    pass

Ints = npt.NDArray[np.int64]

QUANTILES: Final = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999))
LATENCY_QUANTILES: Final = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


@dataclass(frozen=True)
class Use:
    """How a resource was used: `busy_ns` summed over its servers, `share` of what they could have given."""

    name: str
    servers: int
    busy_ns: int
    share: float
    max_queue: int


@dataclass(frozen=True)
class Metrics:
    """One run (predicted or measured) in numbers; every time is in integer ns."""

    faults: int
    total_stall_ns: int
    total_latency_ns: int
    vcpus: int
    stall_per_vcpu_mean_ns: int
    stall_per_vcpu_min_ns: int
    stall_per_vcpu_max_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p99_9_ns: int
    max_ns: int
    blocked_ns: int
    all_stalled_ns: int
    run_time_ns: int
    slowdown: float | None = None
    faults_per_s: float | None = None
    window_stall_ns: int = 0
    refaults: int = 0
    refault_stall_ns: int = 0
    latency_p50_ns: int | None = None
    latency_p99_ns: int | None = None
    latency_max_ns: int | None = None
    bytes_moved: int | None = None
    over_fetch: float | None = None
    bottleneck: str | None = None
    bottleneck_share: float | None = None
    startup_ns: int | None = None
    first_ns: int | None = None
    all_there_ns: int | None = None
    coverage_percent: float | None = None
    waste_percent: float | None = None
    late_pages: int | None = None
    uses: tuple[Use, ...] = ()
    hazards: Mapping[str, int] = field(default_factory=dict)
    where_ns: Mapping[str, int] = field(default_factory=dict)

    def where(self, least_percent: float = 10.0, most: int = 2) -> str:
        """Where the stall of simulated faults went, the greatest first, as `fetch 61 %, queue 27 %`; empty: unknown."""
        total = sum(self.where_ns.values())
        shares = sorted(((100 * ns / total, word) for word, ns in self.where_ns.items() if ns and total), reverse=True)
        kept = [one for one in shares if one[0] >= least_percent][:most] or shares[:1]
        return ", ".join(f"{word} {percent:.0f} %" for percent, word in kept)

    def as_record(self) -> dict[str, Any]:
        """The fields as a flat record for output; resources and hazards as mappings."""
        record = dict(self.__dict__)
        record["uses"] = {u.name: {k: v for k, v in u.__dict__.items() if k != "name"} for u in self.uses}
        record["hazards"] = dict(self.hazards)
        record["where_ns"] = dict(self.where_ns)
        return record


def quantile(sorted_values: Ints, q: float) -> int:
    """The nearest-rank quantile: the smallest stall that at least a share `q` of the stalls does not exceed.

    It is always a stall that happened; 0 of none.
    """
    if not len(sorted_values):
        return 0
    # A product like 0.07 * 100 is 7.000000000000001 in binary: not an eighth rank.
    rank = int(np.ceil(q * len(sorted_values) - 1e-9))
    return int(sorted_values[min(max(rank, 1), len(sorted_values)) - 1])


def union_ns(start_ns: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    """The same time covered by disjoint intervals, sorted; empty intervals vanish."""
    if len(start_ns) and (start_ns[1:] > end_ns[:-1]).all() and (end_ns > start_ns).all():
        return start_ns, end_ns  # as of one accessor's faults: no copies of a long run's
    some = end_ns > start_ns
    order = np.argsort(start_ns[some], kind="stable")
    start, end = start_ns[some][order], end_ns[some][order]
    if not len(start):
        return start, end
    reach = np.maximum.accumulate(end)
    first = np.concatenate(([True], start[1:] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return start[first], reach[last]


def overlap_ns(start_ns: Ints, end_ns: Ints, depth: int) -> int:
    """Total time in which at least `depth` of the intervals overlap."""
    if depth <= 0 or depth > len(start_ns):
        return 0
    # Between its k-th and its next end so many are open as began less k: `depth` of them from that start on.
    starts, ends = np.sort(start_ns)[depth - 1 :], np.sort(end_ns)
    since = starts
    np.maximum(since[1:], ends[: len(since) - 1], out=since[1:])
    return int(np.maximum(ends[: len(since)] - since, 0).sum())


def stops_ns(blocked: tuple[Ints, Ints, Ints] | None, window_stall_ns: Ints | None) -> Ints:
    """How long each stop of an accessor by a window was: its stall in windows, shared out by the spans' lengths."""
    if blocked is None or window_stall_ns is None or not len(blocked[0]):
        return np.zeros(0, dtype=np.int64)
    who, length = blocked[0], blocked[2] - blocked[1]
    whole = np.bincount(who, weights=length, minlength=len(window_stall_ns))[who]
    shares: Ints = np.rint(window_stall_ns[who] * (length / np.maximum(whole, 1))).astype(np.int64)
    return shares


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `measure` counts: one run, predicted or recorded. Times in ns.

    Args of the constructor:
        accessor: who took each fault, an index.
        start_ns, stall_ns: per fault; a fault with a stall below 0 is of unknown length and left out.
        latency_ns: per fault, until its content was there, where its accessor did not wait for that; kept apart from
            the stalls.
        counted: per accessor, whether it is a vCPU (every accessor where the trace has none).
        run_time_ns: from the first accessor's start until the last one is done.
        ideal_run_time_ns: the same with no stall at all; the slow-down is against it.
        bytes_moved, needed_bytes: brought in, and what the touched pages hold.
        uses: resources; the one with the greatest share of its time is the bottleneck.
        where_ns: where the stall went, by word.
        hazards: writes into a window that its mechanism did not stop, by class.
        blocked: further spans in which an accessor stood still (accessor, start, end), as in a pause.
        window_stall_ns, refault_stall_ns: per accessor, stall that is no recorded fault's. It is in totals and in
            quantiles: a stop counts as one stall (of several, each has its share by the length of its span), an assumed
            refault as one of mean length.
        refaults: how many faults were assumed beyond the recorded ones.
    """

    accessor: npt.NDArray[np.integer[Any]]
    start_ns: Ints
    stall_ns: Ints
    counted: npt.NDArray[np.bool_]
    run_time_ns: int
    latency_ns: Ints | None = None
    ideal_run_time_ns: int | None = None
    bytes_moved: int | None = None
    needed_bytes: int | None = None
    uses: tuple[Use, ...] = ()
    hazards: Mapping[str, int] | None = None
    where_ns: Mapping[str, int] | None = None
    blocked: tuple[Ints, Ints, Ints] | None = None
    window_stall_ns: Ints | None = None
    refaults: int = 0
    refault_stall_ns: Ints | None = None


def _stalled_spans(run: Run, accessor: npt.NDArray[np.integer[Any]], start_ns: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    """(start, end) of every span in which a counted accessor stood still, each accessor's own spans joined."""
    starts, ends = [], []
    who, begins, finishes = accessor, start_ns, end_ns
    if run.blocked is not None and len(run.blocked[0]):
        who, begins, finishes = (
            np.concatenate(pair) for pair in zip((accessor, start_ns, end_ns), run.blocked, strict=True)
        )
    if (who[1:] < who[:-1]).any():
        order = np.argsort(who, kind="stable")
        who, begins, finishes = who[order], begins[order], finishes[order]
    bounds = np.searchsorted(who, np.arange(len(run.counted) + 1))
    for one in np.flatnonzero(run.counted):
        mine = slice(bounds[one], bounds[one + 1])
        a, b = union_ns(begins[mine], finishes[mine])
        starts.append(a)
        ends.append(b)
    none = np.zeros(0, dtype=np.int64)
    if len(starts) == 1:
        return starts[0], ends[0]
    return (np.concatenate(starts), np.concatenate(ends)) if starts else (none, none)


def measure(run: Run) -> Metrics:
    """The numbers of one run."""
    accessor, start_ns, stall_ns, latency = run.accessor, run.start_ns, run.stall_ns, run.latency_ns
    known = stall_ns >= 0
    if not known.all():
        accessor, start_ns, stall_ns = accessor[known], start_ns[known], stall_ns[known]
        latency = None if latency is None else latency[known]
    latency = stall_ns if latency is None else np.maximum(latency, stall_ns)
    stops = stops_ns(run.blocked, run.window_stall_ns)
    again = 0 if run.refault_stall_ns is None else int(run.refault_stall_ns.sum())
    assumed = np.full(run.refaults if again else 0, round(again / max(run.refaults, 1)), dtype=np.int64)
    ranked = np.concatenate((stall_ns, stops, assumed))
    ranked.sort()
    asynchronous = {}
    if run.latency_ns is not None:
        waited = np.sort(latency)
        asynchronous = {f"latency_{name}_ns": quantile(waited, q) for name, q in LATENCY_QUANTILES}
    per_accessor = np.zeros(len(run.counted), dtype=np.int64)
    np.add.at(per_accessor, accessor, stall_ns)
    for more in (run.window_stall_ns, run.refault_stall_ns):
        per_accessor += 0 if more is None else more
    per_vcpu = per_accessor[run.counted]
    all_start, all_end = _stalled_spans(run, accessor, start_ns, start_ns + stall_ns)
    busiest = max((u for u in run.uses if u.busy_ns), key=lambda u: u.share, default=None)
    return Metrics(
        faults=len(stall_ns),
        total_stall_ns=int(per_accessor.sum()),
        total_latency_ns=int(latency.sum()),
        vcpus=int(run.counted.sum()),
        stall_per_vcpu_mean_ns=round(per_vcpu.mean()) if len(per_vcpu) else 0,
        stall_per_vcpu_min_ns=int(per_vcpu.min(initial=np.iinfo(np.int64).max)) if len(per_vcpu) else 0,
        stall_per_vcpu_max_ns=int(per_vcpu.max(initial=0)),
        **{f"{name}_ns": quantile(ranked, q) for name, q in QUANTILES},
        max_ns=int(ranked[-1]) if len(ranked) else 0,
        blocked_ns=int((all_end - all_start).sum()),
        all_stalled_ns=overlap_ns(all_start, all_end, int(run.counted.sum())),
        run_time_ns=int(run.run_time_ns),
        slowdown=run.run_time_ns / run.ideal_run_time_ns if run.ideal_run_time_ns else None,
        faults_per_s=len(stall_ns) * 1e9 / run.run_time_ns if run.run_time_ns > 0 else None,
        window_stall_ns=0 if run.window_stall_ns is None else int(run.window_stall_ns.sum()),
        refaults=run.refaults,
        refault_stall_ns=again,
        **asynchronous,
        bytes_moved=run.bytes_moved,
        over_fetch=run.bytes_moved / run.needed_bytes if run.bytes_moved and run.needed_bytes else None,
        bottleneck=busiest.name if busiest else None,
        bottleneck_share=busiest.share if busiest else None,
        uses=run.uses,
        hazards=dict(run.hazards or {}),
        where_ns=dict(run.where_ns or {}),
    )
