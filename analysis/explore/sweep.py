"""Many replays: traces x mechanisms x points of a grid, each one cell, kept in a data set, none run twice.

A cell's key is a hash of all that decides its numbers: what the trace holds, the mechanism's file and parameters, the
cost tables, windows and options, the seed and the tool's version. A data set may be added to and resumed by any number
of sweeps. Cells carry addresses, not frames, so that they can run in another process or on another host.
"""

from __future__ import annotations

import typing
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Final

from faultreplay.analysis.compare.alike import Question, all_of, left_out, question_of
from faultreplay.analysis.compare.case import Case, check_losses
from faultreplay.analysis.compare.metrics import Metrics
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup, load_with, mean_metrics, metrics_of, run, split_choice
from faultreplay.analysis.compare.served import why_no_row
from faultreplay.analysis.explore.axes import Axis, Point, costs_at, grid, part_of, settings_at
from faultreplay.analysis.explore.crossover import REFERENCES, Crossing, crossings
from faultreplay.analysis.explore.stretches import Course, courses
from faultreplay.analysis.explore.versions import as_json, fingerprint, hash_of, mechanism_text, version
from faultreplay.analysis.explore.workers import Failure, Outcome
from faultreplay.analysis.judge.dataset import DataSet
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.remote import identity, name_of, open_address
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism

RANKED_BY: Final = ("total_stall_ns", "p50_ns", "p99_ns", "run_time_ns")
_CASES_KEPT: Final = 2
_MECHANISMS_KEPT: Final = 256
_DASHED = str.maketrans({c: "-" for c in "/=%"})


@dataclass(frozen=True)
class Common:
    """What all cells share."""

    setup: Setup
    axes: tuple[Axis, ...]
    windows: tuple[tuple[int, int, str], ...] = ()
    fit: bool = True
    max_loss_percent: float = 1.0


@dataclass(frozen=True, eq=False)
class Task:
    """One mechanism on one trace at one point. `label` names the trace in tables and partitions."""

    key: str
    case_key: str
    """of the trace and of what all cells share: a worker keeps what it read under it"""
    mechanism_key: str
    """of the mechanism's file and its own parameters; a worker with another one refuses"""
    shared_key: str
    """of the tool's version, cost tables and options; likewise"""
    label: str
    address: str
    mechanism: str
    point: Point
    common: Common


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, each once, and the grid they are to fill."""

    traces: Mapping[str, str]
    """label -> address"""
    mechanisms: tuple[str, ...]
    common: Common
    points: tuple[Point, ...]
    cells: tuple[Task, ...]

    def cells_at(self, label: str, point: Point) -> dict[str, tuple[str, str, Point]]:
        """Mechanism -> (label, mechanism, point) of the cell that stands for it there."""
        return {m: (label, m, part_of(point, self.common.axes, m)) for m in self.mechanisms}


@dataclass(frozen=True)
class Sweep:
    """What came out. A row has the cell's key, trace, mechanism, axes and the fields of `Metrics`."""

    plan: Plan
    rows: Mapping[tuple[str, str, Point], Mapping[str, Any]]
    failed: Mapping[Task, Failure]
    computed: int
    crossings: tuple[Crossing, ...]
    courses: tuple[Course, ...]
    """the answer along each axis"""
    ranked_by: str
    tolerance: float
    unranked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """trace -> mechanism that leaves out what another one does -> what that is"""

    def values(self, label: str) -> dict[Point, dict[str, float]]:
        """Point of the grid -> mechanism -> what it is ranked by, of one trace.

        Cells that failed are left out, and mechanisms that leave something out (`unranked`).
        """
        return _values(self.plan, self.rows, label, self.ranked_by, self.unranked.get(label, {}))


def plan(addresses: Sequence[str], mechanisms: Sequence[str], common: Common) -> Plan:
    """Check everything that can be checked beforehand and name the cells.

    Raises:
        UsageError: no such trace, mechanism or parameter; the same trace or mechanism twice.
        IncompleteData: a trace lost too much.
    """
    if not addresses or not mechanisms:
        raise UsageError("a sweep needs at least one trace and one mechanism (-m)")
    keys = [axis.key for axis in common.axes]
    if len(set(keys)) < len(keys):
        raise UsageError("--vary names the same thing twice")
    identities = {address: identity(address) for address in addresses}
    for address in identities:
        check_losses(open_address(address), common.max_loss_percent)
    labels = _labels(identities)
    loaded: dict[str, Mechanism] = {}
    for name in mechanisms:
        loaded[name] = load_with(name, common.setup, None)
    names = [m.name for m in loaded.values()]
    if len(set(names)) < len(names):
        raise UsageError("two mechanisms of a sweep have the same name: rename one of the files")
    points = grid(common.axes)
    shared = fingerprint(common.setup, common.windows, common.fit)
    cells: dict[tuple[str, str, Point], Task] = {}
    for label, address in labels.items():
        for name in mechanisms:
            text_key = _text_key(name, loaded[name])
            what = [identities[address], shared, text_key, common.setup.settings.get(name, {})]
            for point in points:
                own = part_of(point, common.axes, name)
                if (label, name, own) not in cells:
                    units = {axis.key: axis.unit for axis in common.axes}
                    key = hash_of([*what, [[k, v, units[k]] for k, v in own]])
                    case_key = hash_of([identities[address], shared])
                    cells[label, name, own] = Task(key, case_key, text_key, shared, label, address, name, own, common)
    return Plan(labels, tuple(mechanisms), common, tuple(points), tuple(cells.values()))


