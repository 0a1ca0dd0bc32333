"""Every ordered pair of a directory of lab traces: costs and accesses from side A, judgement on side B."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from analysis.calibrate import fit_samples, samples_of
from analysis.case import Case
from analysis.predict import Setup
from analysis.validate import Cell, Summary, label, open_for, pair, summarize
from faulttrace.errors import FaultreplayError, IncompleteData
from faulttrace.meta import Meta
from faulttrace.store import open_trace
from replay.costs import CostTable

Progress = Callable[[str, int, int], None]

# What may differ within a group: a group is one set of accesses over one source of content.
_FREE: Final = frozenset({"mechanism", "handlers", "seed", "base", "windows", "pin"})
_ENVIRONMENT: Final = frozenset({"fetch"})  # a property of where content comes from, not of the host's kernel
_MOST_SAMPLES: Final = 20_000
_REPLICATES: Final = 200


@dataclass(frozen=True)
class Found:
    """A trace of the directory: `seed` tells its side."""

    path: Path
    group: str
    mechanism: str
    handlers: int
    vcpus: int
    fetch: str
    workload: str
    seed: int


@dataclass(frozen=True)
class Matrix:
    """All cells, and traces that could not be used with the reason."""

    cells: tuple[Cell, ...]
    skipped: tuple[str, ...]
    pooled: CostTable

    def summaries(self) -> list[Summary]:
        """Over all cells, by whether threads outnumber cores, and by target."""
        same = [c for c in self.cells if c.mechanism == c.source_mechanism]
        cross = [c for c in self.cells if c.mechanism != c.source_mechanism]
        parts = [("all", list(self.cells)), ("same mechanism", same), ("cross", cross)]
        parts += [(f"to {m}", [c for c in self.cells if c.mechanism == m]) for m in _names(self.cells)]
        return [s for what, cells in parts if (s := summarize(cells, what))]


def _names(cells: Sequence[Cell]) -> list[str]:
    return sorted({c.mechanism for c in cells})


def find(directory: Path) -> tuple[list[Found], list[str]]:
    """The lab traces under `directory` (not deeper) and what was passed over.

    Raises:
        IncompleteData: none of them is the lab's.
    """
    found, skipped = [], []
    for path in sorted(directory.glob("*.trace")):
        try:
            meta = Meta.read(path / "meta.json")
        except FaultreplayError as error:
            skipped.append(str(error))
            continue
        spec = meta.lab.get("spec")
        if not isinstance(spec, dict):
            skipped.append(f"{path.name}: not recorded by the lab")
        elif meta.lab.get("problem"):
            skipped.append(f"{path.name}: {meta.lab['problem']}")
        else:
            found.append(_found(path, meta, spec))
    if not found:
        raise IncompleteData(f"{directory}: no lab traces (make some with 'faultreplay lab matrix -o {directory}')")
    return found, skipped


def _found(path: Path, meta: Meta, spec: dict[str, Any]) -> Found:
    fixed = {k: v for k, v in spec.items() if k not in _FREE}
    handlers = meta.mechanism.params.get("handlers", 0) if meta.mechanism else 0
    return Found(
        path=path,
        group=json.dumps(fixed, sort_keys=True),
        mechanism=str(spec.get("mechanism")),
        handlers=int(handlers),
        vcpus=int(spec.get("vcpus", 1)),
        fetch=str(spec.get("fetch", "")),
        workload="/".join(str(spec.get(k, "")) for k in ("order", "access", "think")),
        seed=int(spec.get("seed", 0)),
    )


def plan(found: Sequence[Found]) -> Iterator[tuple[Found, Found, Found | None]]:
    """(source, target, the target's own earlier run) of every ordered pair; the target always has a later seed."""
    groups: dict[str, list[Found]] = {}
    for item in found:
        groups.setdefault(item.group, []).append(item)
    for items in groups.values():
        first_seed = min(i.seed for i in items)
        sources = [i for i in items if i.seed == first_seed]
        for target in items:
            if target.seed == first_seed:
                continue
            same = (i for i in sources if (i.mechanism, i.handlers) == (target.mechanism, target.handlers))
            again = next(same, None)
            for source in sources:
                yield source, target, again


def pool(cases: Sequence[Case]) -> CostTable:
    """Costs of this host from all `cases` together, but for what belongs to the environment."""
    samples: dict[str, list[Any]] = {}
    for case in cases:
        for name, values in samples_of(case.faults.sort("start_ns", "tid"), case.trace.meta).items():
            if name not in _ENVIRONMENT and len(values):
                samples.setdefault(name, []).append(values)
    joined = {name: _thin(np.concatenate(parts)) for name, parts in samples.items()}
    fitted = fit_samples(joined, source=f"{len(cases)} traces of side A").costs
    return CostTable({name: replace(cost, provenance="measured-host") for name, cost in fitted.items()}, "side A")


def _thin(values: Any) -> Any:
    return values if len(values) <= _MOST_SAMPLES else np.sort(values)[:: -(-len(values) // _MOST_SAMPLES)]


def validate_matrix(
    directory: Path,
    setup: Setup,
    *,
    fit: bool = True,
    max_loss_percent: float = 1.0,
    progress: Progress | None = None,
) -> Matrix:
    """Predict every target of `directory` from every source of its group.

    Costs: shipped, the user's, those of all sources together, the source's own; later wins. No target is ever fitted.
    """
    found, skipped = find(directory)
    steps = list(plan(found))
    if not steps:
        raise IncompleteData(f"{directory}: no two runs of one cell with different seeds: nothing to judge on")
    sources = list({s.path: s for s, _, _ in steps}.values())
    cases: dict[Path, Case] = {}

    def case_of(item: Found) -> Case | None:
        if item.path not in cases:
            try:
                cases[item.path] = open_for(open_trace(item.path), setup, fit=fit, max_loss_percent=max_loss_percent)
            except FaultreplayError as error:
                skipped.append(str(error))
                return None
        return cases[item.path]

    if progress:
        progress("fitting costs on side A", 0, len(steps))
    pooled = pool([c for s in sources if (c := case_of(s))]) if fit else CostTable({})
    cells = []
    for number, (source, target, again) in enumerate(steps):
        if progress:
            progress(f"{source.mechanism} -> {target.mechanism}", number, len(steps))
        one, other = case_of(source), case_of(target)
        if one is None or other is None:
            continue
        try:
            cell = pair(
                one,
                other,
                again=case_of(again) if again else None,
                extra_costs=pooled,
                replicates=_REPLICATES,
            )
        except FaultreplayError as error:
            skipped.append(f"{source.path.name} -> {target.path.name}: {error}")
            continue
        where = f"v{target.vcpus} h{target.handlers} {target.fetch} {target.workload}"
        cells.append(replace(cell, group=where))
    return Matrix(tuple(cells), tuple(dict.fromkeys(skipped)), pooled)


__all__ = ["Found", "Matrix", "find", "label", "plan", "pool", "validate_matrix"]
