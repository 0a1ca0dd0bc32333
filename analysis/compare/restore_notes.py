"""What must be said of rows that restore from a file, or prefetch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from faultreplay.faulttrace.units import format_bytes, format_ns
from faultreplay.replay.engine.engine import Result

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case


class Restoring(Protocol):
    """What these notes need of a row."""

    @property
    def mechanism(self) -> str: ...  # noqa: D102
    @property
    def result(self) -> Result: ...  # noqa: D102
    @property
    def sets(self) -> tuple[str, ...]: ...  # noqa: D102


def restore_notes(case: Case, rows: Sequence[Restoring]) -> list[str]:
    """Where content comes from, which rows are of another environment, what prefetch knows."""
    notes = []
    known = case.setup.known
    storing = [row for row in rows if _from_file(row)]
    if storing:
        notes.append(_storage_words(case, storing))
        others = [row.mechanism for row in rows if "fetch" in row.result.costs_used]
        if others:
            notes.append(
                f"two environments: content of {', '.join(others)} comes as fetch says, that of "
                f"{', '.join(row.mechanism for row in storing)} from the snapshot file: hold no row of the one against "
                "one of the other (--fetch: all as fetch says, where they can)"
            )
    prefetching = [row.mechanism for row in rows if "working-set" in row.sets]
    if prefetching and known is not None and known.working_set is not None:
        notes.append(f"prefetch knows {known.working_set.size:,} pages of earlier runs (--working-set)")
    elif prefetching:
        notes.append(
            f"{', '.join(prefetching)}: what is prefetched is this trace's own set, the best any prefetch could know: "
            "give other runs with --working-set"
        )
    if any("all" in row.sets for row in rows) and not (known and known.memory):
        notes.append("guest memory is not known: all of it is the 2 MiB ranges that the trace touches")
    return notes


def _from_file(row: Restoring) -> bool:
    uses = any(use.kind == "storage" for use in row.result.resources.values())
    return uses and not row.result.params.get("remote", 0)


def _storage_words(case: Case, rows: Sequence[Restoring]) -> str:
    latency = ""
    if any("storage_read" in row.result.costs_used for row in rows):
        latency = f"{format_ns(case.costs()['storage_read'].distribution.mean)} a request, "
    seen: dict[str, list[str]] = {}
    for row in rows:
        values = row.result.params
        rate, depth = values.get("storage_bandwidth", 0), values.get("queue_depth", 0)
        words = f"{format_bytes(rate)}/s" if rate else "no limit of bandwidth"
        words += f", {depth:.0f} requests at once" if depth else ", any number of requests at once"
        cached = values.get("cached", 0)
        cache = "cold" if not cached else "hot" if cached == 1 else f"{100 * cached:.0f} % hot"
        cache += ", with what earlier runs read" if values.get("left", 0) else ""
        seen.setdefault(f"{words}; page cache {cache}", []).append(row.mechanism)
    parts = [f"{words} ({', '.join(names)})" if len(seen) > 1 else words for words, names in seen.items()]
    return f"storage: {latency}{'; '.join(parts)} (--storage, --page-cache)"
