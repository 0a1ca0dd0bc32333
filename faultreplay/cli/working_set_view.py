"""`inspect --working-set`: the pages that runs of one guest touched, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.units import format_bytes

if TYPE_CHECKING:
    from faultreplay.analysis.compare.working_sets import SetComparison

_PAIRS_SHOWN = 10


def working_set_report(addresses: Sequence[str], jobs: int = 1, dask: str | None = None) -> Report:
    """The report on the traces at `addresses`, each stitched on one of `jobs` processes or of a dask cluster.

    Raises:
        FaultreplayError: one cannot be read.
    """
    from faultreplay.analysis.compare.working_sets import compare_sets, load_set
    from faultreplay.analysis.explore import fleet, workers
    from faultreplay.analysis.explore.inspected import set_of
    from faultreplay.analysis.explore.versions import version
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import bar
    from faultreplay.faulttrace.remote import open_address

    if len(addresses) == 1 and dask is None:
        return report_of(compare_sets([load_set(open_address(addresses[0]))]))
    tasks = fleet.tasks_of(addresses, None, version())
    pool = workers.chosen(set_of, jobs=min(jobs, len(tasks)), dask=dask)
    with computing(), bar() as tell:
        outcomes = fleet.run_all(pool, tasks, lambda done, total: tell("traces", done, total))
    for outcome in outcomes:
        if outcome.failure:
            error = FaultreplayError(outcome.failure.words)
            error.exit_code = outcome.failure.exit_code
            raise error
    return report_of(compare_sets([outcome.value for outcome in outcomes]))


def report_of(found: SetComparison) -> Report:
    """One row a run; what they have in common stands under the table."""
    columns = [
        Column("trace", "trace"),
        Column("pages", "pages", "count"),
        Column("bytes", "size", "bytes"),
        Column("next_page_percent", "next\npage", "percent", keep=5),
        Column("t50_ns", "50 %\nafter", "ns", keep=7),
        Column("t90_ns", "90 %\nafter", "ns"),
        Column("t98_ns", "98 %\nafter", "ns"),
        Column("ranges", "2 MiB\nranges", "count", keep=3),
        Column("ranges_worth", "half\ntouched", "count", keep=4),
        Column("in_worth_percent", "pages\nin them", "percent", keep=4),
    ]
    records = [
        record
        | {
            "next_page_percent": 100 * record["next_page_share"],
            "in_worth_percent": 100 * record["in_worth_share"],
        }
        for record in found.as_records()
    ]
    runs = len(found.sets)
    title = f"Working sets of {runs} runs" if runs > 1 else f"Working set of {found.sets[0].trace}"
    return Report(
        records,
        columns,
        title,
        _notes(found),
        extra={
            "pages_by": found.by,
            "page_bytes": found.page_bytes,
            "union_pages": found.union_pages,
            "by_all_pages": found.by_all_pages,
            "by_all_share": found.by_all_share,
            "jaccard_median": found.jaccard_median,
            "jaccard": [{"a": a, "b": b, "jaccard": value} for a, b, value in found.pairs],
        },
    )


def _notes(found: SetComparison) -> list[str]:
    notes = []
    if found.pairs:
        values = [value for _, _, value in found.pairs]
        size, by_all = format_bytes(found.union_pages * found.page_bytes), 100 * found.by_all_share
        notes.append(f"together {found.union_pages:,} pages ({size}), {by_all:.1f} % of them touched by every run")
        if len(values) > 1:
            notes.append(
                f"Jaccard of two runs: median {found.jaccard_median:.3f}, from {min(values):.3f} to {max(values):.3f}"
            )
        few = found.pairs if len(found.pairs) <= _PAIRS_SHOWN else ()
        notes += [f"Jaccard of {a} and {b}: {value:.3f}" for a, b, value in few]
    notes.append(_by_words(found.by))
    notes.append(
        "a fault is a first touch only where memory was missing: of a run whose memory was there the set is what "
        "faulted all the same; times count from the first touch; half touched: ranges of which one huge page would "
        "bring at most twice as much as was touched"
    )
    return notes


def _by_words(by: str) -> str:
    if by == "addresses":
        return (
            "neither memory slots nor registered memory are in the trace: pages are the same where addresses are, and "
            "all that faulted is counted"
        )
    return f"pages are counted by {by}; what lies outside is not the guest's memory and left out"
