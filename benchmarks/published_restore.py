"""Published figures of snapshot restores, replayed from stated inputs: `python benchmarks/published_restore.py`.

Each line says whether it is a prediction (no figure of the source is among the inputs but the workload's), a fit (a
cost or a rate comes from the same source, so that agreement is no evidence), or an illustration (the source states no
inputs: all are assumed). docs/restore.md prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.synth import SynthSpec, Think, synthesize
from faultreplay.replay.workload.synth_restore import Restore
from faultreplay.replay.workload.workload import Workload, make_workload

MS, US = 1e6, 1e3
GIB_PAGES = 1 << 18


@dataclass(frozen=True)
class Line:
    """One figure."""

    source: str
    figure: str
    published: float
    replayed: float
    unit: str
    kind: str
    """prediction, fit, or illustration: all inputs are assumed"""
    inputs: str

    @property
    def off_percent(self) -> float:
        """How far the replay is off."""
        return 100 * (self.replayed / self.published - 1)


def replay(work: Workload, name: str, costs: CostTable, known: Knowledge | None = None, **params: object) -> Result:
    return simulate(work, load_mechanism(name).with_params(params), costs, known=known)


def chromium() -> Workload:
    """fcvm #742: 56,300 first touches, half of them by 300 ms, next page 8.6 %; 2 vCPUs (CPU=2 in its bench/chromium
    /bench.sh); half writes assumed, and that both vCPUs touch as much.
    """
    return synthesize(SynthSpec("restore", 2, 28_150, Think(0), restore=Restore(run=1, jaccard=0.927)))


def fcvm(costs: CostTable) -> Iterator[Line]:
    work = chromium()
    userfault = replay(work, "uffd-handler-process", costs, cached=1)
    private = replay(work, "file-private", costs, cached=1)
    more = userfault.run_time_ns - private.run_time_ns
    inputs = (
        "its workload (56,300 first touches, 8.6 % on the next page, half by 300 ms), its 2 vCPUs; page cache hot; the "
        "shipped costs (x86); half writes, and both vCPUs alike, assumed"
    )
    yield Line("fcvm #742", "longer until the caller is answered", 316, more / MS, "ms", "prediction", inputs)
    yield Line("fcvm #742", "the same a userfault", 5.6, more / work.faults / US, "us", "prediction", inputs)


def cloud_hypervisor(costs: CostTable) -> Iterator[Line]:
    work = make_workload([{"think_ns": [0], "page": [0], "access": "w"}])
    memory = Knowledge(memory=((0, GIB_PAGES),))
    copied = replay(work, "restore-copy", costs, memory, cached=1).restored
    assert copied is not None
    yield Line(
        "cloud-hypervisor #8744", "copy of 1 GiB", 727, copied.startup_ns / MS, "ms", "fit",
        "copy_per_page is this figure's",
    )  # fmt: skip
    for per_page, kind, inputs in (
        (None, "prediction", "resolve_per_page as shipped (arm64: linux-mm, fcvm #956); page cache hot"),
        (4_300, "fit", "resolve_per_page 4.3 us, this source's"),
    ):
        table = costs if per_page is None else costs.with_constants(resolve_per_page=per_page)
        filled = replay(work, "prefault-all", table, memory, cached=1).restored
        assert filled is not None
        rate = 1024 / (filled.beside_ns / 1e9)
        yield Line("overdrive #96", "background prefault", 900, rate, "MiB/s", kind, inputs)


def hypeman(costs: CostTable) -> Iterator[Line]:
    work = make_workload([{"think_ns": [0], "page": [0], "access": "w"}] * 1)
    memory = Knowledge(memory=((0, 8 * GIB_PAGES),))
    cold = replay(work, "restore-copy", costs, memory, storage_bandwidth=165 * 10**6).restored
    assert cold is not None
    yield Line(
        "hypeman #400", "eager, 8 GiB", 55.6, cold.startup_ns / 1e9, "s", "fit",
        "165 MB/s from storage, chosen to fit: the source states no rate",
    )  # fmt: skip


def prefetches(costs: CostTable) -> Iterator[Line]:
    """REAP and FaaSnap: ratios of whole invocations; the guest's own work is an input that they do not state."""
    spec = [SynthSpec("restore", 1, 8000, Think(0), restore=Restore(run=run, ramp=RAMP)) for run in (1, 2)]
    earlier, work = (synthesize(one) for one in spec)
    known = Knowledge(working_set=earlier.page.astype(np.int64))
    reap = {"storage_bandwidth": 850 * 10**6, "readahead": 0}

    def whole_ns(result: Result) -> int:
        return result.run_time_ns + (result.restored.startup_ns if result.restored else 0)

    lazy = whole_ns(replay(work, "uffd-handler-process", costs, known, **reap))
    before = whole_ns(replay(work, "prefetch-before", costs, known, **reap))
    inputs = "31 MiB touched in 150 ms of work, Jaccard 0.927; SSD 90 us, 850 MB/s; all assumed"
    yield Line("REAP", "cold start, times lower", 3.7, lazy / before, "x", "illustration", inputs)
    disk = {"storage_bandwidth": 850 * 10**6}
    cold = whole_ns(replay(work, "file-private", costs, known, **disk))
    hot = whole_ns(replay(work, "file-private", costs, known, cached=1))
    ahead = whole_ns(replay(work, "file-private-prefetch", costs, known, prefetchers=32, **disk))
    inputs = "the same guest; readahead 128K, 32 threads that read ahead of it"
    yield Line("FaaSnap", "times faster than disk, at most", 3.5, cold / ahead, "x", "illustration", inputs)
    yield Line("FaaSnap", "behind a hot page cache", 3.5, 100 * (ahead / hot - 1), "%", "illustration", inputs)


RAMP = ((0, 0.0), (45_000_000, 0.5), (112_000_000, 0.98), (150_000_000, 1.0))
PARTS: tuple[Callable[[CostTable], Iterator[Line]], ...] = (fcvm, cloud_hypervisor, hypeman, prefetches)


def main() -> None:
    costs = load_costs()
    print("| source | figure | published | replayed | off | | inputs |")
    print("|---|---|--:|--:|--:|---|---|")
    for part in PARTS:
        for line in part(costs):
            values = (f"{value:.3g} {line.unit}" for value in (line.published, line.replayed))
            print(
                f"| {line.source} | {line.figure} | {' | '.join(values)} | {line.off_percent:+.0f} % | {line.kind} | ",
                end="",
            )
            print(f"{line.inputs} |")


if __name__ == "__main__":
    main()
