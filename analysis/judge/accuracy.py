"""How far stitched faults are from what the accessors measured themselves (lab traces).

Each fault is compared with the access it lies in: same thread, and the fault starts within the access. An accessor
does one thing at a time, so there is at most one. Bias is the median difference, and constant for a pair of markers;
the residual is what remains. Nothing is ever corrected in the faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.stitch.keys import Axis, Ids, Index, take

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

Ints = npt.NDArray[np.int64]
_LEVELS: Final = (0.5, 0.95, 0.99)
_STRETCHES: Final = 20


@dataclass(frozen=True)
class Agreement:
    """Faults of one cause, found by the same markers (`join`), against the truth. Stitched minus true, ns."""

    cause: str
    join: str
    n: int
    bias_ns: int
    start_bias_ns: int
    end_bias_ns: int
    residual_p50_ns: int
    residual_p95_ns: int
    residual_p99_ns: int
    stretch_p95_ns: int
    """p95 of the residual in the middle one of twenty stretches of the run: without bursts of other work."""
    true_p50_ns: int
    total_error: float
    """Error of the summed stall, a share of the true sum; the bias is in it."""
    unbiased_total_error: float
    """The same with the median bias taken off each fault."""

    def as_record(self) -> dict[str, Any]:
        """The fields, for output."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Accuracy:
    """A trace's stitched faults against its truth."""

    trace: str
    rows: Sequence[Agreement]
    faults: int
    """Faults with an end, of threads that kept a truth."""
    unmatched_faults: int
    """Of these, the ones that lie in no access."""
    second_faults: int
    """Of these, further faults of one access; the longest one is compared with it."""
    other_page: int
    """Matched by thread and time, but on another page than the access: 0 unless something is wrong."""
    accesses: int
    silent_stalls: int
    """Accesses as slow as the fastest matched one, and no fault was seen for them."""
    clock_error_ns: int


def accuracy_of(trace: Trace) -> Accuracy:
    """Compare a trace's faults with its `truth.parquet`.

    Raises:
        UsageError: the trace has none.
    """
    truth = trace.truth()
    if truth is None:
        raise UsageError(
            f"{trace.path}: no truth.parquet: only lab traces know what really happened (faultreplay lab run)"
        )
    return compare_with_truth(trace.faults(), truth, trace.name, int(trace.meta.lab.get("clock_error_ns", 0)))


def truthful(trace: Trace) -> pl.DataFrame:
    """A lab trace's faults with start and end as the accessors' own clock had them; those in no access are left out.

    The time before the first event joins the queueing, the time after the last one the wake; a kernel's own fault just
    grows. What is between stays as it was.

    Raises:
        UsageError: the trace has no truth.
    """
    import polars as pl

    truth = trace.truth()
    if truth is None:
        raise UsageError(
            f"{trace.path}: no truth.parquet: only lab traces know what really happened (faultreplay lab run)"
        )
    matched = _match(trace.faults(), truth)
    early = pl.Series(matched.start_ns - matched.true_start_ns)
    late = pl.Series(matched.true_end_ns - matched.end_ns)
    return matched.faults.with_columns(
        pl.Series("start_ns", matched.true_start_ns),
        pl.Series("end_ns", matched.true_end_ns),
        (pl.col("stall_ns") + early + late).alias("stall_ns"),
        (pl.col("queue_ns") + early).alias("queue_ns"),
        (pl.col("wake_ns") + late).alias("wake_ns"),
    ).filter(pl.col("end_ns") >= pl.col("start_ns"))


@dataclass(frozen=True)
class _Matched:
    """Faults (one for each access) with their accesses, and those without a match."""

    faults: pl.DataFrame
    start_ns: Ints
    end_ns: Ints
    true_start_ns: Ints
    true_end_ns: Ints
    ended: int
    unmatched: int
    second: int
    other_page: int
    silent: int


