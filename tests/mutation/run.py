"""`make mutate`: small faults put into a module, one at a time; do the tests nearest to it notice?

    python tests/mutation/run.py [faulttrace/stitch/markers.py ...] [--sample 400] [--lines 160-170] [--seed 1]

Of all modules a stratified sample is run: each module's share of it is its share of all mutants, drawn by --seed. What
came of each mutant goes to --results at once; a run that was cut short goes on from there while module and tests are
the same. --again FILE runs only those mutants that survived in FILE.

`equivalent.toml` lists mutants that no test can notice, each with the reason. One of them that survives is counted as
explained, never as noticed; one that is noticed makes its reason wrong, and the run ends with 1.

A driver of our own, of two hundred lines, as the known tools do not fit: mutmut puts a trampoline in the place of each
function, which numba cannot compile, and copies a tree whose packages are links; cosmic-ray starts the tests anew for
each mutant, and starting them (numba, polars, pyarrow) takes longer than running those that matter. Here a process that
has imported the libraries forks for each mutant; the mutant is compiled in memory, and no file is ever changed. The
compiled loop runs uncompiled (NUMBA_DISABLE_JIT=1). A mutant is run with those tests alone that reach its statement
(`reach.py`): what a cache in the product keeps from one test to the next counts for the first of them only.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from mutants import Mutant, mutants, mutated
from reach import Reach, measured, span_of

ROOT: Final = Path(__file__).parent.parent.parent
LEAST_SECONDS: Final = 20
"""of processor time, before a mutant counts as one that does not end"""
WAIT: Final = 20
"""seconds of the clock for each of the processor"""
_LANGUAGE: Final = [
    "tests/test_replay_pinned.py",
    "tests/test_language_limits.py",
    "tests/test_toml_checks.py", "tests/test_mechanism_language.py", "tests/test_replay_costs.py",
    "tests/test_engine_simpy.py", "tests/test_mechanism_models.py", "tests/test_host_costs.py",
    "tests/test_mechanism_extends.py", "tests/test_contention.py", "tests/test_engine_books.py",
    "tests/test_replay_cpus.py",
]  # fmt: skip
_WORKLOAD: Final = [
    "tests/test_replay_pinned.py",
    "tests/test_workload_edges.py", "tests/test_replay_workload.py", "tests/test_synth.py",
    "tests/test_replay_windows.py", "tests/test_compare_replay.py",
]  # fmt: skip
_LOOP: Final = [
    "tests/test_replay_pinned.py", "tests/test_engine_loop.py", "tests/test_engine_simpy.py",
    "tests/test_replay_windows.py",
]  # fmt: skip
TESTS: Final[dict[str, list[str]]] = {
    "faulttrace/stitch": [
        "tests/test_stitch_pinned.py", "tests/test_stitch.py", "tests/test_stitch_edges.py",
        "tests/test_stitch_zaps.py", "tests/test_exits.py",
        "tests/test_stitch_properties.py", "tests/test_stitch_hardware.py", "tests/test_stitch_stretches.py",
    ],
    "replay/engine": [
        "tests/test_replay_pinned.py", "tests/test_engine_books.py", "tests/test_engine_time.py",
        "tests/test_replay_windows.py", "tests/test_storage.py",
    ],
    **{f"replay/engine/{name}.py": _LOOP for name in (
        "kernel", "kernel_events", "kernel_joins", "layout", "machine", "opcodes", "threads", "tournament",
    )},
    **{f"replay/engine/{name}.py": ["tests/test_replay_pinned.py", "tests/test_storage.py", "tests/test_restore_cli.py"]
       for name in ("cast", "file_map", "prefetch", "push", "restore", "restored", "storage", "streams")},
    **{f"replay/engine/{name}.py": ["tests/test_explain.py"] for name in ("follow", "steps")},
    "replay/engine/journal.py": ["tests/test_engine_journal.py", "tests/test_explain.py"],
    "replay/engine/cpus.py": [
        "tests/test_replay_pinned.py", "tests/test_engine_loop.py", "tests/test_replay_cpus.py",
        "tests/test_engine_cpus_model.py",
    ],
    "replay/engine/draws.py": ["tests/test_draw_bits.py", "tests/test_replay_pinned.py"],
    "replay/engine/jit.py": ["tests/test_replay_jit.py"],
    "replay/engine/checks.py": ["tests/test_engine_books.py", "tests/test_engine_drawn.py"],
    "replay/language": _LANGUAGE,
    "replay/language/inherit.py": ["tests/test_mechanism_extends.py", *_LANGUAGE],
    "replay/language/expressions.py": ["tests/test_mechanism_extends.py", *_LANGUAGE],
    "replay/language/contention.py": ["tests/test_contention.py", *_LANGUAGE],
    **{f"replay/language/{name}.py": ["tests/test_storage.py", *_LANGUAGE]
       for name in ("storage", "streams", "tracking")},
    **{f"replay/workload/{name}.py": ["tests/test_working_sets.py", *_WORKLOAD]
       for name in ("working_set", "synth_restore")},
    "replay/workload/reading.py": [
        "tests/test_replay_pinned.py", "tests/test_compare_alike.py", "tests/test_validate.py",
        "tests/test_compare.py",
    ],
    "replay/workload": _WORKLOAD,
}  # fmt: skip
"""module or folder -> the tests nearest to it, the quickest first"""
_COMPILED: Final = ("jit", "part", "inline")
"""decorators"""
_FOLDED_IN: Final = ("replay/engine/layout.py", "replay/engine/opcodes.py")
"""constants that compiled code has in it: numba's cache would keep them as they were"""
EQUIVALENT: Final = Path(__file__).parent / "equivalent.toml"
SLOW: Final = "not enough_cpus and not repairman and not any_cpus_and_pinning"
"""left out where the loop runs uncompiled"""


