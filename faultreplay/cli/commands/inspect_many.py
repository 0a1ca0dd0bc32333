"""`faultreplay inspect` of several traces: each stitched by a worker, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faultreplay.cli.render import Column, Report, emit
from faultreplay.faulttrace.errors import FaultreplayError

_COLUMNS = [
    Column("trace", "trace"),
    Column("duration_ns", "recorded", "ns", keep=6),
    Column("events", "events", "count"),
    Column("lost_events", "lost", "count"),
    Column("faults", "faults", "count"),
    Column("unjoined", "un-\njoined", "count", keep=4),
    Column("p50_ns", "p50", "ns", keep=5),
    Column("p99_ns", "p99", "ns"),
    Column("max_ns", "max", "ns"),
    Column("total_ns", "total\nstall", "ns"),
]


def show_many(
    addresses: Sequence[str], jobs: int, dask: str | None, where: tuple[str, Path | None], *, force: bool
) -> None:
    """Stitch the traces on `jobs` processes or a dask cluster and print one table; `where`: format and file.

    Raises:
        FaultreplayError: some cannot be read; the table has the others.
    """
    from faultreplay.analysis.explore import fleet, workers
    from faultreplay.analysis.explore.inspected import sums_of
    from faultreplay.analysis.explore.versions import version
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import bar

    tasks = fleet.tasks_of(addresses, None, version())
    pool = workers.chosen(sums_of, jobs=min(jobs, len(tasks)), dask=dask)
    with computing(), bar() as tell:
        outcomes = fleet.run_all(pool, tasks, lambda done, total: tell("traces", done, total))
    failed = {outcome.task.label: outcome.failure for outcome in outcomes if outcome.failure}
    records: list[dict[str, Any]] = [outcome.value.as_record() for outcome in outcomes if not outcome.failure]
    faults, events = (sum(record[name] for record in records) for name in ("faults", "events"))
    title = f"{len(records)} traces: {faults:,} faults, {events:,} events"
    notes = [f"failed: {label}: {why.words}" for label, why in failed.items()]
    report = Report(records, _COLUMNS, title, notes, extra={"failed": {k: v.words for k, v in failed.items()}})
    if records:
        emit(report, *where, force=force)
    if failed:
        label, first = next(iter(failed.items()))
        error = FaultreplayError(f"{len(failed)} of {len(tasks)} traces failed: {label}: {first.words}")
        codes = {why.exit_code for why in failed.values()}
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        raise error
