"""`lab matrix`: mechanisms x vCPUs x handlers x fetch x workloads, each measured on side A and on side B.

A and B are two independent runs of a cell with different seeds: costs and a trace come from A, judgement from B, and
A against B of one mechanism is the floor that no prediction can beat. The order of mechanisms is reversed with each
repeat, so that a drift of the host does not favour one. Runs that are on disk are not repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faultreplay.collect.backends.backends import kept_attached
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.lab.matrix_spec import MatrixRun, MatrixSpec
from faultreplay.lab.results import write_results
from faultreplay.lab.runner import run


@dataclass(frozen=True)
class MatrixDone:
    """How far a matrix came."""

    runs: int
    done: int
    skipped: int  # on disk from an earlier call
    problems: list[str]
    results: Path


def run_matrix(
    matrix: MatrixSpec,
    out: Path,
    *,
    budget_ns: int | None = None,
    record: bool = True,
    on_run: Callable[[MatrixRun, int, int], None] | None = None,
) -> MatrixDone:
    """Do the runs of `matrix` that are not in `out` yet, until all are done, the budget is spent or Ctrl-C.

    Args:
        matrix: what to run.
        out: directory of traces and `results.parquet`; made here, or left by an earlier call with the same matrix.
        budget_ns: start no run after so long.
        record: attach probes; otherwise the traces hold truth only.
        on_run: called before each run with its number and how many there are.

    Raises:
        UsageError: `out` holds another matrix.
        KeyboardInterrupt: after the results so far were written.
    """
    _claim(out, matrix)
    runs = list(matrix.runs())
    done = skipped = 0
    problems: list[str] = []
    end = None if budget_ns is None else time.monotonic_ns() + budget_ns
    try:
        with kept_attached():
            for number, item in enumerate(runs):
                trace = out / f"{item.name}.trace"
                if _stands(trace):
                    skipped += 1
                    continue
                if end is not None and time.monotonic_ns() >= end:
                    break
                if on_run:
                    on_run(item, number, len(runs))
                problem = _run_one(item, trace, record)
                if problem:
                    problems.append(f"{item.name}: {problem}")
                done += 1
    finally:
        results = write_results(out, runs)
    return MatrixDone(len(runs), done, skipped, problems, results)


def _run_one(item: MatrixRun, trace: Path, record: bool) -> str:
    """Run and keep; a run that this host cannot do is a problem of that cell only, unless it is for want of rights."""
    try:
        return run(item.spec, trace, record=record, force=True).problem
    except FaultreplayError as error:
        if error.exit_code == 77 or trace.exists():
            raise
        return str(error)


def _stands(trace: Path) -> bool:
    try:
        meta = Meta.read(trace / "meta.json")
    except FaultreplayError:
        return False
    return meta.complete and not meta.lab.get("problem", "unfinished")


def _claim(out: Path, matrix: MatrixSpec) -> None:
    """Make `out` this matrix's, or find that it is. More repeats may be asked for later; nothing else may change."""
    path = out / "matrix.json"
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(matrix)))
    if path.exists():
        found = json.loads(path.read_text())
        changed = [key for key in wanted if key != "repeats" and found.get(key) != wanted[key]]
        if changed:
            raise UsageError(f"{out}: holds a matrix with other {', '.join(changed)}: choose another directory")
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: is not empty and holds no matrix: choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")
