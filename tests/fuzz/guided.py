"""Coverage-guided inputs: atheris drives bytes through the readers of text, whose code it watches.

    python tests/fuzz/guided.py TARGET RUNS SECONDS STATUS

Where atheris has no wheel (see pyproject.toml) `run` says so and counts nothing.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
READERS: Final = ("mechanism", "costs", "meta", "perf-script", "trace-cmd", "bpftrace", "perf-json")


def run(inputs: int, seconds: float, keep: Path) -> collections.Counter[str]:
    """All readers, one after the other, each in a process of its own."""
    total: collections.Counter[str] = collections.Counter()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: nothing was guided by coverage", file=sys.stderr)
        return total
    for name in READERS:
        with tempfile.TemporaryDirectory() as folder:
            status = Path(folder) / "status.json"
            words = [name, str(inputs // len(READERS)), str(max(int(seconds / len(READERS)), 1)), str(status)]
            limit = 60 + seconds / len(READERS) * 2
            try:
                done = subprocess.run(
                    [sys.executable, __file__, *words],
                    capture_output=True,
                    text=True,
                    timeout=limit,
                    cwd=folder,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                total["hang"] += 1
                continue
            if status.exists():
                total.update(json.loads(status.read_text()))
            if done.returncode:
                kind = "hang" if "timeout after" in done.stderr else "traceback"
                total[kind] += 1
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"atheris-{name}.txt").write_text(done.stderr)
                for crash in Path(folder).glob("*-*"):
                    (keep / f"atheris-{name}-{crash.name}").write_bytes(crash.read_bytes())
                print(f"atheris {name}: {kind}\n{done.stderr[-600:]}", file=sys.stderr)
    return total


def child(name: str, runs: int, seconds: int, status: Path) -> None:
    """One reader. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["faultreplay.replay.language", "faultreplay.collect.importers"]):
        read, seeds = _reader(name)
    from faultreplay.faulttrace.errors import FaultreplayError

    corpus = Path("corpus")
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    counts = {"refused": 0, "accepted": 0}

    def one(raw: bytes) -> None:
        try:
            read(raw)
            counts["accepted"] += 1
        except FaultreplayError as error:
            assert "\n" not in str(error), "an error of several lines"
            counts["refused"] += 1
        if sum(counts.values()) % 50 == 0:
            status.write_text(json.dumps(counts))

    options = [
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        "-timeout=30",
        "-rss_limit_mb=8192",
        "-max_len=16384",
        "-seed=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _reader(name: str) -> tuple[Callable[[bytes], object], list[bytes]]:
    sys.path.insert(0, str(HERE))
    import targets

    path = Path("input.toml")

    def written(read: Callable[[], object]) -> Callable[[bytes], object]:
        def through(raw: bytes) -> object:
            path.write_bytes(raw)
            return read()

        return through

    if name == "mechanism":
        from faultreplay.replay.language.checks import check_mechanism
        from faultreplay.replay.language.mechanism import MECHANISMS_DIR, load_mechanism

        seeds = [p.read_bytes() for p in [*sorted(MECHANISMS_DIR.glob("*.toml")), *targets.CORPUS.glob("mechanism-*")]]
        return written(lambda: check_mechanism(load_mechanism(path))), seeds
    if name == "costs":
        from faultreplay.replay.language.costs import COSTS_DIR, load_costs

        seeds = [p.read_bytes() for p in [*sorted(COSTS_DIR.glob("*.toml")), *targets.CORPUS.glob("costs-*")]]
        return written(lambda: load_costs(path)), seeds
    if name == "meta":
        from faultreplay.faulttrace.meta import Meta

        return Meta.from_json, [p.read_bytes() for p in sorted(targets.SAMPLES.glob("*/meta.json"))]
    from faultreplay.collect.importers import import_file

    seeds = [gzip.decompress((targets.GOLDEN / base).read_bytes())[:16384] for base in targets.IMPORTS[name]]
    out = Path("out.trace")
    return written(lambda: import_file(name, path, out, max_errors=1_000_000, force=True)), seeds


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
