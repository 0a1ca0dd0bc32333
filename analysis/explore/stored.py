"""What a sweep asked, kept beside its cells, so that its answer can be drawn and told again without a replay.

A data set holds the cells of any number of sweeps. Each leaves a ``sweep-HASH.json`` with its traces, mechanisms, axes,
how it ranked, and the keys of its cells.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.explore.axes import Axis, Point, grid
from faultreplay.analysis.explore.sweep import Common, Plan, Sweep, answered, plain_name, schema_of
from faultreplay.analysis.explore.versions import hash_of, version
from faultreplay.analysis.judge.dataset import DataSet, is_data_set
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.remote import identity

_LAYOUT: Final = 1
_NAME: Final = "sweep-{}.json"


@dataclass(frozen=True)
class Kept:
    """A sweep that was kept.

    Attributes:
        sweep: its answer.
        label: what it calls the trace that was asked for.
        file: where it is kept.
        made: when, UTC.
        tool: version of faultreplay that wrote it.
        seed: of its replays.
        command: with which it was made.
    """

    sweep: Sweep
    label: str
    file: str
    made: str
    tool: str
    seed: int
    command: str


def keep(done: Sweep, directory: Path, command: str) -> Path:
    """Write down what `done` asked, in its data set; cells that failed are not in it.

    Raises:
        FaultreplayError: it cannot be written.
    """
    made = done.plan
    asked = {
        "layout": _LAYOUT,
        "traces": {label: identity(address) for label, address in made.traces.items()},
        "mechanisms": list(made.mechanisms),
        "axes": [{**axis.__dict__, "values": list(axis.values)} for axis in made.common.axes],
        "ranked_by": done.ranked_by,
        "tolerance": done.tolerance,
        "seed": made.common.setup.seed,
        "cells": [
            [cell.label, cell.mechanism, [list(item) for item in cell.point], cell.key]
            for cell in made.cells
            if (cell.label, cell.mechanism, cell.point) in done.rows
        ],
    }
    path = directory / _NAME.format(hash_of(asked))
    told = {**asked, "made": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), "tool": version(), "command": command}
    try:
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise FaultreplayError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def kept(place: Path, trace_id: str) -> Kept:
    """The sweep in a data set that has a trace, the latest of several; or the one of a file ``sweep-HASH.json``.

    Args:
        place: the data set's directory, or the file in it.
        trace_id: `identity` of the trace.

    Raises:
        UsageError: no data set, or no sweep of this trace in it.
        IncompleteData: cells are missing, or a file is damaged.
    """
    directory = place if place.is_dir() else place.parent
    if not is_data_set(directory):
        raise UsageError(f"{place}: not a data set of faultreplay sweep -o")
    files = sorted(directory.glob(_NAME.format("*"))) if place.is_dir() else [place]
    found = [(told, path) for path in files if trace_id in (told := _read(path))["traces"].values()]
    if not found:
        others = "" if files else ": run the sweep again, it only runs the cells it lacks"
        raise UsageError(f"{place}: no sweep of this trace in it{others}")
    told, path = max(found, key=lambda one: (str(one[0]["made"]), str(one[1])))
    try:
        return _kept(directory, path, told, trace_id)
    except (KeyError, TypeError, ValueError) as error:
        raise IncompleteData(f"{path}: damaged ({error!r:.60}): run the sweep again") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IncompleteData(f"{path}: cannot be read ({error!s:.60}): run the sweep again") from None
    if not isinstance(told, dict) or told.get("layout") != _LAYOUT or not isinstance(told.get("traces"), dict):
        raise UsageError(f"{path}: not a sweep of this version: run it again")
    return told


def _kept(directory: Path, path: Path, told: dict[str, Any], trace_id: str) -> Kept:
    axes = tuple(Axis(**{**axis, "values": tuple(axis["values"])}) for axis in told["axes"])
    common = Common(Setup(seed=told["seed"]), axes)
    made = Plan(dict.fromkeys(told["traces"], ""), tuple(told["mechanisms"]), common, tuple(grid(axes)), ())
    data = DataSet(directory, schema_of(axes))
    rows = {}
    for label, mechanism, items, key in told["cells"]:
        point: Point = tuple((str(name), float(value)) for name, value in items)
        row = data.read(label, plain_name(mechanism), key)
        if row is None:
            raise IncompleteData(f"{directory}: cell {key} of {path.name} is gone: run the sweep again")
        rows[label, mechanism, point] = row
    done = answered(made, rows, {}, 0, told["ranked_by"], told["tolerance"])
    label = next(label for label, found in told["traces"].items() if found == trace_id)
    return Kept(done, label, path.name, str(told["made"]), str(told["tool"]), int(told["seed"]), str(told["command"]))
