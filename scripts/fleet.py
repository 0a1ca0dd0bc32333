"""Many small traces in one sweep: a local pool, and a dask cluster of two workers one of which is killed midway.

    python scripts/fleet.py [--traces 1000] [--mechanisms uffd-missing,kvm-exit]

Both must give the same rows, all digits of them. Exit code 1: they do not, or a cell failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import distributed

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.explore import workers
from faultreplay.analysis.explore.sweep import Common, plan, run_cell, sweep
from faultreplay.cli.render import emit
from faultreplay.cli.sweep_view import over_hosts
from faultreplay.faulttrace.remote import expand
from faultreplay.replay.engine.warm import warm_engine
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

KINDS = ("demand-paging", "zipf", "phases")


def main() -> int:
    """Make the traces, sweep them twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--mechanisms", default="uffd-missing,kvm-exit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        root = Path(name)
        for number in range(options.traces):
            spec = SynthSpec(KINDS[number % len(KINDS)], 4, 100, Think(10_000 + 20 * number, True), seed=number)
            write_synthetic(spec, root / f"host{number:05d}.trace")
        began = time.monotonic()
        made = plan(expand([str(root / "host*.trace")]), options.mechanisms.split(","), Common(Setup(), ()))
        print(f"{len(made.traces)} traces, {len(made.cells)} cells: planned in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        pool = sweep(made, partial(workers.here, run_cell, jobs=2, prepare=warm_engine), root / "pool")
        print(f"local pool of 2: {time.monotonic() - began:.1f} s, {_files(root / 'pool')} files")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster:
            victims = [worker.process.pid for worker in cluster.workers.values()]

            def progress(done: int, total: int) -> None:
                if done > total // 2 and victims:
                    os.kill(victims.pop(), signal.SIGKILL)
                    victims.clear()

            began = time.monotonic()
            runner = partial(workers.on_dask, run_cell, address=cluster.scheduler_address)
            dask = sweep(made, runner, root / "dask", progress=progress)
            print(f"dask, one of 2 workers killed: {time.monotonic() - began:.1f} s, {_files(root / 'dask')} files")
        same = pool.rows == dask.rows and not victims
        emit(over_hosts(dask), "table")
        print(f"{'equal' if same else 'DIFFERENT'}; failed: {len(pool.failed)} and {len(dask.failed)}")
        for why in sorted({failure.words for done in (pool, dask) for failure in done.failed.values()}):
            print(f"failed: {why}")
        return 0 if same and not pool.failed and not dask.failed else 1


def _files(directory: Path) -> int:
    return len(list(directory.glob("*.parquet")))


if __name__ == "__main__":
    sys.exit(main())
