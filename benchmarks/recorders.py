"""One workload, several recorders side by side: what each loses, costs and writes.

    python benchmarks/recorders.py [--rate 175000] [--seconds 6] [--repeats 3] [--only NAME,...] [--json FILE]

Two threads take page faults at a given rate. Each recorder keeps two events per fault: its beginning with time, CPU,
thread, address, instruction pointer and error code, and its end, where the kernel counts the page (kmem:rss_stat). Runs
alternate; median, least and greatest are shown. "lost": faults without a beginning; "core": the recorder's CPU time as
a share of one core; "ns/event" and "B/event": of all events kept; "workload": how much more CPU the workload takes;
"start": from the command to attached probes; "memory": the most that was resident. Needs root, perf, trace-cmd,
bpftrace.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

THREADS = 2
BEGIN, END = "exceptions:page_fault_user", "kmem:rss_stat"
PRINTS = {
    BEGIN: 'printf("%llu %d %d %llx %llx %d\\n", nsecs, cpu, tid, args->address, args->ip, args->error_code)',
    END: 'printf("%llu %d %d %d %llx\\n", nsecs, cpu, tid, args->member, args->size)',
}


@dataclass
class Result:
    recorder: str
    faults: int  # that the workload took
    begun: int  # whose beginning was kept
    events: int  # kept
    cpu_ns: int  # of the recorder while the workload ran and until it had written all
    disk_bytes: int
    workload_wall_ns: int
    workload_cpu_ns: int
    start_ns: int  # from its command to its probes being attached
    max_rss_bytes: int


class NotStarted(Exception):
    """A recorder cannot run on this host."""


@dataclass(frozen=True)
class Recorder:
    name: str
    command: Callable[[int, Path], list[str]]
    attached: Callable[[Path], bool]
    kept: Callable[[Path], tuple[int, int]]
    """Beginnings, and all events."""


def _lines(command: list[str]) -> tuple[int, int]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        begun = events = 0
        for line in process.stdout:
            begun += b"page_fault_user" in line
            events += b"page_fault_user" in line or b"rss_stat" in line
        return begun, events


def _printed(path: Path) -> tuple[int, int]:
    with path.open("rb") as lines:
        columns = [line.count(b" ") for line in lines if line[:1].isdigit()]
    return columns.count(5), len(columns)


def _ours(backend: str) -> Recorder:
    def command(pid: int, out: Path) -> list[str]:
        options = ["-o", str(out / "x.trace"), "-p", str(pid), "--backend", backend, "--probes", "faults"]
        return [sys.executable, "-m", "faultreplay", "record", *options]

    def kept(out: Path) -> tuple[int, int]:
        from faultreplay.faulttrace.schema import Kind
        from faultreplay.faulttrace.store import open_trace

        kinds = open_trace(out / "x.trace").events([Kind.PAGE_FAULT_USER, Kind.RSS_STAT], columns=["kind"])["kind"]
        return int((kinds == Kind.PAGE_FAULT_USER).sum()), len(kinds)

    return Recorder(f"faultreplay ({backend})", command, lambda out: b"recording:" in _said(out), kept)


def _said(out: Path) -> bytes:
    return (out / "stderr.txt").read_bytes()


def _aged(out: Path, seconds: float) -> bool:
    return time.time() - out.stat().st_ctime > seconds


RECORDERS = {
    "precompiled": _ours("precompiled"),
    "bcc": _ours("bcc"),
    "ours-bpftrace": _ours("bpftrace"),
    "perf": Recorder(
        "perf record",
        lambda pid, out: [
            "perf", "record", "-q", "-e", BEGIN, "-e", END, "-p", str(pid), "-o", str(out / "perf.data"),
        ],
        lambda out: (out / "perf.data").exists(),
        lambda out: _lines(["perf", "script", "-F", "event", "-i", str(out / "perf.data")]),
    ),
    "trace-cmd": Recorder(
        "trace-cmd record",
        lambda pid, out: [
            "trace-cmd", "record", "-e", BEGIN, "-e", END, "-P", str(pid), "-c", "-o", str(out / "trace.dat"),
        ],
        lambda out: _aged(out, 3),
        lambda out: _lines(["trace-cmd", "report", "-i", str(out / "trace.dat")]),
    ),
    "bpftrace": Recorder(
        "bpftrace, printing",
        lambda pid, out: [
            "bpftrace", "-o", str(out / "out.txt"), "-e",
            " ".join(f"tracepoint:{event} /pid == {pid}/ {{ {words}; }}" for event, words in PRINTS.items()),
        ],
        lambda out: (out / "out.txt").exists() and b"Attaching" in (out / "out.txt").read_bytes(),
        lambda out: _printed(out / "out.txt"),
    ),
}  # fmt: skip


def _tree_cpu_ns(pid: int) -> int:
    """CPU time of a process, its children and those already waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(int(field) for field in fields[11:15]) * 10**9 // os.sysconf("SC_CLK_TCK")
    return own + sum(_tree_cpu_ns(int(child)) for child in children)


