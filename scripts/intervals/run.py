"""How often the 90 % intervals of `compare` hold what was measured: real runs, each predicted from another one.

    python scripts/intervals/run.py DIRECTORY                 # costs as shipped, foreign where the trace shows none
    faultreplay calibrate --lab                               # files this host's costs
    python scripts/intervals/run.py DIRECTORY --calibrated    # the same pairs with them

DIRECTORY may be one that `faultreplay lab matrix` made. If it holds no trace, runs are made first (root, KVM, a C
compiler): 4 mechanisms x 1 and 2 vCPUs x a fetch of 0, 50 and 200 us, twice each with other seeds. A pair is a run of
side A and one of side B, as in `faultreplay validate --matrix`; source and target never are the same run. What a user
would do: `compare SOURCE -m MECHANISM`, then look whether the target's total stall lies in the row's interval.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from time import monotonic_ns, sleep

import numpy as np

from faultreplay.analysis.compare.compare import compare
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup, measured_metrics
from faultreplay.analysis.judge.matrix import LabTrace, find, plan
from faultreplay.collect.backends.backends import kept_attached
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec
from faultreplay.replay.language.mechanism import load_mechanism

MECHANISMS = ("uffd-missing", "kvm-exit", "uffd-sharded", "uffd-minor")
FETCHES = ("0us", "50us", "200us")
VCPUS = (1, 2)
SPUN_BELOW_NS = LabSpec.spin_below_ns
PR_SET_TIMERSLACK = 29  # include/uapi/linux/prctl.h


@dataclass(frozen=True)
class Pair:
    """One prediction and what it is judged on; times in ns."""

    source: str
    target: str
    mechanism: str
    source_mechanism: str
    vcpus: int
    fetch: str
    predicted: int
    low: float
    high: float
    measured: int
    foreign: bool

    @property
    def held(self) -> bool:
        """Whether the interval holds the measured total."""
        return self.low <= self.measured <= self.high

    @property
    def error_percent(self) -> float:
        """Of the row's own figure."""
        return 100 * (self.predicted / self.measured - 1)

    @property
    def width_percent(self) -> float:
        """Of the interval, in percent of the figure."""
        return 100 * (self.high - self.low) / max(self.predicted, 1)


def make(folder: Path, pages: int) -> None:
    """The runs, each but once: what stands in `folder` is not made again."""
    with kept_attached():
        for mechanism, vcpus, fetch, seed in product(MECHANISMS, VCPUS, FETCHES, (1, 2)):
            path = folder / f"{mechanism}-{vcpus}-{fetch}-{seed}.trace"
            if path.exists():
                continue
            spec = LabSpec(
                mechanism, vcpus=vcpus, pages=pages, order="random", think="exp:50us", fetch=fetch, seed=seed
            )
            print(f"lab: {path.name}", file=sys.stderr)
            if problem := run(spec, path).problem:
                raise FaultreplayError(f"{path.name}: {problem}")


def pairs(folder: Path, mechanisms: Sequence[str], costs: Sequence[str]) -> Iterator[Pair]:
    """Every ordered pair of mechanisms of each group of like runs."""
    found, _ = find(folder)
    wanted = [one for one in found if one.mechanism in mechanisms]
    targets: dict[Path, tuple[LabTrace, list[LabTrace]]] = {}
    for source, target, _again in plan(wanted):
        targets.setdefault(source.path, (source, []))[1].append(target)
    for source, several in targets.values():
        yield from predicted(source, several, costs)