LIBRARIES: Final = ("msgspec", "numba", "numpy", "polars", "pyarrow.parquet", "simpy", "rich.table")
"""imported once, before the forks"""


class NoSuchMutantError(Exception):
    """An entry of `equivalent.toml` that names no mutant of today's code, or several."""


def explained(module: str, source: str, file: Path = EQUIVALENT) -> dict[str, str]:
    """Key of each mutant of the module that cannot be noticed -> why.

    An entry names the package, the line of code and the change; `nth` where a module has that more than once, from 1.

    Raises:
        NoSuchMutantError: an entry fits several mutants.
    """
    lines, every = source.splitlines(), mutants(source)
    found: dict[str, str] = {}
    for entry in tomllib.loads(file.read_text())["mutant"]:
        if not module.startswith(entry["in"] + "/"):
            continue
        same = [m for m in every if m.words == entry["change"] and lines[m.line - 1].strip() == entry["code"]]
        nth = entry.get("nth", 0)
        if not same:  # in another module of the package, as tests/test_mutation.py sees to
            continue
        if len(same) < nth or (len(same) > 1 and not nth):
            raise NoSuchMutantError(f"{module}: {len(same)} mutants are `{entry['code']}`: {entry['change']}")
        found[_key(same[max(nth, 1) - 1])] = entry["why"]
    return found


def _key(mutant: Mutant) -> str:
    return f"{mutant.number}.{mutant.variant}"


def compiled(module: str) -> bool:
    """Whether the module is of the compiled loop: then it runs uncompiled here."""
    text = (ROOT / module).read_text()
    marked = module.startswith("replay/engine/") and any(f"\n@{name}\n" in text for name in _COMPILED)
    return marked or module in _FOLDED_IN


