"""Makes traces by the real drain and writer from a made-up stream, and kills the process doing so at a random moment.

`python kill_helper.py DIRECTORY RUNS SEED`: each run is a child that is killed with SIGKILL; the parent prints, per
run, how many whole parts it had seen just before and how many events those hold.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from faultreplay.collect.backends.ring import EVENT_DTYPE, Block
from faultreplay.collect.recorder.drain import Drain
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.writer import TraceWriter

PER_TAKE = 4000


class Stream:
    """Events whose `value` counts 0, 1, 2...: a gap would show."""

    skew_ns = 0  # in order as they come
    ring_bytes = 1 << 20

    def __init__(self) -> None:
        self.count = 0

    def take_into(self, out: Block, at: int) -> int:
        n = min(PER_TAKE, out.rows - at)
        events = np.zeros(n, EVENT_DTYPE)
        events["value"] = np.arange(self.count, self.count + n)
        events["ts_ns"] = events["value"] * 1000
        events["kind"] = 1
        out.put(at, events)
        self.count += n
        return n

    def poll_losses(self) -> list[object]:
        return []


def child(path: Path) -> None:
    writer = TraceWriter(path, Meta())
    drain = Drain(Stream(), writer, 1 << 26, lambda _: None, part_age_ns=40_000_000)  # type: ignore[arg-type]
    drain.start()
    while drain.failed is None:
        time.sleep(0.01)
    raise drain.failed


def whole_parts(path: Path) -> list[int]:
    """Rows of each part that has its name."""
    return [pq.read_metadata(part).num_rows for part in sorted((path / "events").glob("part-*.parquet"))]


def main(directory: Path, runs: int, seed: int) -> None:
    rng = random.Random(seed)
    for run in range(runs):
        path = directory / f"{run}.trace"
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            child(path)
            os._exit(1)
        time.sleep(rng.uniform(0.05, 0.6))
        before = whole_parts(path) if path.exists() else []
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(json.dumps({"path": str(path), "parts": len(before), "rows": sum(before)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
