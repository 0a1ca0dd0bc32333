"""A long recording at a steady rate: is memory flat, is anything lost, can the trace be read, what does an event take.

    python benchmarks/soak.py [--minutes 10] [--rate 200000] [--json FILE]

Two threads take page faults, one event each (and a few more for their stacks). Needs root. Exit status 3 when something
was lost or is missing, or when memory grew by more than a tenth between half time and the end (judged from five minutes
on: buffers grow until parts have their full size).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THREADS = 2
MARKS = (0.1, 0.5, 1.0)
MAX_GROWTH = 1.1
JUDGED_FROM_MINUTES = 5


def rss_bytes(pid: int) -> int:
    """Memory of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_ns(pid: int) -> int:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 10**9 // os.sysconf("SC_CLK_TCK")


def watch(recorder: int, load: subprocess.Popen[bytes], seconds: float) -> dict[float, int]:
    """Memory of the recorder at each of `MARKS`; the last is taken just before the workload ends."""
    begin, seen = time.monotonic(), {}
    for mark in MARKS:
        due = begin + mark * seconds - (0.5 if mark == MARKS[-1] else 0)
        while time.monotonic() < due and load.poll() is None:
            time.sleep(0.05)
        seen[mark] = rss_bytes(recorder)
    return seen


def soak(program: Path, seconds: float, rate: int, directory: Path) -> dict[str, float]:
    """Record the workload for so long; what came of it."""
    count = round(seconds * rate / THREADS)
    load = subprocess.Popen(
        [program, str(THREADS), str(count), str(rate // THREADS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out = directory / "soak.trace"
    command = [sys.executable, "-m", "faultreplay", "record", "-o", str(out), "-p", str(load.pid), "--probes", "faults"]
    recorder = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert recorder.stderr is not None
        assert load.stdin is not None
        assert load.stdout is not None
        for line in recorder.stderr:
            if line.startswith("recording:"):
                break
            print(line, end="", file=sys.stderr)
        before_ns = cpu_ns(recorder.pid)
        load.stdin.write(b"\n")
        load.stdin.close()
        memory = watch(recorder.pid, load, seconds)
        did = json.loads(load.stdout.read())
        used_ns = cpu_ns(recorder.pid) - before_ns
        said = recorder.stderr.read()
    finally:
        load.kill()
        load.wait()
        if recorder.poll() is None:
            recorder.send_signal(signal.SIGINT)
        recorder.wait()
    if recorder.returncode:
        sys.exit(f"the recorder failed: {said}")
    result = _read(out)
    return {
        "faults": did["faults"],
        "seconds": did["wall_ns"] / 1e9,
        "faults_per_s": did["faults"] / did["wall_ns"] * 1e9,
        "missing": max(did["faults"] - result.pop("page_faults"), 0),
        "cpu_share": used_ns / did["wall_ns"],
        "cpu_ns_per_event": used_ns / max(result["events"], 1),
        **{f"rss_at_{round(100 * mark)}_percent_bytes": value for mark, value in memory.items()},
        **result,
    }


def _read(out: Path) -> dict[str, float]:
    """Open the trace and read it whole, part by part."""
    import polars as pl

    from faultreplay.faulttrace.schema import Kind
    from faultreplay.faulttrace.store import open_trace

    begin = time.perf_counter()
    trace = open_trace(out, allow_incomplete=False)
    opened = time.perf_counter()
    events = pl.scan_parquet(out / "events" / "*.parquet")
    ordered = pl.col("ts_ns").diff().min().alias("step_ns")
    faults = (pl.col("kind") == int(Kind.PAGE_FAULT_USER)).sum().alias("page_faults")
    found = events.select(faults, pl.len().alias("rows"), ordered).collect().row(0, named=True)
    whole = time.perf_counter()
    if found["rows"] != trace.event_rows or found["step_ns"] < 0:
        sys.exit(f"{found['rows']:,} of {trace.event_rows:,} events can be read, in order: {found['step_ns'] >= 0}")
    return {
        "page_faults": found["page_faults"],
        "events": trace.event_rows,
        "lost": trace.meta.losses.total,
        "bytes_per_event": trace.size_bytes / max(trace.event_rows, 1),
        "trace_bytes": trace.size_bytes,
        "open_s": opened - begin,
        "read_s": whole - opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=200_000, help="events a second, of both threads together")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        program = Path(directory) / "pagefaults"
        source = Path(__file__).parent / "csrc" / "pagefaults.c"
        subprocess.run(["cc", "-O1", "-o", program, source, "-lpthread"], check=True)
        result = soak(program, options.minutes * 60, options.rate, Path(directory))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    half, end = (result[f"rss_at_{percent}_percent_bytes"] for percent in (50, 100))
    print(f"{result['faults']:,.0f} faults in {result['seconds']:.1f} s: {result['faults_per_s']:,.0f} a second")
    print(f"lost {result['lost']:,.0f}, missing in the trace {result['missing']:,.0f}, events {result['events']:,.0f}")
    print(f"recorder: {result['cpu_share']:.1%} of a core, {result['cpu_ns_per_event']:.0f} ns an event")
    marks = (f"{result[f'rss_at_{round(100 * m)}_percent_bytes'] / 2**20:,.0f} MiB at {m:.0%}" for m in MARKS)
    print(f"its memory: {', '.join(marks)}")
    print(f"trace: {result['trace_bytes'] / 2**20:,.1f} MiB, {result['bytes_per_event']:.2f} bytes an event, "
          f"opened in {result['open_s']:.2f} s, read whole in {result['read_s']:.2f} s")  # fmt: skip
    grew = options.minutes >= JUDGED_FROM_MINUTES and end > MAX_GROWTH * half
    if result["lost"] or result["missing"] or grew:
        sys.exit(3)


if __name__ == "__main__":
    main()