def compare_with_truth(faults: pl.DataFrame, truth: pl.DataFrame, name: str = "", clock_error_ns: int = 0) -> Accuracy:
    """Match faults (columns of `FAULTS`) with accesses (columns of `TRUTH`) and compare."""
    matched = _match(faults, truth)
    rows = []
    keys = matched.faults.select("cause", "join").with_row_index("row")
    for (cause, join), part in keys.group_by("cause", "join"):
        at = part["row"].to_numpy()
        measured = _agreement(
            matched.start_ns[at], matched.end_ns[at], matched.true_start_ns[at], matched.true_end_ns[at]
        )
        rows.append(Agreement(cause=str(cause), join=str(join), n=len(at), **measured))
    return Accuracy(
        trace=name,
        rows=sorted(rows, key=lambda row: (-row.n, row.cause, row.join)),
        faults=matched.ended,
        unmatched_faults=matched.unmatched,
        second_faults=matched.second,
        other_page=matched.other_page,
        accesses=len(truth),
        silent_stalls=matched.silent,
        clock_error_ns=clock_error_ns,
    )


def _match(faults: pl.DataFrame, truth: pl.DataFrame) -> _Matched:
    truth = truth.sort("start_ns", "tid")
    threads = Ids(_column(truth, "tid"))
    ended = faults.filter(faults["end_ns"].is_not_null() & faults["tid"].is_in(threads.values.tolist()))
    begin, finish = _column(truth, "start_ns"), _column(truth, "end_ns")
    start, end = _column(ended, "start_ns"), _column(ended, "end_ns")
    index = Index(Axis.spanning(np.sort(np.concatenate([begin, start]))), threads.of(_column(truth, "tid")), begin)
    access = index.last_until(threads.of(_column(ended, "tid")), start)
    access = np.where((access >= 0) & (start <= take(finish, access, 0)), access, -1)
    best = _longest(access, end - start)
    chosen, access_of = np.flatnonzero(best), access[best]

    granule = _column(ended, "granule")[chosen].astype(np.uint64)
    page = truth["page"].to_numpy().astype(np.uint64)[access_of] & ~(granule - np.uint64(1))
    hit = np.zeros(len(begin), bool)
    hit[access[access >= 0]] = True
    least = (finish - begin)[access_of].min(initial=np.iinfo(np.int64).max)
    return _Matched(
        faults=ended[chosen],
        start_ns=start[chosen],
        end_ns=end[chosen],
        true_start_ns=begin[access_of],
        true_end_ns=finish[access_of],
        ended=len(ended),
        unmatched=int((access < 0).sum()),
        second=int((access >= 0).sum() - len(chosen)),
        other_page=int((ended["page"].to_numpy().astype(np.uint64)[chosen] != page).sum()),
        silent=int((~hit & (finish - begin >= least)).sum()),
    )


def _column(frame: pl.DataFrame, name: str) -> Ints:
    return frame[name].to_numpy().astype(np.int64)


def _longest(access: Ints, stall: Ints) -> npt.NDArray[np.bool_]:
    """Of the faults that lie in the same access, the longest; -1 is no access."""
    order = np.lexsort((-stall, access))
    first = np.ones(len(order), bool)
    first[1:] = access[order][1:] != access[order][:-1]
    best = np.zeros(len(order), bool)
    best[order] = first
    return best & (access >= 0)


def _agreement(start: Ints, end: Ints, true_start: Ints, true_end: Ints) -> dict[str, Any]:
    true = true_end - true_start
    off = end - start - true
    bias = float(np.median(off))
    rest = np.abs(off - bias)
    residual = np.quantile(rest, _LEVELS)
    stretches = [np.quantile(part, 0.95) for part in np.array_split(rest, _STRETCHES) if len(part)]
    total = float(true.sum()) or 1.0
    return {
        "bias_ns": round(bias),
        "start_bias_ns": round(float(np.median(start - true_start))),
        "end_bias_ns": round(float(np.median(end - true_end))),
        "residual_p50_ns": round(residual[0]),
        "residual_p95_ns": round(residual[1]),
        "residual_p99_ns": round(residual[2]),
        "stretch_p95_ns": round(float(np.median(stretches))),
        "true_p50_ns": round(float(np.median(true))),
        "total_error": float(off.sum()) / total,
        "unbiased_total_error": float(off.sum() - bias * len(off)) / total,
    }
