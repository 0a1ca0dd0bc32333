"""Kills real recorders with SIGKILL at random moments and says what is left of their traces.

`python scripts/kill_recorders.py --runs 50 --backends precompiled,bcc,bpftrace` (root; a C compiler): one row a
backend. A trace is whole when every file verifies and its events can be stitched.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.verify import verify_trace

_RECORD = (
    "import sys, threading; from pathlib import Path; "
    "from faultreplay.collect.recorder.run import record; "
    "from faultreplay.collect.recorder.spec import RecordSpec; "
    "record(RecordSpec(pids=(int(sys.argv[1]),), backend=sys.argv[3], part_age_ns=100_000_000), "
    "Path(sys.argv[2]), threading.Event())"
)
_LOAD = Path(__file__).resolve().parent.parent / "tests" / "csrc" / "userfaults.c"


def main() -> int:
    """Kill, look, print; exit status 1 where anything was damaged or left running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--backends", default="precompiled,bcc,bpftrace")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    bad = 0
    print("| backend | killed | before a trace was there | traces | whole | parts | events | faults | damaged | left |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        load = Path(name) / "load"
        subprocess.run(["cc", "-O2", "-pthread", "-o", load, _LOAD], check=True)
        for backend in arguments.backends.split(","):
            rng = random.Random(arguments.seed)
            cells = _backend(backend, load, Path(name), arguments.runs, rng)
            print("| " + " | ".join([backend, *(f"{cell:,}" for cell in cells)]) + " |", flush=True)
            bad += cells[-2] + cells[-1]
    return 1 if bad else 0


def _backend(backend: str, load: Path, folder: Path, runs: int, rng: random.Random) -> list[int]:
    early = traces = whole = parts = events = faults = damaged = left = 0
    for run in range(runs):
        out = folder / f"{backend}-{run}.trace"
        target = subprocess.Popen([load, "100000000"], stdout=subprocess.DEVNULL)
        recorder = subprocess.Popen(
            [sys.executable, "-c", _RECORD, str(target.pid), out, backend], stderr=subprocess.DEVNULL
        )
        _wait(out, recorder, rng)
        if recorder.poll() is not None:
            target.kill()
            sys.exit(f"{backend}: the recorder ended by itself: try 'faultreplay record --backend {backend}' here")
        recorder.kill()
        recorder.wait()
        target.kill()
        target.wait()
        if not (out / "meta.json").exists():
            early += 1
            continue
        traces += 1
        problems = [file.problem for file in verify_trace(out) if file.problem]
        if problems:
            damaged += 1
            print(f"{out.name}: {problems[0]}", file=sys.stderr)
            continue
        trace = open_trace(out)
        whole += 1
        parts += len(list(out.glob("events/part-*.parquet")))
        events += trace.event_rows
        faults += trace.faults().height
    left = _left(folder)
    return [runs, early, traces, whole, parts, events, faults, damaged, left]


def _wait(out: Path, recorder: subprocess.Popen[bytes], rng: random.Random) -> None:
    """One in five is killed while it attaches, the others up to half a second after their first part."""
    attaching = rng.random() < 0.2
    until = time.monotonic() + (rng.uniform(0.5, 4) if attaching else 90)
    while time.monotonic() < until and recorder.poll() is None:
        if not attaching and any(out.glob("events/part-*.parquet")):
            break
        time.sleep(0.02)
    if not attaching:
        time.sleep(rng.uniform(0, 0.5))


def _left(folder: Path) -> int:
    """Helpers of killed recorders that still run half a minute later."""
    until = time.monotonic() + 30
    while (count := _running(folder)) and time.monotonic() < until:
        time.sleep(1)
    return count


def _running(folder: Path) -> int:
    count = 0
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        count += Path(words[0].decode(errors="replace")).name == "bpftrace" and _orphan(place.parent)
        count += str(folder).encode() in b" ".join(words)
    return count


def _orphan(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[1] == "1"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
