"""`make mutate`: small faults put into a module, one at a time; do the tests nearest to it notice?

    python tests/mutation/run.py [faulttrace/stitch/markers.py ...] [--share 0.1] [--lines 160-170] [--seed 1]

A driver of our own, of two hundred lines, as the known tools do not fit: mutmut puts a trampoline in the place of each
function, which numba cannot compile, and copies a tree whose packages are links; cosmic-ray starts the tests anew for
each mutant, and starting them (numba, polars, pyarrow) takes longer than running those that matter. Here a process that
has imported the libraries forks for each mutant; the mutant is compiled in memory, and no file is ever changed. The
compiled loop runs uncompiled (NUMBA_DISABLE_JIT=1).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.machinery
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import CodeType
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from mutants import Mutant, mutants, mutated

ROOT: Final = Path(__file__).parent.parent.parent
LEAST_SECONDS: Final = 20.0
LOOP: Final = ("replay/engine/kernel.py", "replay/engine/cpus.py", "replay/engine/tournament.py")
"""run uncompiled"""
_LANGUAGE: Final = [
    "tests/test_toml_checks.py", "tests/test_mechanism_language.py", "tests/test_replay_costs.py",
    "tests/test_engine_simpy.py", "tests/test_mechanism_models.py", "tests/test_host_costs.py",
]  # fmt: skip
_WORKLOAD: Final = ["tests/test_replay_workload.py", "tests/test_synth.py", "tests/test_replay_windows.py"]
TESTS: Final[dict[str, list[str]]] = {
    "faulttrace/stitch": [
        "tests/test_stitch_edges.py", "tests/test_stitch.py", "tests/test_stitch_zaps.py",
        "tests/test_stitch_properties.py",
    ],
    "replay/engine": [
        "tests/test_engine_simpy.py", "tests/test_engine_books.py", "tests/test_replay_windows.py",
        "tests/test_replay_cpus.py",
    ],
    "replay/engine/kernel.py": [
        "tests/test_engine_loop.py", "tests/test_engine_simpy.py", "tests/test_replay_windows.py",
    ],
    "replay/engine/cpus.py": ["tests/test_engine_loop.py", "tests/test_replay_cpus.py"],
    "replay/engine/tournament.py": ["tests/test_engine_simpy.py"],
    "replay/language": _LANGUAGE,
    "replay/workload": _WORKLOAD,
}  # fmt: skip
"""module or folder -> the tests nearest to it, the quickest first"""
SLOW: Final = "not enough_cpus and not repairman and not any_cpus_and_pinning"
"""left out where the loop runs uncompiled"""


def tests_of(module: str) -> list[str]:
    """The tests nearest to a module."""
    best = max((key for key in TESTS if module.startswith(key)), key=len)
    return [test for test in TESTS[best] if (ROOT / test).exists()]


def modules() -> list[str]:
    """What is mutated by default."""
    folders = ("faulttrace/stitch", "replay/engine", "replay/language", "replay/workload")
    paths = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if path.stat().st_size > 300]


def run_tests(module: str, mutant: Mutant | None, source: str, limit_s: float) -> str:
    """What came of one mutant in a process of its own: killed, survived or timeout."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        try:
            os._exit(_child(module, mutant, source))
        except BaseException as error:  # whatever a mutant does, the fork ends here
            sys.stderr.write(f"{module}: {error!r}\n")
            sys.stderr.flush()
            os._exit(4)
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "timeout"


