"""The library's functions; import them from `faultreplay`. Heavy packages are imported when one is called.

`faultreplay.cli` stands on these. Times are integer ns, sizes bytes. What is wrong with an input is a
`FaultreplayError` with one line of words: its subclasses are `faultreplay.faulttrace.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import threading

    import polars as pl

    from faultreplay.analysis.calibrate.calibrate import Fit
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison
    from faultreplay.analysis.compare.predict import Setup
    from faultreplay.analysis.views.chosen import Choice
    from faultreplay.analysis.views.explain import Life
    from faultreplay.analysis.views.timeline import Timeline
    from faultreplay.analysis.views.top import Top
    from faultreplay.collect.recorder.spec import RecordSpec, RecordStatus, RecordSummary
    from faultreplay.faulttrace.store import Trace
    from faultreplay.replay.language.costs import CostTable
    from faultreplay.replay.language.mechanism import Mechanism
    from faultreplay.replay.workload.workload import Workload

TraceLike: TypeAlias = "Trace | Path | str"
"""An opened trace, or where one lies."""
CaseLike: TypeAlias = "Case | Trace | Path | str"
"""A trace with the question asked of it, or a trace with the usual one."""


def faults(trace: TraceLike, *, vcpu_threads: Sequence[str] = ()) -> pl.DataFrame:
    """The faults of a trace: one row an access that was stopped, in order of `start_ns`.

    Stitched from the events, or taken from `faults.parquet` where that was made from them. Columns with their units,
    and what an empty cell means: "Faults" in docs/trace-format.md. The most used are `accessor` (vcpu, vmm, kernel),
    `tid`, `vcpu`, `start_ns`, `end_ns`, `stall_ns`, `think_ns`, `page`, `access`, `cause`, `resolution`.

    Args:
        trace: opened, or its directory.
        vcpu_threads: threads, by name or id, that are vCPUs though they never call KVM_RUN.

    Raises:
        IncompleteData: damaged, or a file is missing.
        UsageError: no such trace, or no such thread.

    Examples:
        >>> import faultreplay
        >>> frame = faultreplay.faults("sample-traces/guest-uffd-missing.trace")
        >>> frame["cause"].value_counts(sort=True).rows()
        [('missing', 8000), ('minor-host', 3)]
        >>> int(frame["stall_ns"].median())
        377235
    """
    return _trace(trace).faults(vcpu_threads=vcpu_threads)


def timeline(trace: TraceLike, choice: Choice | None = None, *, step_ns: int = 0) -> Timeline:
    """Faults and stall of a trace over time, step by step: ``inspect --timeline``.

    Args:
        trace: opened, or its directory.
        choice: which faults, by vCPU, cause, length and time; all by default.
        step_ns: length of a step; 0: a round one that makes at most 40.

    Returns:
        `steps`, a polars frame: `from_ns`, `until_ns`, `faults` (that began in it), `unended`, `stall_ns` (what all
        threads together stood still within it), `stalled` (how many at once, on average), `longest_ns`, `windows`.

    Raises:
        UsageError: no such trace, a choice that it has not, or more than a million steps.

    Examples:
        >>> import faultreplay
        >>> line = faultreplay.timeline("sample-traces/guest-uffd-missing.trace", step_ns=500_000_000)
        >>> line.steps["faults"].to_list()
        [2216, 2089, 2201, 1497]
    """
    from faultreplay.analysis.views.timeline import timeline_of

    return timeline_of(_trace(trace), choice, step_ns)


def top(
    trace: TraceLike,
    by: Literal["pages", "ips", "threads", "ranges"],
    choice: Choice | None = None,
    *,
    limit: int | None = None,
) -> Top:
    """Where a trace's stall comes from, the most first: ``inspect --top``.

    Args:
        trace: opened, or its directory.
        by: pages, guest instructions (ips), threads and handlers, or ranges of memory.
        choice: which faults; all by default.
        limit: at most so many rows.

    Returns:
        `rows`, a polars frame: `faults`, `unended`, `stall_ns`, `longest_ns`, `share_percent`, `causes` and what the
        kind has (see `analysis.views.top.top_of`); `unknown`: faults that have no row.

    Raises:
        UsageError: no such trace, or a choice that it has not.

    Examples:
        >>> import faultreplay
        >>> top = faultreplay.top("sample-traces/guest-uffd-missing.trace", "ranges")
        >>> top.rows.select("name", "faults", "pages").row(0)
        ('guest memory', 8000, 8000)
    """
    from faultreplay.analysis.views.top import top_of

    return top_of(_trace(trace), by, choice, limit)


def workload(
    trace: CaseLike,
    *,
    reading: Literal["auto", "recorded", "first-touch"] = "auto",
    vcpu_threads: Sequence[str] = (),
) -> Workload:
    """What the accessors of a trace did: per accessor its faults and the think time before each, as arrays.

    Args:
        trace: a trace, or a case (then the rest is the case's).
        reading: faults of memory that was there ``recorded`` as they were, or the ``first-touch`` of each page as one
            of missing memory; ``auto``: first touches where no fault was of missing memory.
        vcpu_threads: as of `faults`.

    Raises:
        IncompleteData: more than 1 % of its events are lost, or it has no fault that can be replayed.

    Examples:
        >>> import faultreplay
        >>> work = faultreplay.workload("sample-traces/guest-uffd-missing.trace")
        >>> work.accessors, work.faults
        (2, 8000)
    """
    from faultreplay.analysis.compare.predict import Setup

    return _case(trace, Setup(reading=reading, vcpu_threads=vcpu_threads)).read


def mechanism(name: str | Path, *, trace: CaseLike | None = None, **params: float | str) -> Mechanism:
    """A way to handle faults: one that ships with faultreplay, by name, or your own `.toml` file.

    Args:
        name: as `faultreplay models list` says, or a file.
        trace: take what its recording shows (handlers, shards, link), as `compare` does.
        params: its parameters; numbers, or texts with a unit as ``"10us"`` or ``"2M"``.

    Raises:
        UsageError: no such mechanism or parameter, a value out of bounds, or the file breaks the language.

    Examples:
        >>> import faultreplay
        >>> faultreplay.mechanism("uffd-missing", handlers=4).title
        'userfaultfd, missing pages'
    """
    from faultreplay.replay.language.mechanism import load_mechanism

    loaded = load_mechanism(name) if trace is None else _case(trace).load(str(name))
    return loaded.with_params(params)


def costs(*files: str | Path, trace: CaseLike | None = None) -> CostTable:
    """What each step of a mechanism costs, with provenance: the shipped costs, what the trace shows, then `files`.

    Without a trace they are of no host of yours: every one is foreign.

    Args:
        files: cost files, by name or path; the later wins.
        trace: also the costs that its faults show, those of its kind of KVM, and those that ``calibrate --lab`` filed
            for its host.

    Raises:
        UsageError: no such file, or it breaks the format.

    Examples:
        >>> import faultreplay
        >>> faultreplay.costs()["fault_entry"].provenance
        'derived'
        >>> faultreplay.costs(trace="sample-traces/guest-uffd-missing.trace")["fault_entry"].provenance
        'measured-trace'
    """
    from faultreplay.replay.language.costs import load_costs

    table = load_costs() if trace is None else _case(trace).costs()
    return table.merge(*(load_costs(file) for file in files))


def open_case(
    trace: TraceLike,
    setup: Setup | None = None,
    *,
    windows: Sequence[tuple[int, int, str]] = (),
    fit: bool = True,
    max_loss_percent: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> Case:
    """A trace with the question asked of it: faults, workload, recorded mechanism, costs and windows.

    Args:
        trace: opened, or its directory.
        setup: how to replay: parameters, fetch, link, CPUs, seeds; see `Setup`.
        windows: (start after the beginning, length, kind) in ns, as ``(2_000_000_000, 50_000_000, "freeze")``;
            by default those that were recorded, else one in the middle for mechanisms with a window rule.
        fit: take the costs that the trace itself shows; they win over all files.
        max_loss_percent: refuse a trace that lost a greater share of its events.
        progress: called with how far a long stitch is.

    Raises:
        IncompleteData: too many losses, damaged, or no fault to replay.
        UsageError: no such trace, or a window begins after its end.
    """
    from faultreplay.analysis.compare import opening
    from faultreplay.analysis.compare.predict import Setup

    asked = _trace(trace), setup or Setup()
    return opening.open_case(*asked, windows=windows, fit=fit, max_loss_percent=max_loss_percent, progress=progress)


def compare(
    trace: CaseLike,
    mechanisms: Sequence[str] = (),
    *,
    baseline: str = "",
    weigh: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """A trace under each mechanism, beside what was measured: the rows of `faultreplay compare`.

    Args:
        trace: a trace, or a case where more than the usual is asked.
        mechanisms: names or files, or with parameters of their own ``"uffd-missing:handlers=4"``; by default the
            recorded one, uffd-missing, kvm-exit and two references.
        baseline: what rows are held against; by default the recorded mechanism as it was recorded.
        weigh: also hold the recorded mechanism against the recording, and say how sure each row is. Some times slower.
        progress: called with a word on each long step.

    Returns:
        `rows` (one a mechanism that has numbers: `metrics` in integer ns, `uncertainty`, `costs`, and `leaves_out`:
        what the baseline does and the row does not, so that less stall is no gain), `unanswered` (those that have
        none, and why), `measured`, `trust`, `blackouts`, `notes`. What each number means: docs/metrics.md.

    Raises:
        UsageError: an unknown mechanism or parameter, or `baseline` has no numbers for this trace.

    Examples:
        >>> import faultreplay
        >>> done = faultreplay.compare("sample-traces/guest-uffd-missing.trace", ["uffd-missing", "kvm-exit"])
        >>> [row.mechanism for row in done.rows if row.metrics.total_stall_ns < done.measured.total_stall_ns]
        ['kvm-exit']
        >>> done.trust.value
        'reproduced'
    """
    from faultreplay.analysis.compare import compare as comparing

    return comparing.compare(_case(trace), mechanisms, baseline=baseline, weigh=weigh, progress=progress)


def explain(
    trace: CaseLike, faults: Sequence[int] = (), mechanisms: Sequence[str] = (), *, worst: int = 0
) -> list[Life]:
    """The lives of some faults, stage by stage: of each as it was measured, then under each mechanism.

    Args:
        trace: a trace, or a case where more than the usual is asked.
        faults: their `fault_id`s.
        mechanisms: names or files; what is explained is the mechanism's row in `compare`, of the first seed.
        worst: also the faults with the longest measured stalls.

    Returns:
        Lives: `stages` add up to `stall_ns`, to the ns; a stage that waited names who had what it waited for.

    Raises:
        UsageError: no such fault or mechanism, or one that has no numbers for this trace.

    Examples:
        >>> import faultreplay
        >>> measured, replayed = faultreplay.explain("sample-traces/guest-uffd-missing.trace", [1157], ["kvm-exit"])
        >>> [stage.word for stage in replayed.stages]
        ['entry', 'fetch', 'resolve', 'wake']
    """
    from faultreplay.analysis.views import explain as explaining

    return explaining.explain(_case(trace), faults, mechanisms, worst=worst)


def calibrate(
    traces: Sequence[TraceLike],
    *,
    first_share: float = 1.0,
    with_truth: bool = False,
    min_samples: int = 30,
    left_out: Collection[str] = (),
) -> Fit:
    """The costs that traces of one host show, as distributions: `.costs` is a `CostTable`, `.refused` says why not.

    Args:
        traces: of one kind of KVM.
        first_share: use only this first share of each trace's faults, and keep the rest for judging.
        with_truth: of lab traces take starts and ends from the accessors' own clock.
        min_samples: refuse a cost with fewer.
        left_out: names of costs that these traces say nothing about.

    Raises:
        UsageError: traces of different kinds of KVM; `with_truth`, and one has no truth.

    Examples:
        >>> import faultreplay
        >>> fit = faultreplay.calibrate(["sample-traces/guest-uffd-missing.trace"])
        >>> sorted(fit.costs)
        ['fault_entry', 'fetch', 'handler_loop', 'resolve', 'wake']
    """
    from faultreplay.analysis.calibrate import calibrate as fitting

    return fitting.calibrate(
        [_trace(trace) for trace in traces],
        first_share=first_share,
        with_truth=with_truth,
        min_samples=min_samples,
        left_out=left_out,
    )


def record(
    spec: RecordSpec,
    out: Path | str,
    stop: threading.Event | Callable[[], bool] = lambda: False,
    on_status: Callable[[RecordStatus], None] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> RecordSummary:
    """Record a trace with eBPF until the duration is over, the targets have ended, or `stop` says so. Needs root.

    `record(RecordSpec(pids=(4711,), duration_ns=30_000_000_000), "vm.trace")`

    Args:
        spec: whom and what, see `RecordSpec`.
        out: the trace to make: `NAME.trace`.
        stop: an event, or a function that is asked about 20 times a second.
        on_status: called about twice a second, and once at the end.
        on_step: called with what is being done before recording begins, and after it ends.

    Returns:
        What was recorded and lost, what it cost, and why it ended.

    Raises:
        NoPermission: the kernel refuses the probes.
        UsageError: nothing to record, or `out` exists.
    """
    from faultreplay.collect.recorder import run

    return run.record(spec, Path(out), stop, on_status, on_step)


def _trace(trace: TraceLike) -> Trace:
    from faultreplay.faulttrace.store import open_trace

    return open_trace(trace) if isinstance(trace, str | Path) else trace


def _case(trace: CaseLike, setup: Setup | None = None) -> Case:
    from faultreplay.analysis.compare.case import Case

    return trace if isinstance(trace, Case) else open_case(trace, setup)
