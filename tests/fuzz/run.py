"""`make fuzz`: nearly right inputs through every reader and the command line; a table of what came of them.

    python tests/fuzz/run.py --inputs 10000 [--seconds 300] [--seed 1] [TARGET...]

Each target runs in a process of its own with bounded memory, which this one watches: an input that takes more than
--hang seconds of processor time, or ten times that by the clock (a busy host is not a hang), is a hang, and the target
goes on with another seed. Inputs that end badly are kept in --keep. Exit code 1 if any input was silent, a traceback or
a hang.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE))

_MEMORY_BYTES: Final = 8 << 30
_GUIDED: Final = ("atheris",)
_START_SECONDS: Final = 900.0
"""by the clock, to import everything and compile the loop on a busy host"""
_CLOCK: Final = 10
"""seconds of the clock for each of the processor, before a wait counts as a hang"""
_COLUMNS: Final = ("inputs", "refused", "accepted", "noted", "silent", "traceback", "hang")


def child(name: str, inputs: int, seed: int, *, deadline: float, status: Path, keep: Path) -> None:
    """Run one target; `status` holds what came so far, and changes with every input."""
    import hypothesis
    import pytest
    import targets
    from hypothesis import strategies as st

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "120")
        bench = targets.Bench(Path(folder))
        targets.nothing_begins(monkeypatch)

        def tell(now: str) -> None:
            part = status.with_suffix(".part")
            part.write_text(json.dumps({"counts": counts, "now": now, "at": time.time(), "cpu": time.process_time()}))
            part.replace(status)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.data())
        def one(data: Any) -> None:
            if time.time() > deadline or counts.total() >= inputs:
                return
            tell("drawing")
            outcome, why = targets.TARGETS[name](data, bench)
            counts[outcome] += 1
            tell("done")
            if outcome in ("silent", "traceback"):
                number = counts["silent"] + counts["traceback"]
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{seed}-{number}.txt").write_text(f"{outcome}: {why}\n{data.conjecture_data.choices}\n")
                print(f"{name} seed {seed}: {outcome}: {why[:300]!r}", file=sys.stderr, flush=True)

        try:
            one()
        except hypothesis.errors.Flaky:  # the deadline cut an input short that was drawn whole before
            if time.time() < deadline:
                raise
        tell("ended")


def watched(name: str, inputs: int, args: argparse.Namespace, deadline: float) -> collections.Counter[str]:
    """Run one target to its end in children; a child whose input hangs is ended and another seed goes on."""
    total: collections.Counter[str] = collections.Counter()
    seed = args.seed
    while total.total() < inputs and time.time() < deadline:
        with tempfile.TemporaryDirectory() as folder:
            status = Path(folder) / "status.json"
            words = [
                "--child",
                name,
                "--inputs",
                str(inputs - total.total()),
                "--seed",
                str(seed),
                "--keep",
                str(args.keep),
            ]
            words += ["--status", str(status), "--deadline", str(deadline)]
            running = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.DEVNULL)
            told: dict[str, Any] = {"counts": {}, "now": "starting", "at": time.time() + _START_SECONDS, "cpu": 0.0}
            while running.poll() is None:
                time.sleep(0.2)
                if status.exists():
                    told = json.loads(status.read_text())
                used = _cpu_seconds(running.pid) - told["cpu"] if told["now"] != "starting" else 0.0
                if used > args.hang or time.time() - told["at"] > _CLOCK * args.hang:
                    running.kill()
                    running.wait()
                    total["hang"] += told["now"] == "drawing"
                    print(f"{name} seed {seed}: an input took more than {args.hang} s", file=sys.stderr, flush=True)
            if status.exists():
                told = json.loads(status.read_text())
            total.update(told["counts"])
            if running.returncode and running.returncode > 0:
                total["traceback"] += 1
                print(f"{name} seed {seed}: the process ended with {running.returncode}", file=sys.stderr)
            elif running.returncode and told["now"] == "drawing" and running.returncode != -9:
                total["traceback"] += 1
                print(f"{name} seed {seed}: the process died of signal {-running.returncode}", file=sys.stderr)
            elif not told["counts"]:
                break
        seed += 1000
    return total


def _cpu_seconds(pid: int) -> float:
    """Of a process, all its threads; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def table(found: dict[str, collections.Counter[str]]) -> str:
    """The counts as Markdown."""
    rows = ["| target | " + " | ".join(_COLUMNS) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    whole: collections.Counter[str] = collections.Counter()
    for name, counts in found.items():
        whole.update(counts)
        rows.append(_row(name, counts))
    return "\n".join([*rows, _row("all", whole)])


def _row(name: str, counts: collections.Counter[str]) -> str:
    return f"| {name} | " + " | ".join(f"{counts.total() if c == 'inputs' else counts[c]:,}" for c in _COLUMNS) + " |"


def main() -> int:
    """The parent, or with --child one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--inputs", type=int, default=2000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=1800.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hang", type=float, default=30.0, help="seconds of processor time after which an input hangs")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "faultreplay-fuzz")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--status", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.inputs, args.seed, deadline=args.deadline, status=args.status, keep=args.keep)
        return 0
    import targets

    names = args.targets or [*targets.TARGETS, *_GUIDED]
    begun = time.time()
    found = {}
    for number, name in enumerate(names):
        left = begun + args.seconds - time.time()
        deadline = time.time() + max(left, 0) / (len(names) - number)
        if name in _GUIDED:
            import guided

            found[name] = guided.run(args.inputs // len(names), max(left, 0) / (len(names) - number), args.keep)
        else:
            found[name] = watched(name, args.inputs // len(names), args, deadline)
        print(f"{name}: {dict(found[name])} after {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
    print(table(found))
    bad = sum(counts[key] for counts in found.values() for key in ("silent", "traceback", "hang"))
    return int(bad > 0)


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    sys.exit(main())