def sweep(
    made: Plan,
    workers: Callable[[Sequence[Task]], Iterable[Outcome[Task]]],
    directory: Path,
    *,
    ranked_by: str = "total_stall_ns",
    tolerance: float = 0.10,
    again: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Sweep:
    """Run the cells that `directory` does not have yet and find the crossings.

    Args:
        made: from `plan`.
        workers: yields an `Outcome` a cell, in any order (`faultreplay.analysis.explore.workers`).
        directory: the Parquet data set.
        ranked_by: one of `RANKED_BY`.
        tolerance: below this excess of the worst over the best, the mechanism does not matter.
        again: run all cells, also those that are there.
        progress: called with (cells done, cells in all).
    """
    data = DataSet(directory, schema_of(made.common.axes))
    rows: dict[tuple[str, str, Point], Mapping[str, Any]] = {}
    missing = []
    for cell in made.cells:
        row = None if again else data.read(cell.label, plain_name(cell.mechanism), cell.key)
        if row is None or not row["question"]:
            missing.append(cell)
        else:
            rows[cell.label, cell.mechanism, cell.point] = row
    progress(len(rows), len(made.cells))
    failed: dict[Task, Failure] = {}
    try:
        for outcome in workers(missing):
            cell = outcome.task
            if outcome.failure:
                failed[cell] = outcome.failure
            else:
                data.write(cell.label, plain_name(cell.mechanism), cell.key, outcome.value)
                rows[cell.label, cell.mechanism, cell.point] = outcome.value
            progress(len(rows) + len(failed), len(made.cells))
    finally:  # also when it was interrupted: what was computed is kept
        data.flush()
    return answered(made, rows, failed, len(missing) - len(failed), ranked_by, tolerance)


def answered(  # noqa: PLR0917
    made: Plan,
    rows: Mapping[tuple[str, str, Point], Mapping[str, Any]],
    failed: Mapping[Task, Failure],
    computed: int,
    ranked_by: str,
    tolerance: float,
) -> Sweep:
    """The answer that cells give."""
    found: list[Crossing] = []
    answers: list[Course] = []
    unranked: dict[str, Mapping[str, str]] = {}
    for label in made.traces:
        unranked[label] = left_out(_questions(rows, label), REFERENCES)
        values = _values(made, rows, label, ranked_by, unranked[label])
        found += crossings(label, made.common.axes, values, tolerance=tolerance)
        answers += courses(label, made.common.axes, values, tolerance=tolerance)
    return Sweep(made, rows, failed, computed, tuple(found), tuple(answers), ranked_by, tolerance, unranked)


def _questions(rows: Mapping[tuple[str, str, Point], Mapping[str, Any]], label: str) -> dict[str, Question]:
    """Mechanism -> what its cells on one trace are the stall of."""
    found: dict[str, list[Question]] = {}
    for (trace, mechanism, _), row in rows.items():
        if trace == label:
            found.setdefault(mechanism, []).append(Question.of_text(row["question"]))
    return {mechanism: all_of(questions) for mechanism, questions in found.items()}


def _values(
    made: Plan,
    rows: Mapping[tuple[str, str, Point], Mapping[str, Any]],
    label: str,
    ranked_by: str,
    unranked: Collection[str],
) -> dict[Point, dict[str, float]]:
    values = {}
    for point in made.points:
        cells = {m: at for m, at in made.cells_at(label, point).items() if at in rows and m not in unranked}
        values[point] = {m: float(rows[at][ranked_by]) for m, at in cells.items()}
    return values


def run_cell(cell: Task) -> dict[str, Any]:
    """Replay one cell; its row. What the trace holds is kept for the next cell on the same trace."""
    case, fitted = _case(cell)
    common, workload = cell.common, case.read
    mechanism = _mechanism(cell, case).with_params(settings_at(cell.point, common.axes))
    if reason := why_no_row(case, mechanism):
        raise UsageError(f"{cell.mechanism} has no numbers for {cell.label}: {reason}")
    costs = costs_at(case.costs(fitted), cell.point, common.axes)
    windows = case.windows_of(mechanism.name)
    measured = []
    used: dict[str, str] = {}
    for k in range(common.setup.seeds):
        result = run(workload, mechanism, costs, case.setup, windows, seed=k)
        measured.append(metrics_of(result, workload))
        used = dict(result.costs_used)
    row = _row(cell, case, mechanism, used, mean_metrics(measured))
    return row | {"question": question_of(workload, mechanism).as_text()}


def schema_of(axes: Sequence[Axis]) -> Any:
    """Arrow schema of a row without the partition columns `trace` and `mechanism`."""
    import pyarrow as pa

    numbers: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    types = typing.get_type_hints(Metrics)
    columns = [pa.field(n, pa.string()) for n in ("key", "title", "origin", "params", "costs", "question", "tool")]
    columns += [pa.field("seed", pa.int64()), pa.field("seeds", pa.int64())]
    columns += [pa.field(axis.key, pa.float64()) for axis in axes]
    for metric in fields(Metrics):
        stated = types[metric.name]  # a number, a number or None, or what goes into the file as JSON
        plain = typing.get_args(stated)[0] if isinstance(stated, UnionType) else stated
        columns.append(pa.field(metric.name, numbers.get(plain, pa.string())))
    return pa.schema(columns)


_cases: OrderedDict[str, tuple[Case, CostTable]] = OrderedDict()
_mechanisms: dict[tuple[str, str], Mechanism] = {}


def _text_key(name: str, mechanism: Mechanism) -> str:
    """Of the file and of the parameters that stand beside its name, as in ``uffd-missing:handlers=2``."""
    return hash_of([mechanism_text(mechanism), split_choice(name)[1]])


def _mechanism(cell: Task, case: Case) -> Mechanism:
    """The cell's mechanism with the recording's and the user's parameters."""
    key = (cell.case_key, cell.mechanism_key)
    if key not in _mechanisms:
        loaded = case.load(cell.mechanism)
        if _text_key(cell.mechanism, loaded) != cell.mechanism_key:
            raise UsageError(f"{cell.mechanism}: this worker has another version: install one everywhere")
        if len(_mechanisms) >= _MECHANISMS_KEPT:
            _mechanisms.clear()
        _mechanisms[key] = loaded
    return _mechanisms[key]


def _case(cell: Task) -> tuple[Case, CostTable]:
    """The cell's trace, ready to be replayed, and the costs it shows."""
    if cell.case_key not in _cases:
        while len(_cases) >= _CASES_KEPT:
            _cases.popitem(last=False)
        common = cell.common
        if fingerprint(common.setup, common.windows, common.fit) != cell.shared_key:
            raise UsageError(
                f"this worker has other cost tables or another faultreplay ({version()}): install the same everywhere"
            )
        case = open_case(
            open_address(cell.address),
            common.setup,
            windows=common.windows,
            fit=common.fit,
            max_loss_percent=common.max_loss_percent,
        )
        _cases[cell.case_key] = (case, case.fitted())
    _cases.move_to_end(cell.case_key)
    return _cases[cell.case_key]


def _row(cell: Task, case: Case, mechanism: Mechanism, used: Mapping[str, str], numbers: Metrics) -> dict[str, Any]:
    point = dict(cell.point)
    record = numbers.as_record()
    return {
        "key": cell.key,
        "title": mechanism.title,
        "origin": case.trace.meta.origin,
        "params": as_json(dict(mechanism.values)),
        "costs": as_json(dict(used)),
        "tool": version(),
        "seed": cell.common.setup.seed,
        "seeds": cell.common.setup.seeds,
        **{axis.key: point.get(axis.key) for axis in cell.common.axes},
        **{k: as_json(v) if isinstance(v, Mapping | tuple | list) else v for k, v in record.items()},
    }


def _labels(identities: Mapping[str, str]) -> dict[str, str]:
    names = [name_of(address) for address in identities]
    labels: dict[str, str] = {}
    for address, name in zip(identities, names, strict=True):
        label = name if names.count(name) == 1 else f"{name}~{identities[address][:8]}"
        if label in labels:
            raise UsageError(f"{address} is the same trace as {labels[label]}")
        labels[label.translate(_DASHED)] = address
    return labels


def plain_name(mechanism: str) -> str:
    """What a mechanism is called in a data set."""
    return mechanism.rsplit("/", 1)[-1].removesuffix(".toml").translate(_DASHED)
