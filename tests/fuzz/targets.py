"""What is fuzzed: each target draws one input, runs it and says what came of it."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

import inputs
import judged
import pytest
from hypothesis.strategies import DataObject
from judged import Numbers, Outcome, call, plain_outcome
from made_traces import uffd_faults, write_trace

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.seal import seal_meta
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter
from faultreplay.replay.language.costs import COSTS_DIR
from faultreplay.replay.language.mechanism import MECHANISMS_DIR

HERE: Final = Path(__file__).parent
GOLDEN: Final = HERE.parent / "golden"
SAMPLES: Final = HERE.parent.parent / "sample-traces"
CORPUS: Final = HERE / "corpus"
"""kept inputs: of faults that were found and mended, and small right ones"""


class Bench:
    """A folder with whole inputs, from which damaged ones are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder / "whole.trace"
        _sealed(SAMPLES / "kernel-6.1-svm.trace", self.trace)
        self.small = write_trace(folder / "small.trace", uffd_faults(each=20))
        self.foreign = folder / "foreign.trace"
        shutil.copytree(SAMPLES / "process-stress-ng.trace", self.foreign)
        outcome, why, numbers = judged.compared(self.trace, None)
        assert outcome == "accepted", why
        self.right: Numbers | None = numbers
        self.made = folder / "made.trace"

    def copy(self) -> Path:
        """A fresh copy of the whole trace, with its cache of faults."""
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.copytree(self.trace, self.made)
        return self.made


def _sealed(source: Path, path: Path) -> None:
    """The same events as this version writes them: the shipped samples are older than checksums."""
    old = open_trace(source)
    with TraceWriter(path, old.meta) as writer:
        table = old.events().to_arrow().cast(EVENTS)
        for batch in table.combine_chunks().to_batches():
            writer.append_events(batch)


Target = Callable[[DataObject, Bench], tuple[Outcome, str]]