def run(program: Path, recorder: Recorder | None, count: int, rate: int) -> Result:
    load = subprocess.Popen(
        [program, str(THREADS), str(count), str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert load.stdin is not None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        out = Path(directory)
        process, before_ns, start_ns = None, 0, 0
        if recorder is not None:
            began_ns = time.monotonic_ns()
            with (out / "stderr.txt").open("wb") as words:
                process = subprocess.Popen(recorder.command(load.pid, out), stdout=subprocess.DEVNULL, stderr=words)
            deadline = time.monotonic() + 60
            while not recorder.attached(out):
                if process.poll() is not None or time.monotonic() > deadline:
                    load.kill()
                    load.wait()
                    said = " ".join(_said(out).decode(errors="replace").split())
                    raise NotStarted(_why(said[-150:]) or "it said nothing within a minute")
                time.sleep(0.02)
            start_ns = time.monotonic_ns() - began_ns
            time.sleep(1.5)
            before_ns = _tree_cpu_ns(process.pid)
        load.stdin.write(b"\n")
        load.stdin.close()
        did = json.loads(load.stdout.read())  # type: ignore[union-attr]
        rss = _peak_bytes(process.pid) if process is not None else 0
        load.wait()
        cpu_ns = begun = events = 0
        if recorder is not None and process is not None:
            cpu_ns = _finish(process) - before_ns
            begun, events = recorder.kept(out)
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    name = recorder.name if recorder else "none"
    begun = min(begun, did["faults"])
    return Result(name, did["faults"], begun, events, cpu_ns, disk, did["wall_ns"], did["cpu_ns"], start_ns, rss)


def _peak_bytes(pid: int) -> int:
    """The most that was resident of a process and its children; wait4 would begin with what this process has."""
    try:
        told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(told.get("VmHWM", "0 kB").split()[0]) * 1024 + sum(_peak_bytes(int(child)) for child in children)


def _finish(process: subprocess.Popen[bytes]) -> int:
    """End a recorder (ours and perf notice the target's end themselves); its CPU time with that of its children."""
    deadline = time.monotonic() + 1
    pid, status, usage = 0, 0, None
    while not pid and time.monotonic() < deadline:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0.01)
    if not pid:
        os.kill(process.pid, signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert usage is not None
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


COLUMNS = ("lost", "core", "ns/event", "B/event", "workload", "faults/s", "start", "memory")


def show(results: dict[str, list[Result]], refused: dict[str, str], rate: int) -> None:
    """A line a recorder: the median of its runs; with several runs a second line with the least and the greatest."""
    base = statistics.median(result.workload_cpu_ns / result.faults for result in results["none"])
    print(f"{THREADS} threads, {rate * THREADS:,} faults/s asked for" if rate else f"{THREADS} threads, unpaced")
    print(f"{'':<22}" + "".join(f"{name:>9}" for name in COLUMNS))
    for runs in results.values():
        columns = list(zip(*(_figures(run, base) for run in runs), strict=True))
        recorded = runs[0].recorder != "none"
        for what, of in (("", statistics.median), ("  least", min), ("  greatest", max)):
            if what and len(runs) == 1:
                continue
            cells = [form.format(of(values)) for form, values in zip(_FORMS, columns, strict=True)]
            cells = cells if recorded else ["", "", "", "", f"{base:.0f} ns" if not what else "", cells[5]]
            print(f"{what or runs[0].recorder:<22}" + "".join(f"{cell:>9}" for cell in cells))
    for name, reason in refused.items():
        print(f"{RECORDERS[name].name:<22}  did not run: {reason}")


_FORMS = ("{:.3%}", "{:.1%}", "{:.0f}", "{:.1f}", "{:+.0%}", "{:,.0f}", "{:.2f} s", "{:.0f} M")


def _figures(run: Result, base: float) -> tuple[float, ...]:
    events = max(run.events, 1)
    return (
        1 - run.begun / run.faults,
        run.cpu_ns / run.workload_wall_ns,
        run.cpu_ns / events,
        run.disk_bytes / events,
        run.workload_cpu_ns / run.faults / base - 1,
        run.faults / run.workload_wall_ns * 1e9,
        run.start_ns / 1e9,
        run.max_rss_bytes / 2**20,
    )


def _why(said: str) -> str:
    """A recorder's own last words, and for ftrace what the host says to the write they stand for."""
    switch = Path("/proc/sys/kernel/ftrace_enabled")
    if "ftrace" in said and switch.exists():
        try:
            switch.write_text(switch.read_text())
        except OSError as error:
            return f"{said} (writing {switch}: {error.strerror})"
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=175_000, help="faults a second of each thread; 0: unpaced")
    parser.add_argument("--seconds", type=float, default=6.0, help="at this rate (unpaced: of 500,000 faults a second)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="precompiled,bcc,ours-bpftrace,perf,trace-cmd,bpftrace")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name in RECORDERS]
    refused: dict[str, str] = {}
    for tool in ("perf", "trace-cmd", "bpftrace"):
        if tool in names and shutil.which(tool) is None:
            names.remove(tool)
            refused[tool] = "it is not installed"
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "pagefaults"
        source = Path(__file__).parent / "csrc" / "pagefaults.c"
        subprocess.run(["cc", "-O1", "-o", program, source, "-lpthread"], check=True)
        count = round(options.seconds * (options.rate or 500_000))
        results: dict[str, list[Result]] = {}
        for _ in range(options.repeats):
            for name in ["none", *names]:
                try:
                    results.setdefault(name, []).append(run(program, RECORDERS.get(name), count, options.rate))
                except NotStarted as error:
                    refused[name] = str(error)
                    names = [other for other in names if other != name]
                    results.pop(name, None)
    show(results, refused, options.rate)
    if options.json:
        rows: list[dict[str, object]] = [asdict(result) for runs in results.values() for result in runs]
        rows += [{"recorder": RECORDERS[name].name, "did_not_run": reason} for name, reason in refused.items()]
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