def _child(module: str, mutant: Mutant | None, source: str) -> int:
    import pytest

    null = os.open(os.environ.get("MUTATE_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 1)
    os.dup2(null, 2)
    path = os.path.realpath(ROOT / module)
    if mutant is not None:
        code = compile(mutated(source, mutant), path, "exec")
        kept = importlib.machinery.SourceFileLoader.get_code

        def get_code(self: Any, fullname: str) -> CodeType | None:
            return code if os.path.realpath(self.path) == path else kept(self, fullname)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    os.environ["CI"] = "1"  # the same examples for each mutant
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not live and not lab"]
    if module in LOOP:
        words += ["-k", SLOW]
    return int(pytest.main([*words, *tests_of(module)]))


def one_module(module: str, args: argparse.Namespace) -> dict[str, Any]:
    """A share of a module's mutants; needs a process in which the module is not imported."""
    import msgspec  # noqa: F401 - imported once, before the forks
    import numba  # noqa: F401
    import numpy as np  # noqa: F401

    source = (ROOT / module).read_text()
    every = mutants(source)
    if args.lines:
        low, _, high = args.lines.partition("-")
        chosen = [m for m in every if int(low) <= m.line <= int(high or low)]
    else:
        count = max(round(len(every) * args.share), 1)
        chosen = sorted(
            random.Random(f"{args.seed} {module}").sample(every, min(count, len(every))), key=lambda m: m.line
        )
    begun = time.monotonic()
    baseline = run_tests(module, None, source, 1800)
    took = time.monotonic() - begun
    if baseline != "survived":
        return {"module": module, "error": f"the tests {baseline} without a mutant", "all": len(every)}
    counts: collections.Counter[str] = collections.Counter()
    survivors = []
    for mutant in chosen:
        if time.time() > args.deadline:
            break
        outcome = run_tests(module, mutant, source, max(LEAST_SECONDS, 4 * took))
        counts[outcome] += 1
        if outcome == "survived":
            survivors.append(
                f"{module}:{mutant.line}: {mutant.words}: `{source.splitlines()[mutant.line - 1].strip()[:90]}`"
            )
            print(survivors[-1], file=sys.stderr, flush=True)
    return {"module": module, "all": len(every), "baseline_s": round(took, 1), "counts": counts, "survivors": survivors}


def table(rows: list[dict[str, Any]]) -> str:
    """The counts as Markdown."""
    lines = ["| module | mutants | run | killed | timeout | survived |", "|---|---:|---:|---:|---:|---:|"]
    whole: collections.Counter[str] = collections.Counter()
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['module']} | {row['all']} | {row['error']} | | | |")
            continue
        counts = collections.Counter(row["counts"])
        whole.update(counts, all=row["all"])
        lines.append(_line(row["module"], row["all"], counts))
    found = whole.pop("all", 0)
    lines.append(_line("all", found, whole))
    ran = whole.total()
    lines.append(f"\n{ran} of {found} mutants run ({ran / max(found, 1):.0%}); "
                 f"{(whole['killed'] + whole['timeout']) / max(ran, 1):.1%} noticed.")  # fmt: skip
    return "\n".join(lines)


def _line(name: str, every: int, counts: collections.Counter[str]) -> str:
    cells = (every, counts.total(), counts["killed"], counts["timeout"], counts["survived"])
    return f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |"


def main() -> int:
    """The parent, which starts a process a module; or with --child one module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="default: faulttrace/stitch and replay")
    parser.add_argument("--share", type=float, default=0.1, help="of each module's mutants, chosen by --seed")
    parser.add_argument("--lines", help="only those of these lines, as 160 or 160-170")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=7200.0, help="stop after so long")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_module(args.modules[0], args)))
        return 0
    rows = []
    deadline = time.time() + args.seconds
    for module in args.modules or modules():
        if time.time() > deadline:
            break
        words = [module, "--child", "--share", str(args.share), "--seed", str(args.seed), "--deadline", str(deadline)]
        words += ["--lines", args.lines] if args.lines else []
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if module in LOOP:
            env["NUMBA_DISABLE_JIT"] = "1"
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{module}: {rows[-1].get('counts') or rows[-1].get('error')}", file=sys.stderr, flush=True)
    print(table(rows))
    survivors = [line for row in rows for line in row.get("survivors", ())]
    print("\n".join(["", "Survivors:", *(f"- {line}" for line in survivors)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