def uncompiled(tree: ast.Module) -> None:
    """Leave the decorators of compiled functions out.

    numba's cache tells functions apart by bytecode without its constants: it would take the one without the fault.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = [
                d for d in node.decorator_list if not (isinstance(d, ast.Name) and d.id in _COMPILED)
            ]


def tests_of(module: str) -> list[str]:
    """The tests nearest to a module."""
    best = max((key for key in TESTS if module.startswith(key)), key=len)
    return [test for test in TESTS[best] if (ROOT / test).exists()]


def modules() -> list[str]:
    """What is mutated by default."""
    folders = ("faulttrace/stitch", "replay/engine", "replay/language", "replay/workload")
    paths = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if path.stat().st_size > 300]


def run_tests(module: str, run: Callable[[], int], limit_s: int) -> str:
    """What came of one run of tests in a process of its own: killed, survived, timeout.

    `limit_s` is processor time: a busy host makes no timeout. By the clock it is WAIT times that.
    """
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
            os._exit(run())
        except BaseException as error:  # whatever a mutant does, the fork ends here
            sys.stderr.write(f"{module}: {error!r}\n")
            sys.stderr.flush()
            os._exit(4)
    ends = time.monotonic() + WAIT * limit_s
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            late = code in (-signal.SIGXCPU, -signal.SIGKILL)
            return "timeout" if late else "killed" if code else "survived"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "timeout"


class _Quick:
    """A plugin of pytest: properties draw the same examples for each mutant, and one that fails is not made smaller."""

    def pytest_configure(self) -> None:
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutate", derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutate")


def _words(module: str) -> list[str]:
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not live and not lab"]
    return [*words, "-k", SLOW] if compiled(module) else words


def _silent() -> None:
    null = os.open(os.environ.get("MUTATE_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _child(module: str, mutant: Mutant, source: str, files: list[list[str]]) -> int:
    import pytest

    _silent()
    path = os.path.realpath(ROOT / module)
    tree = mutated(source, mutant)
    if not compiled(module):
        uncompiled(tree)
    code = compile(tree, path, "exec")
    kept = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        return code if os.path.realpath(self.path) == path else kept(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    for tests in files:  # file by file: the first often notices, and the others need not be collected
        if ended := int(pytest.main([*_words(module), *tests], plugins=[_Quick()])):
            return ended
    return 0


def _looked(module: str, into: Path) -> int:
    _silent()
    return measured(ROOT, _words(module), tests_of(module), into, [_Quick()])


def one_module(module: str, args: argparse.Namespace) -> dict[str, Any]:
    """A share of a module's mutants; needs a process in which the module is not imported."""
    source = (ROOT / module).read_text()
    every = mutants(source)
    equivalent = explained(module, source)
    chosen = _chosen(module, every, source, args)
    state = _state(module)
    kept = _kept(args.results, module, state)
    reach: Reach | None = None
    counts: collections.Counter[str] = collections.Counter()
    told: dict[str, list[str]] = {"survivors": [], "noticed_after_all": []}
    for mutant in chosen:
        key = _key(mutant)
        if key not in kept:
            if time.time() > args.deadline:
                break
            if reach is None:
                for library in LIBRARIES:
                    importlib.import_module(library)
                reach = _reach(module, args.results)
                if reach is None:
                    return {"module": module, "error": "the tests fail without a mutant", "all": len(every)}
            files = reach.tests(module, span_of(source, mutant.line))
            limit_s = LEAST_SECONDS + round(3 * sum(reach.seconds[test] for tests in files for test in tests))
            run = functools.partial(_child, module, mutant, source, files)
            kept[key] = run_tests(module, run, limit_s) if files else "survived"
            row = {"module": module, "state": state, "source": _digest(source), "mutant": key, "outcome": kept[key]}
            _keep(args.results, row)
        outcome = "explained" if kept[key] == "survived" and key in equivalent else kept[key]
        counts[outcome] += 1
        line = source.splitlines()[mutant.line - 1].strip()[:90]
        words = f"{module}:{mutant.line}:{mutant.column}: {mutant.words}: `{line}`"
        if outcome == "survived":
            told["survivors"].append(words)
            print(words, file=sys.stderr, flush=True)
        elif outcome != "explained" and key in equivalent:
            told["noticed_after_all"].append(words)
    return {"module": module, "all": len(every), "counts": counts, **told}


def _reach(module: str, results: Path | None) -> Reach | None:
    """What the tests reach without a mutant, kept beside the results for modules with the same; None: they fail."""
    with tempfile.TemporaryDirectory() as folder:
        kept = (results.parent if results else Path(folder)) / f".reach-{_tree_state(module)}.json"
        if not kept.exists() and run_tests(module, functools.partial(_looked, module, kept), 1800) != "survived":
            kept.unlink(missing_ok=True)
            return None
        return Reach.read(kept)


def _tree_state(module: str) -> str:
    """A digest of all code, and of which tests are run how."""
    data = hashlib.sha256(f"{compiled(module)} {tests_of(module)}".encode())
    for path in sorted(path for name in ("faulttrace", "replay", "tests") for path in (ROOT / name).rglob("*.py")):
        data.update(path.read_bytes())
    return data.hexdigest()[:16]


