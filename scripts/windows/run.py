"""Windows over memory that is all there, predicted from a run that was only paused: who is held, what faults again.

    faultreplay calibrate --lab -o host.toml
    python scripts/windows/run.py --costs host.toml [-o DIRECTORY]

`lab run` and `validate` in one process, three seeds for each number of pages: a table of docs/validation.md. Needs what
the lab needs: root, KVM, a C compiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.judge.cells import Cell
from faultreplay.analysis.judge.judge import relative_percent
from faultreplay.analysis.judge.side import Side
from faultreplay.analysis.judge.validate import open_for, pair
from faultreplay.collect.backends.backends import kept_attached
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec, Window

MS = 1_000_000
SEEDS = (1, 2, 3)
PAGES = (1000, 3000)


def spec(kind: str, vcpus: int, pages: int, seed: int) -> LabSpec:
    """40,000 writes to populated memory, and one window of 10 ms in them."""
    return LabSpec(
        kind, vcpus=vcpus, pages=pages, accesses=40_000, order="uniform", access="w", think="5us", base="host-lazy",
        windows=(Window(160 * MS, 10 * MS, kind),), pin=True, seed=seed,
    )  # fmt: skip


def cells(kind: str, vcpus: int, folder: Path, costs: list[str]) -> Iterator[Cell]:
    """Predictions of `kind` from a pause with another seed; traces that stand in `folder` are not made again."""
    setup = Setup(retouch="working-set", cost_files=costs)
    for pages in PAGES:
        for seed in SEEDS:
            paths = []
            for name, at in (("pause", seed), (kind, seed + 10)):
                path = folder / f"{name}-{vcpus}-{pages}-{at}.trace"
                if not path.exists() and (problem := run(spec(name, vcpus, pages, at), path).problem):
                    raise FaultreplayError(f"{path.name}: {problem}")
                paths.append(path)
            source, target = (open_for(open_trace(path), setup) for path in paths)
            yield pair(source, target)


def spread(some: list[Cell], number: Callable[[Side], int]) -> str:
    """Median error of a number, least and greatest."""
    errors = [relative_percent(number(c.predicted), number(c.measured)) for c in some]
    known = [e for e in errors if e is not None]
    return f"{np.median(known):+.1f} % ({min(known):+.1f} to {max(known):+.1f})" if known else "-"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="Keep the traces here.")
    parser.add_argument("--costs", action="append", default=[], help="Cost files over the shipped ones.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faultreplay-windows-") as name, kept_attached():
        folder = options.output or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        print("| window | vCPUs | vCPUs held | refaults | held time | stall of the refaults |")
        print("|---|--:|--:|--:|--:|--:|")
        for kind in ("freeze", "memslot-destroy"):
            for vcpus in (1, 2):
                some = list(cells(kind, vcpus, folder, options.costs))
                right = sum(c.predicted.held_accessors == c.measured.held_accessors for c in some)
                figures = [spread(some, n) for n in (lambda x: x.refaults, lambda x: x.held, lambda x: x.refault)]
                print(f"| `{kind}` | {vcpus} | right in {right} of {len(some)} | {' | '.join(figures)} |", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FaultreplayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