def parts(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """Bytes of a Parquet file of the trace."""
    trace = bench.copy()
    (trace / "faults.parquet").unlink()
    path = inputs.drawn(data, [*sorted((trace / "events").iterdir()), trace / "losses.parquet"])
    path.write_bytes(inputs.damaged(data, path.read_bytes()))
    return judged.compared(trace, bench.right)[:2]


def cache(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """Bytes of the cache of stitched faults."""
    trace = bench.copy()
    path = trace / "faults.parquet"
    stat = path.stat()
    path.write_bytes(inputs.damaged(data, path.read_bytes()))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return judged.compared(trace, bench.right)[:2]


def files(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """Files of a trace doubled, renamed, lost, taken from another trace, or of another kind."""
    trace = bench.copy()
    if data.draw(inputs.st.booleans()):
        (trace / "faults.parquet").unlink()
    everything = sorted(path for path in trace.rglob("*") if path.is_file())
    path = inputs.drawn(data, everything)
    what = inputs.drawn(data, ["twice", "rename", "lose", "foreign", "directory", "fifo", "link", "empty", "null"])
    if what == "twice":
        name = inputs.drawn(data, [
            "part-000001.parquet", "part-999999.parquet", "part-99999999999999999999.parquet", "part-1e3.parquet",
            f"{path.stem} (1).parquet", "part-1_0.parquet", "part--1.parquet", "part-٣.parquet", "notes.txt",
        ])  # fmt: skip
        if path.name != name:
            shutil.copy(path, path.with_name(name))
    elif what == "rename":
        path.rename(path.with_name(inputs.drawn(data, ["part-000007.parquet", "x", "\x1b[31m\n.parquet"])))
    elif what == "foreign":
        other = bench.foreign / path.relative_to(trace)
        if other.exists():
            shutil.copy(other, path)
    else:
        path.unlink()
        match what:
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to("/dev/zero")
            case "null":
                path.symlink_to("/dev/null")
            case "empty":
                path.touch()
    return judged.compared(trace, bench.right)[:2]


def meta(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """Values of meta.json. What it alone knows (names, losses, the clock) cannot be judged."""
    trace = bench.copy()
    path = trace / "meta.json"
    damaged = inputs.damaged_json(data, path.read_bytes())
    if data.draw(inputs.st.integers(0, 3)):  # else its own digest tells, and no value is looked at
        damaged = seal_meta(b"{" + damaged.strip()[1:-1] + b"\n}\n")
    path.write_bytes(damaged)
    runs = [call("inspect", str(trace)), call("compare", str(trace), "-m", "uffd-missing", "--format", "md")]
    return plain_outcome(*runs)


def mechanism(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """A mechanism file; `models check` and `compare` must accept and refuse the same."""
    kept = inputs.bases(CORPUS, "mechanism-*")
    base = inputs.drawn(data, [*inputs.bases(MECHANISMS_DIR, "*.toml"), *kept])
    path = bench.folder / "m.toml"
    path.write_text(inputs.damaged_toml(data, base.read_text()))
    check = call("models", "check", str(path))
    run = call("compare", str(bench.small), "-m", str(path), "--no-fit", "--format", "json")
    outcome, why = plain_outcome(check, run, call("models", "show", str(path)))
    if outcome != "traceback" and check.code != run.code and not (check.code == 2 and run.code == 0):
        return "traceback", f"check ends in {check.code}, compare in {run.code}: {run.err.strip()[-200:]}"
    return outcome, why


def costs(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """A cost file."""
    base = inputs.drawn(data, [*inputs.bases(COSTS_DIR, "*.toml"), *inputs.bases(CORPUS, "costs-*")])
    path = bench.folder / "c.toml"
    path.write_text(inputs.damaged_toml(data, base.read_text()))
    check = call("models", "check", str(path))
    run = call("compare", str(bench.small), "-m", "uffd-missing", "--no-fit", "--costs", str(path), "--format", "csv")
    outcome, why = plain_outcome(check, run)
    if outcome != "traceback" and (check.code == 0) != (run.code == 0) and "costs" in path.read_text():
        return "traceback", f"check ends in {check.code}, compare in {run.code}: {run.err.strip()[-200:]}"
    return outcome, why


IMPORTS: Final = {
    "perf-script": ["pvm.perf-script.txt.gz"],
    "perf-json": ["pvm.perf-6.1.json.gz", "pvm.perf-6.12.json.gz"],
    "trace-cmd": ["svm.trace-cmd.txt.gz", "svm-apf.trace-cmd.txt.gz", "svm-ring.trace-cmd.txt.gz"],
    "bpftrace": ["svm.bpftrace.json.gz", "svm-lossy.bpftrace.json.gz"],
    "qemu-migrate": ["qemu-7.2.destination.json", "qemu-7.2.source.json"],
}


def importer(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """The output of another tool; the trace that comes of it is looked at and compared."""
    source = inputs.drawn(data, sorted(IMPORTS))
    base = GOLDEN / inputs.drawn(data, IMPORTS[source])
    raw = gzip.decompress(base.read_bytes()) if base.suffix == ".gz" else base.read_bytes()
    path = bench.folder / "input"
    path.write_bytes(inputs.damaged(data, raw))
    if source == "qemu-migrate":
        path.write_bytes(inputs.damaged_json(data, raw))
    made = bench.folder / "imported.trace"
    shutil.rmtree(made, ignore_errors=True)
    budget = inputs.drawn(data, ["0", "1", "1000000"])
    ran = call("import", "--from", source, str(path), "-o", str(made), "--max-errors", budget, "--force")
    if ran.complaint or ran.code:
        return plain_outcome(ran)
    return plain_outcome(call("inspect", str(made)))


NEVER: Final = frozenset({"--dask", "--lab", "--jobs", "--help", "--seeds"})
"""Options that start other machines, guests or processes, or ask for work by its length."""


def options(data: DataObject, bench: Bench) -> tuple[Outcome, str]:
    """A command line; verbs that record or run guests stop where they would begin."""
    known = inputs.commands()
    verb = inputs.drawn(data, sorted(known))
    output = [str(bench.folder / name) for name in ("o.json", "o.csv", "o.html", "o.trace", "o.toml", "none/o.md")]
    paths = {
        "trace": [str(bench.small), str(bench.trace)],
        "file": [str(bench.folder / "m.toml"), "uffd-missing", str(bench.small)],
        "odd": [str(bench.folder / "none"), "/dev/null", "/dev/zero", str(bench.folder), "", "\x1b[31m\n"],
        "output": output,
        "mechanisms": ["uffd-missing", "kvm-exit,freeze", "ideal", "none-such"],
        "costs": ["default", "none-such"],
        "window": ["0s+1ms:freeze", "0s+1ns:pause", "1s+1s:none", "0s+277h:freeze", "277h+277h:memslot-destroy"],
        "set": ["uffd-missing.handlers=2", "uffd-missing.bandwidth=0.5", "uffd-missing.granule=3", "a.b=c", "x"],
        "vary": ["fetch=1us,2us", "uffd-missing.handlers=1..4:3", "fetch=x1,x2", "fetch=1us..nan"],
    }
    words = inputs.command_line(data, verb, known[verb], paths, NEVER)
    for name in (*paths["odd"][:1], *output):  # the first: a folder of outputs that may have become a file
        made = Path(name)
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    return plain_outcome(call(*words))


TARGETS: Final[dict[str, Target]] = {
    "parts": parts,
    "cache": cache,
    "files": files,
    "meta": meta,
    "mechanism": mechanism,
    "costs": costs,
    "importer": importer,
    "options": options,
}


def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would record, start guests or take minutes is refused where it would begin."""

    def stopped(*_: object, **__: object) -> None:
        raise UsageError("nothing is begun here")

    for name in (
        "faultreplay.collect.recorder.run.record",
        "faultreplay.lab.runner.run",
        "faultreplay.lab.matrix.run_matrix",
        "faultreplay.replay.workload.synth.synthesize",
    ):
        monkeypatch.setattr(name, stopped)