def predicted(source: LabTrace, targets: Sequence[LabTrace], costs: Sequence[str]) -> Iterator[Pair]:
    """As a user would: compare the source, read the row of each target's mechanism."""
    # Where nothing was fetched the trace does not tell what a fetch takes: a user says it.
    fetch_ns = slept_ns(parse_duration_ns(source.fetch, default_unit="ns")) if source.mechanism == "host-lazy" else None
    setup = Setup(cost_files=costs, bounds=frozenset({"cpus", "retouch"}), fetch_ns=fetch_ns)
    case = open_case(open_trace(source.path), setup)
    names = [asked(target) for target in targets]
    comparison = compare(case, names)
    rows = {row.mechanism: row for row in comparison.rows}
    for target, name in zip(targets, names, strict=True):
        if name not in rows:
            raise FaultreplayError(f"{source.path.name} under {name}: {comparison.unanswered[0].reason}")
        row, sure = rows[name], rows[name].uncertainty
        assert sure is not None
        measured = measured_metrics(open_case(open_trace(target.path), Setup()).workload)
        # Of as many faults: a run may touch a page or two of its own code more.
        share = row.metrics.faults / max(measured.faults, 1)
        yield Pair(
            source.path.name, target.path.name, target.mechanism, source.mechanism, target.vcpus, target.fetch,
            row.metrics.total_stall_ns, sure.total_ns.low, sure.total_ns.high,
            round(measured.total_stall_ns * share), row.marked,
        )  # fmt: skip


@cache
def slept_ns(asked_ns: int) -> int:
    """What the lab's fetch of `asked_ns` takes on this host: the mean of 200, apart from the runs judged.

    The lab's handlers spin for less than `LabSpec.spin_below_ns`, and sleep with a timer slack of 1 ns for more
    (lab/csrc/fetch.c).
    """
    if asked_ns < SPUN_BELOW_NS:
        return asked_ns
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    start_ns = monotonic_ns()
    for _ in range(200):
        sleep(asked_ns / 1e9)
    return (monotonic_ns() - start_ns) // 200


def asked(target: LabTrace) -> str:
    """The row that stands for a run: its mechanism with the handlers and the shards that the run had."""
    meta = open_trace(target.path).meta
    had = meta.mechanism.params if meta.mechanism else {}
    declared = load_mechanism(target.mechanism).params
    own = [f"{name}={had[name]}" for name in ("handlers", "shards") if name in declared and had.get(name)]
    if target.mechanism == "uffd-sharded":  # the lab counts them all, a row those of each shard
        own = [f"shards={had['shards']}", f"handlers={int(had['handlers']) // int(had['shards'])}"]
    return ":".join([target.mechanism, *own])


def table(found: Sequence[Pair]) -> str:
    """Coverage, by what was varied."""
    lines = ["| pairs | number | held | median error | worst | median width |", "|---|--:|--:|--:|--:|--:|"]

    def line(name: str, some: Sequence[Pair]) -> None:
        if some:
            errors = np.array([abs(p.error_percent) for p in some])
            held, width = 100 * np.mean([p.held for p in some]), np.median([p.width_percent for p in some])
            error = f"{np.median(errors):.1f} % | {errors.max():.1f} %"
            lines.append(f"| {name} | {len(some)} | {held:.0f} % | {error} | {width:.0f} % |")

    line("all", found)
    line("same mechanism", [p for p in found if p.mechanism == p.source_mechanism])
    line("another mechanism", [p for p in found if p.mechanism != p.source_mechanism])
    for fetch in dict.fromkeys(p.fetch for p in found):
        line(f"fetch {fetch}", [p for p in found if p.fetch == fetch])
    for vcpus in sorted({p.vcpus for p in found}):
        line(f"{vcpus} vCPU{'s' * (vcpus > 1)}", [p for p in found if p.vcpus == vcpus])
    for name in dict.fromkeys(p.mechanism for p in found):
        line(f"to `{name}`", [p for p in found if p.mechanism == name])
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--calibrated", action="store_true", help="use the costs that calibrate --lab filed here")
    parser.add_argument("--costs", action="append", default=[], help="a cost file, as of compare")
    parser.add_argument("--mechanisms", default=",".join(MECHANISMS))
    parser.add_argument("--pages", type=int, default=2000, help="of each vCPU, in runs that are made")
    parser.add_argument("--json", type=Path, help="keep every pair here")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            if not any(arguments.directory.glob("*.trace")):
                make(arguments.directory, arguments.pages)
            if not arguments.calibrated:
                os.environ["XDG_CONFIG_HOME"] = nowhere
            found = list(pairs(arguments.directory, arguments.mechanisms.split(","), arguments.costs))
        except FaultreplayError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(p) for p in found], indent=1))
    print(table(found))
    for pair in found:
        if not pair.held:
            print(f"not held: {pair.source} -> {pair.target}: {pair.error_percent:+.1f} % ({pair.width_percent:.0f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