def _chosen(module: str, every: list[Mutant], source: str, args: argparse.Namespace) -> list[Mutant]:
    """Those of some lines, those that survived before, or a share."""
    if args.lines:
        low, _, high = args.lines.partition("-")
        return [m for m in every if int(low) <= m.line <= int(high or low)]
    if args.again:
        rows = _rows(args.again)
        left = {r["mutant"] for r in rows if r["outcome"] == "survived" and r.get("source") == _digest(source)}
        return [m for m in every if _key(m) in left]
    drawn = random.Random(f"{args.seed} {module}").sample(every, min(args.sample, len(every)))
    return sorted(drawn, key=lambda mutant: mutant.line)


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _state(module: str) -> str:
    """A digest of the module and of its tests: an outcome holds as long as they are the same."""
    data = hashlib.sha256()
    for path in (module, *tests_of(module)):
        data.update((ROOT / path).read_bytes())
    return data.hexdigest()[:16]


def _kept(results: Path | None, module: str, state: str) -> dict[str, str]:
    rows = _rows(results) if results is not None and results.exists() else []
    return {row["mutant"]: row["outcome"] for row in rows if (row["module"], row["state"]) == (module, state)}


def _rows(results: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def _keep(results: Path | None, row: dict[str, str]) -> None:
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    share, scale = hits / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(middle - half, 0.0), min(middle + half, 1.0)


def shares(sizes: dict[str, int], sample: int) -> dict[str, int]:
    """How many mutants of each module are run: in proportion, at least one each, all where `sample` is 0."""
    whole = sum(sizes.values())
    return {module: size if not sample else min(size, max(round(size * sample / whole), 1))
            for module, size in sizes.items()}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The counts as Markdown."""
    lines = ["| module | mutants | run | killed | timeout | explained | survived |", "|---|" + "---:|" * 6]
    whole: collections.Counter[str] = collections.Counter()
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['module']} | {row['all']} | {row['error']} | | | | |")
            continue
        counts = collections.Counter(row["counts"])
        whole.update(counts, all=row["all"])
        lines.append(_line(row["module"], row["all"], counts))
    found = whole.pop("all", 0)
    lines.append(_line("all", found, whole))
    ran, noticed = whole.total(), whole["killed"] + whole["timeout"]
    low, high = wilson(noticed, ran)
    could = ran - whole["explained"]
    lines.append(f"\n{ran} of {found} mutants run ({ran / max(found, 1):.0%}); {noticed / max(ran, 1):.1%} noticed "
                 f"(95 % confidence: {low:.1%} to {high:.1%} of all). {whole['explained']} more change nothing that "
                 f"can be noticed ({EQUIVALENT.name}): {noticed / max(could, 1):.1%} of the others.")  # fmt: skip
    return "\n".join(lines)


def _line(name: str, every: int, counts: collections.Counter[str]) -> str:
    cells = (every, counts.total(), *(counts[name] for name in ("killed", "timeout", "explained", "survived")))
    return f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |"


def main() -> int:
    """The parent, which starts a process a module; or with --child one module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="default: faulttrace/stitch and replay")
    parser.add_argument("--sample", type=int, default=400, help="mutants of all modules together; 0: each one")
    parser.add_argument("--results", type=Path, help="keep what came of each mutant here, and go on from there")
    parser.add_argument("--again", type=Path, metavar="RESULTS", help="only those that survived there")
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
    chosen = args.modules or modules()
    if args.again:
        left = {row["module"] for row in _rows(args.again) if row["outcome"] == "survived"}
        chosen = [module for module in chosen if module in left]
    sample = shares({module: len(mutants((ROOT / module).read_text())) for module in chosen}, args.sample)
    for module in chosen:
        if time.time() > deadline:
            break
        words = [module, "--child", "--sample", str(sample[module]), "--seed", str(args.seed)]
        words += ["--deadline", str(deadline)]
        words += ["--results", str(args.results.absolute())] if args.results else []
        words += ["--lines", args.lines] if args.lines else []
        words += ["--again", str(args.again.absolute())] if args.again else []
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if compiled(module):
            env["NUMBA_DISABLE_JIT"] = "1"
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{module}: {rows[-1].get('counts') or rows[-1].get('error')}", file=sys.stderr, flush=True)
    print(table(rows))
    survivors = [line for row in rows for line in row.get("survivors", ())]
    wrong = [line for row in rows for line in row.get("noticed_after_all", ())]
    print("\n".join(["", "Survivors:", *(f"- {line}" for line in survivors)]))
    if wrong:
        print("\n".join(["", f"Noticed, though {EQUIVALENT.name} says that nobody can:", *(f"- {x}" for x in wrong)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
