"""`lab matrix`: mechanisms x vCPUs x handlers x fetch x workloads, each measured on side A and on side B.

A and B are two independent runs of a cell with different seeds: costs and a trace come from A, judgement from B, and
A against B of one mechanism is the floor that no prediction can beat. The order of mechanisms turns round with each
repeat, so that a drift of the host does not favour one. Runs that stand on disk are not done again.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from faultreplay.collect.backends.backends import kept_attached
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.lab.lists import REPEATING, ROUNDS
from faultreplay.lab.results import write_results
from faultreplay.lab.runner import run
from faultreplay.lab.spec import MECHANISMS, WINDOW_KINDS, LabSpec, Window

SIDES: Final = ("A", "B")
DEFAULT_MECHANISMS: Final = (
    "uffd-missing", "uffd-minor", "uffd-sharded", "kvm-exit", "host-lazy", "freeze", "memslot-destroy", "pause",
)  # fmt: skip
DEFAULT_WORKLOADS: Final = ("random/r/50us", "uniform/mixed/exp:50us")
_COST_OF_A_FAULT_NS = 60_000  # for the length of a run only
_FEWEST, _MOST = 100, 8_000


@dataclass(frozen=True)
class MatrixSpec:
    """The axes of a matrix and how long each run is to be.

    Attributes:
        workloads: ``ORDER/ACCESS/THINK``.
        base: what fills in memory under mechanisms that are windows.
        run_ns: about how long one run takes.
        repeats: how often the whole matrix is measured, each time on both sides.
    """

    mechanisms: tuple[str, ...] = DEFAULT_MECHANISMS
    vcpus: tuple[int, ...] = (1, 2, 4)
    handlers: tuple[int, ...] = (1,)
    fetch: tuple[str, ...] = ("0", "50us", "200us", "1ms")
    workloads: tuple[str, ...] = DEFAULT_WORKLOADS
    base: str = "uffd-missing"
    run_ns: int = 500_000_000
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for workload in self.workloads:
            if workload.count("/") != 2:
                raise UsageError(f"workload '{workload}': write ORDER/ACCESS/THINK, as random/r/50us")
        for item in self.runs():  # every name and number is checked before the first run
            _ = item.spec

    def runs(self) -> Iterator[MatrixRun]:
        """All runs in the order they are done."""
        for repeat, side in itertools.product(range(self.repeats), SIDES):
            turn = -1 if (repeat * len(SIDES) + SIDES.index(side)) % 2 else 1
            axes = itertools.product(self.workloads, self.fetch, self.vcpus, self.handlers)
            for workload, fetch, vcpus, handlers in axes:
                for mechanism in self.mechanisms[::turn]:
                    if _handlers_matter(mechanism, self.base) or handlers == self.handlers[0]:
                        yield MatrixRun(self, mechanism, vcpus, handlers, fetch, workload, side, repeat)


@dataclass(frozen=True)
class MatrixRun:
    """One run of a matrix."""

    matrix: MatrixSpec
    mechanism: str
    vcpus: int
    handlers: int
    fetch: str
    workload: str
    side: str
    repeat: int

    @property
    def name(self) -> str:
        """Name of its trace, without the ending."""
        workload = self.workload.replace("/", "-").replace(":", "_")
        fetch = self.fetch.replace(":", "_")
        return f"{self.mechanism}.v{self.vcpus}.h{self.handlers}.f{fetch}.{workload}.{self.side}{self.repeat}"

    @property
    def seed(self) -> int:
        """Another one for each side and repeat, the same for all mechanisms of a cell."""
        return self.matrix.seed + self.repeat * len(SIDES) + SIDES.index(self.side)

    @property
    def spec(self) -> LabSpec:
        """The run in the lab's terms. Cells that differ in the mechanism only have the same accesses."""
        order, access, think = self.workload.split("/")
        rounds = ROUNDS if order in REPEATING else 1
        pages = self._pages(think, rounds)
        spec = LabSpec(
            mechanism=self.mechanism,
            vcpus=self.vcpus,
            handlers=self.handlers if _handlers_matter(self.mechanism, self.matrix.base) else None,
            pages=pages,
            accesses=pages * rounds,
            order=order,
            access=access,
            think=think,
            fetch=self.fetch,
            seed=self.seed,
            base=self.matrix.base,
            pin=True,  # else the scheduler's choice of cores is part of what is measured
        )
        if self.mechanism in WINDOW_KINDS:
            third = self.matrix.run_ns // 3
            if spec.prewarm:  # nothing but thinking takes time
                third = pages * rounds * _think_ns(think) // 3
            spec = replace(spec, windows=(Window(third, min(third, 50_000_000), self.mechanism),))
        return spec

    def _pages(self, think: str, rounds: int) -> int:
        """Of each vCPU, so that a run under one handler takes about `run_ns`."""
        fetch_ns = parse_duration_ns(self.fetch.removeprefix("exp:")) + _COST_OF_A_FAULT_NS
        return max(_FEWEST, min(_MOST, self.matrix.run_ns // (rounds * _think_ns(think) + fetch_ns * self.vcpus)))


def _think_ns(think: str) -> int:
    return 0 if think.startswith("file:") else parse_duration_ns(think.rpartition(":")[2])


def _handlers_matter(mechanism: str, base: str) -> bool:
    real = base if mechanism in WINDOW_KINDS else mechanism
    return real in MECHANISMS and bool(MECHANISMS[real].handlers) and real != "dirty-log"


@dataclass(frozen=True)
class MatrixDone:
    """How far a matrix came."""

    runs: int
    done: int
    skipped: int  # stood on disk from before
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
    """Do what of `matrix` does not stand in `out` yet, until it is done, the budget is spent or Ctrl-C comes.

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
