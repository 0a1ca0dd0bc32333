"""One question asked of many traces: a worker opens, stitches, fits and replays each, and only its sums come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from faultreplay.analysis.compare.predict import Setup, load_with
from faultreplay.analysis.explore.versions import fingerprint, hash_of, mechanism_text, version
from faultreplay.analysis.explore.workers import Outcome
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.remote import name_of


@dataclass(frozen=True, eq=False)
class TraceTask:
    """One trace, and what is asked of it.

    Attributes:
        label: what the trace is called in tables.
        address: where it is.
        asked: whatever the worker needs; it travels with each task.
        key: of the tool's version, the cost tables and the mechanisms' files; a worker with others refuses.
    """

    label: str
    address: str
    asked: Any
    key: str


def tasks_of(addresses: Sequence[str], asked: Any, key: str) -> list[TraceTask]:
    """A task a trace; of several with one name each is called by its address."""
    names = [name_of(address) for address in addresses]
    labels = [name if names.count(name) == 1 else address for name, address in zip(names, addresses, strict=True)]
    return [TraceTask(label, address, asked, key) for label, address in zip(labels, addresses, strict=True)]


def key_of(setup: Setup, windows: Sequence[tuple[int, int, str]], fit: bool, mechanisms: Sequence[str]) -> str:
    """What must be the same on every worker.

    Raises:
        UsageError: no such mechanism, or a parameter of it that is not.
    """
    texts = [mechanism_text(load_with(name, setup, None)) for name in mechanisms]
    return hash_of([fingerprint(setup, tuple(windows), fit), texts])


def check_key(task: TraceTask, key: str) -> None:
    """See that this worker has what the caller has.

    Raises:
        UsageError: it has not.
    """
    if key != task.key:
        raise UsageError(
            f"this worker has other cost tables, mechanism files or another faultreplay ({version()}): "
            "install the same everywhere"
        )


def run_all(
    workers: Callable[[Sequence[TraceTask]], Iterable[Outcome[TraceTask]]],
    tasks: Sequence[TraceTask],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Outcome[TraceTask]]:
    """Each task's outcome, in the order of `tasks` whatever the order they come in."""
    found: dict[TraceTask, Outcome[TraceTask]] = {}
    progress(0, len(tasks))
    for outcome in workers(tasks):
        found[outcome.task] = outcome
        progress(len(found), len(tasks))
    return [found[task] for task in tasks]
