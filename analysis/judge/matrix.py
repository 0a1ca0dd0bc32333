"""Every ordered pair of a directory of lab traces: costs and accesses from side A, judgement on side B."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from faultreplay.analysis.calibrate.calibrate import Observed, calibrate, observe, part_of
from faultreplay.analysis.calibrate.calibrate import fit as calibrated
from faultreplay.analysis.calibrate.windows import window_samples
from faultreplay.analysis.compare.case import Case, outside_windows
from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.judge.cells import WANTED_PERCENT, Cell, Summary, summarize, together
from faultreplay.analysis.judge.validate import open_for, pair
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.matrix_spec import COLD
from faultreplay.lab.restore import cold
from faultreplay.replay.language.costs import CostTable

Progress = Callable[[str, int, int], None]

# What may differ within a group: a group is one set of accesses over one source of content.
_FREE: Final = frozenset(
    {"mechanism", "handlers", "seed", "base", "windows", "pin", "snapshot", "page_cache", "readahead"}
    | {"working_set", "working_set_seed", "prefetchers"}
)
_ENVIRONMENT: Final = frozenset({"fetch"})  # a property of where content comes from, not of the host's kernel
_REPLICATES: Final = 200
_FEWEST_WINDOWS: Final = 6
CALIBRATE_ON: Final = ("source", "host", "near")


@dataclass(frozen=True)
class LabTrace:
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
    skipped: tuple[tuple[str, str], ...]
    """(what, why)"""

    def left_out(self) -> list[str]:
        """Why some traces or predictions are missing, a line a reason, with how many and one example."""
        reasons: dict[str, list[str]] = {}
        for what, why in self.skipped:
            reasons.setdefault(why, []).append(what)
        return [
            f"left out, {why}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for why, names in reasons.items()
        ]

    def summaries(self) -> list[Summary]:
        """Over all cells, and over those with different mechanisms on both sides (cross) by what was varied."""
        same = [c for c in self.cells if c.mechanism == c.source_mechanism]
        cross = [c for c in self.cells if c.mechanism != c.source_mechanism]
        parts = [("all", list(self.cells)), ("same mechanism", same), ("cross", cross)]
        # a cell's group is its vCPUs, its fetch and its workload
        for number in range(max((len(c.group.split(", ")) for c in cross), default=0)):
            values = dict.fromkeys(c.group.split(", ")[number] for c in cross)
            words = "cross, fetch {}" if number == 1 else "cross, {}"
            parts += [(words.format(v), [c for c in cross if c.group.split(", ")[number] == v]) for v in values]
        targets = sorted({c.mechanism for c in cross})
        parts += [(f"cross, to {m}", [c for c in cross if c.mechanism == m]) for m in targets]
        quiet = [c for c in cross if c.floor and c.floor.total is not None and abs(c.floor.total) <= WANTED_PERCENT]
        parts.append((f"cross, A/A at most {WANTED_PERCENT:g} %", quiet))
        return [s for what, cells in parts if (s := summarize(cells, what))]


def find(directory: Path) -> tuple[list[LabTrace], list[tuple[str, str]]]:
    """The lab traces under `directory` (not deeper) and what was passed over.

    Raises:
        IncompleteData: none of them is the lab's.
    """
    found: list[LabTrace] = []
    skipped: list[tuple[str, str]] = []
    for path in sorted(directory.glob("*.trace")):
        try:
            meta = Meta.read(path / "meta.json")
        except FaultreplayError as error:
            skipped.append((path.name, str(error)))
            continue
        spec = meta.lab.get("spec")
        if not isinstance(spec, dict):
            skipped.append((path.name, "not recorded by the lab"))
        elif meta.lab.get("problem"):
            skipped.append((path.name, str(meta.lab["problem"])))
        else:
            found.append(_lab_trace(path, meta, spec))
    if not found:
        raise IncompleteData(f"{directory}: no lab traces (make some with 'faultreplay lab matrix -o {directory}')")
    return found, skipped


def _lab_trace(path: Path, meta: Meta, spec: dict[str, Any]) -> LabTrace:
    fixed = {k: v for k, v in spec.items() if k not in _FREE}
    handlers = meta.mechanism.params.get("handlers", 0) if meta.mechanism else 0
    return LabTrace(
        path=path,
        group=json.dumps(fixed, sort_keys=True),
        mechanism=str(spec.get("mechanism")) + (COLD if cold(meta) else ""),
        handlers=int(handlers),
        vcpus=int(spec.get("vcpus", 1)),
        fetch=str(spec.get("fetch", "")),
        workload="/".join(str(spec.get(k, "")) for k in ("order", "access", "think")),
        seed=int(spec.get("seed", 0)),
    )


def plan(found: Sequence[LabTrace]) -> Iterator[tuple[LabTrace, LabTrace, LabTrace | None]]:
    """(source, target, the target's own earlier run) of every ordered pair of each repeat.

    Seeds are taken two by two: side A, on which costs are fitted, and side B, on which predictions are judged. One that
    is left over is judged from the first side A.
    """
    groups: dict[str, list[LabTrace]] = {}
    for item in found:
        groups.setdefault(item.group, []).append(item)
    for items in groups.values():
        seeds = sorted({i.seed for i in items})
        sides = list(itertools.zip_longest(seeds[0::2], seeds[1::2]))
        for a, b in sides:
            from_seed, to_seed = (a, b) if b is not None else (seeds[0], a)
            sources = [i for i in items if i.seed == from_seed]
            for target in (i for i in items if i.seed == to_seed and to_seed != from_seed):
                same = (i for i in sources if (i.mechanism, i.handlers) == (target.mechanism, target.handlers))
                again = next(same, None)
                for source in sources:
                    yield source, target, again


def pool(cases: Sequence[Case]) -> CostTable:
    """Costs of this host from all `cases` together."""
    together = Observed.together(
        [
            observe(
                outside_windows(part_of(case.faults, (0.0, 1.0)), case.trace.meta),
                case.trace.meta,
                waits=case.setup.cpus is None,
            )
            for case in cases
        ]
    )
    source = f"{len(cases)} traces of side A"
    return calibrated(together, source=source, name=source, provenance="measured-host").costs


def costs_of_side_a(directory: Path) -> CostTable:
    """What side A of a lab matrix says of this host's costs. `fetch` is the matrix's own setting, not the host's.

    Raises:
        IncompleteData: no pairs in it, or not one cost with enough samples.
    """
    sources = list(dict.fromkeys(source.path for source, _, _ in plan(find(directory)[0])))
    if not sources:
        raise IncompleteData(f"{directory}: no two runs of one cell with different seeds: nothing to judge on")
    return calibrate([open_trace(path) for path in sources], left_out=("fetch",)).some()


class _SideA:
    """Costs from side A, each table fitted once."""

    def __init__(self, sources: Sequence[tuple[LabTrace, Case]]) -> None:
        self.sources = sources
        self.kept: dict[Any, CostTable] = {}

    def of_host(self, source: LabTrace) -> CostTable:
        """Of all sources together; `fetch` of those of the same group (where the kernel fills in, nothing fetches)."""

        def fetch(costs: CostTable) -> CostTable:
            return _without(costs, frozenset(costs) - _ENVIRONMENT)

        group = self._pool(("group", source.group), lambda s: s.group == source.group)
        return _without(self._pool("all", lambda _: True), _ENVIRONMENT).merge(fetch(group))

    def near(self, target: LabTrace) -> CostTable:
        """Under the target's mechanism with as many vCPUs and the same fetch, but in other cells than the target's."""
        key = ("near", target.mechanism, target.vcpus, target.fetch, target.group)
        wanted = (target.mechanism, target.vcpus, target.fetch)
        costs = self._pool(key, lambda s: (s.mechanism, s.vcpus, s.fetch) == wanted and s.group != target.group)
        return _without(costs, _ENVIRONMENT).merge(self.windows(target))

    def windows(self, target: LabTrace) -> CostTable:
        """What beginning and ending a window like the target's took, with as many vCPUs, in other cells.

        A run has one window: all fetches together, and fewer samples than other costs need.
        """
        key = ("windows", target.mechanism, target.vcpus, target.group)
        if key not in self.kept:
            mine = [
                case.trace
                for found, case in self.sources
                if (found.mechanism, found.vcpus) == (target.mechanism, target.vcpus) and found.group != target.group
            ]
            empty = np.empty(0, np.int64)
            observed = Observed(window_samples(mine) if mine else {}, empty, empty)
            source = f"{len(mine)} traces of side A"
            fitted = calibrated(
                observed, source=source, name=source, provenance="measured-host", min_samples=_FEWEST_WINDOWS
            )
            self.kept[key] = fitted.costs
        return self.kept[key]

    def _pool(self, key: Any, wanted: Callable[[LabTrace], bool]) -> CostTable:
        if key not in self.kept:
            cases = [case for found, case in self.sources if wanted(found)]
            self.kept[key] = pool(cases) if cases else CostTable({})
        return self.kept[key]


def validate_matrix(
    directory: Path,
    setup: Setup,
    *,
    fit: bool = True,
    calibrate_on: str = "near",
    max_loss_percent: float = 1.0,
    progress: Progress | None = None,
) -> Matrix:
    """Predict every target of `directory` from every source of its group.

    Costs, later wins: shipped; the user's; from ``host`` on those of side A as a whole (fetch: of the same group); the
    source's own; with ``near`` also those of side A under the target's mechanism with as many vCPUs and the same fetch,
    in other cells than the target's. Nothing of side B is ever fitted.

    Args:
        directory: of lab traces.
        setup: how to replay.
        fit: fit costs at all.
        calibrate_on: ``source`` (the source's own costs only), ``host`` or ``near``.
        max_loss_percent: leave out traces that lost more.
        progress: called before each prediction.

    Raises:
        IncompleteData: nothing to pair.
    """
    if calibrate_on not in CALIBRATE_ON:
        raise UsageError(f"calibrate on one of {', '.join(CALIBRATE_ON)}, not '{calibrate_on}'")
    found, skipped = find(directory)
    steps = list(plan(found))
    if not steps:
        raise IncompleteData(f"{directory}: no two runs of one cell with different seeds: nothing to judge on")
    sources = list({s.path: s for s, _, _ in steps}.values())
    cases: dict[Path, Case] = {}

    failed: set[Path] = set()

    def case_of(item: LabTrace) -> Case | None:
        if item.path in failed:
            return None
        if item.path not in cases:
            try:
                cases[item.path] = open_for(open_trace(item.path), setup, fit=fit, max_loss_percent=max_loss_percent)
            except FaultreplayError as error:
                skipped.append((item.path.name, _reason(error, item.path)))
                failed.add(item.path)
                return None
        return cases[item.path]

    if progress:
        progress("fitting costs on side A", 0, len(steps))
    usable = [(s, c) for s in sources if (c := case_of(s))]
    costs = _SideA(usable) if fit else None
    cells: list[Cell] = []
    keys: list[tuple[str, ...]] = []
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
                host_costs=costs.of_host(source) if costs and calibrate_on != "source" else None,
                target_costs=costs.near(target) if costs and calibrate_on == "near" else None,
                replicates=_REPLICATES,
            )
        except FaultreplayError as error:
            skipped.append((f"{source.path.stem} -> {target.path.stem}", _reason(error, source.path, target.path)))
            continue
        where = f"{target.vcpus} vCPU, {target.fetch}, {target.workload}"
        cells.append(replace(cell, group=where))
        keys.append((target.group, *(f"{i.mechanism} {i.handlers}" for i in (source, target))))
    repeats: dict[tuple[str, ...], list[Cell]] = {}
    for cell, key in zip(cells, keys, strict=True):
        repeats.setdefault(key, []).append(cell)
    return Matrix(tuple(together(some) for some in repeats.values()), tuple(dict.fromkeys(skipped)))


def _without(costs: CostTable, names: frozenset[str]) -> CostTable:
    return CostTable({name: cost for name, cost in costs.items() if name not in names}, costs.name)


def _reason(error: FaultreplayError, *paths: Path) -> str:
    """The error's words without the path, so that equal cases are reported together."""
    words = str(error)
    for path in paths:
        words = words.replace(f"{path}: ", "")
    return words
