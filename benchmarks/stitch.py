"""Events per second and peak memory of stitching, beside polars reading and sorting the same columns.

    python benchmarks/stitch.py TRACE [--repeat 2] [--compare]

Each is a process of its own on one CPU; the peer does no more than a scan of the columns that a stitch reads, a filter
by kind and a sort by thread and time. A cached `faults.parquet` is not taken: the trace is copied by links into a
directory of its own, on the same disk. `--compare` also runs `inspect` and `compare` and tells their peak memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STITCH = """
import sys
from faultreplay.faulttrace.store import open_trace
trace = open_trace(sys.argv[1])
trace.stitch_facts()
"""
PEER = """
import sys
import polars as pl
from faultreplay.faulttrace.stitch.columns import USED
columns = ["ts_ns", "kind", "tgid", "tid", "fd", "vcpu", "addr", "ip", "code", "size", "value", "dur_ns"]
scan = pl.scan_parquet(sys.argv[1] + "/events/part-*.parquet").select(columns)
frame = scan.filter(pl.col("kind").is_in([int(kind) for kind in USED])).sort("tid", "ts_ns").collect()
print(len(frame), file=sys.stderr)
"""
_LOWEST = """
import sys
import pyarrow.parquet as pq
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("events/part-*.parquet")):
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            file.read_row_group(number)
"""
"""The least that a reader does: each row group once, all columns, nothing kept."""


def linked(trace: Path, root: Path) -> Path:
    """The trace without its faults, its files linked."""
    out = root / "linked.trace"
    (out / "events").mkdir(parents=True)
    for path in [*trace.glob("events/*"), *(p for p in trace.iterdir() if p.is_file() and p.name != "faults.parquet")]:
        (out / path.relative_to(trace)).hardlink_to(path)
    return out


def measured(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MiB) of a process on one CPU."""
    env = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, preexec_fn=_on_one_cpu)  # noqa: PLW1509
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}: exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _on_one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    from faultreplay.faulttrace.store import open_trace

    events = open_trace(options.trace).event_rows
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory(dir=options.trace.parent) as name:
        trace = linked(options.trace, Path(name))
        (trace / "faults.parquet").unlink(missing_ok=True)
        cli = [sys.executable, "-m", "faultreplay"]
        runs = {
            "read every row group": [*python, _LOWEST, str(trace)],
            "polars: scan, filter, sort": [*python, PEER, str(trace)],
            "stitch": [*python, STITCH, str(trace)],
        }
        print(f"{events:,} events; one CPU; best of {options.repeat}")
        for what, command in runs.items():
            found = []
            for _ in range(options.repeat):
                (trace / "faults.parquet").unlink(missing_ok=True)
                found.append(measured(command))
            wall, cpu, peak = min(found, key=lambda one: one[1])
            print(f"{what:30} {wall:8.1f} s wall {cpu:8.1f} s CPU {events / cpu / 1e6:6.2f} M events/s {peak:7.0f} MiB")
        if options.compare:
            (trace / "faults.parquet").unlink(missing_ok=True)
            for what in ("inspect", "inspect", "compare"):
                wall, cpu, peak = measured([*cli, what, str(trace)])
                print(f"{what:30} {wall:8.1f} s wall {cpu:8.1f} s CPU {'':17} {peak:7.0f} MiB")


if __name__ == "__main__":
    main()
