"""Which runs a matrix has: mechanisms x vCPUs x handlers x fetch delays x workloads, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.lab.lists import ALIKE_TOUCHED, REPEATING, ROUNDS
from faultreplay.lab.spec import MECHANISMS, PREFETCH_KINDS, WINDOW_KINDS, LabSpec, Window

SIDES: Final = ("A", "B")
DEFAULT_MECHANISMS: Final = (
    "uffd-missing", "uffd-minor", "uffd-sharded", "kvm-exit", "host-lazy", "freeze", "memslot-destroy", "pause",
)  # fmt: skip
RESTORE_MECHANISMS: Final = (
    "file-private", "file-private:cold", "restore-copy", "uffd-missing", "uffd-handler-process", "uffd-fault-around",
    "prefetch-before", "prefetch-beside",
)  # fmt: skip
RESTORE_WORKLOADS: Final = ("alike/mixed:0.3/50us", "alike/r/exp:50us")
COLD: Final = ":cold"
"""Behind a mechanism: its snapshot file is on a disk and in no page cache."""
_SET_SEED: Final = 1_000_000
"""Of the runs whose pages are prefetched, plus the repeat: neither side's."""
DEFAULT_WORKLOADS: Final = ("random/r/50us", "uniform/mixed/exp:50us")
_COST_OF_A_FAULT_NS = 60_000  # for the length of a run only
_FEWEST = 100
_MOST = 8_000


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
        mechanism = self.mechanism.replace(":", "_")
        return f"{mechanism}.v{self.vcpus}.h{self.handlers}.f{fetch}.{workload}.{self.side}{self.repeat}"

    @property
    def seed(self) -> int:
        """Another one for each side and repeat, the same for all mechanisms of a cell."""
        return self.matrix.seed + self.repeat * len(SIDES) + SIDES.index(self.side)

    @property
    def spec(self) -> LabSpec:
        """The run in the lab's terms. Cells that differ in the mechanism only have the same accesses."""
        order, access, think = self.workload.split("/")
        name, cold = self.mechanism.removesuffix(COLD), self.mechanism.endswith(COLD)
        rounds = ROUNDS if order in REPEATING else 1
        pages = self._pages(think, rounds)
        spec = LabSpec(
            mechanism=name,
            vcpus=self.vcpus,
            handlers=self.handlers if _handlers_matter(self.mechanism, self.matrix.base) else None,
            pages=pages,
            accesses=pages * rounds // (ALIKE_TOUCHED if order == "alike" else 1),
            order=order,
            access=access,
            think=think,
            fetch=self.fetch,
            seed=self.seed,
            base=self.matrix.base,
            snapshot="disk" if cold else "tmpfs",
            page_cache="cold" if cold else "hot",
            working_set_seed=_SET_SEED + self.repeat if name in PREFETCH_KINDS else None,
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
    real = base if mechanism in (*WINDOW_KINDS, *PREFETCH_KINDS) else mechanism
    return real in MECHANISMS and bool(MECHANISMS[real].handlers) and real != "dirty-log"
