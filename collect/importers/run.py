"""Import: read, build, write; count what could not be read and refuse past the error budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.build import Builder
from faultreplay.collect.importers.raw import BadLine, Item, LostEvents, Raw, Skipped, Source, read_lines
from faultreplay.collect.importers.readers import read_bpftrace, read_perf_json, read_perf_script, read_trace_cmd
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Host, Meta, Probe
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter, update_meta

Reader = Callable[[Path, Source], Iterator[Item]]
_READERS: Final[dict[str, Reader]] = {
    "perf-script": read_perf_script,
    "perf-json": read_perf_json,
    "trace-cmd": read_trace_cmd,
    "bpftrace": read_bpftrace,
}
SOURCES: Final = (*_READERS, "qemu-migrate")
_BATCH: Final = 1 << 16


@dataclass(frozen=True)
class ImportSummary:
    """What came of an import. `skipped`: events that faultreplay has no use for, by name."""

    path: Path
    events: int
    lost: int
    bad_lines: int
    first_bad: str
    skipped: dict[str, int]
    notes: tuple[str, ...] = ()


def import_file(kind: str, path: Path, out: Path, *, max_errors: int = 0, force: bool = False) -> ImportSummary:
    """Make the trace `out` from `path`, the output of the tool `kind`.

    Raises:
        UsageError: no such kind or file, or `out` exists.
        IncompleteData: more than `max_errors` lines cannot be read, or none is an event; nothing is left behind.
    """
    if kind not in _READERS:
        raise UsageError(f"'{kind}' is not a source: choose one of {', '.join(SOURCES)}")
    source, builder = Source(), Builder()
    skipped: Counter[str] = Counter()
    bad: list[BadLine] = []
    lost = 0
    # Read to the end before a trace is made: what is past the error budget leaves nothing behind.
    tables: list[pa.Table] = []
    losses: list[dict[str, Any]] = []
    for item in _built(_READERS[kind](path, source), builder):
        match item:
            case Skipped(name):
                skipped[name] += 1
            case LostEvents(count, cpu):
                lost += count
                losses.append({"ts_ns": builder.last_ns, "cpu": cpu, "probe": f"{kind} (all)", "lost": count})
            case BadLine():
                bad.append(item)
                if len(bad) > max_errors:
                    raise IncompleteData(_refusal(path, bad, max_errors))
        if len(builder.rows) >= _BATCH:
            tables.append(_table(builder))
    tables.append(_table(builder))
    if not builder.seen:
        others = f"; it has {', '.join(sorted(skipped)[:5])}" if skipped else ""
        raise IncompleteData(f"{path}: no event that faultreplay knows{others}: is it the output of {kind}?")
    meta = _meta(kind, path, source, builder)
    notes = _notes(source, skipped, bad)
    meta.extra["import"] |= {"notes": notes, "bad_lines": len(bad), "skipped": dict(skipped)}
    with TraceWriter(out, meta, force=force) as writer:
        for table in tables:
            writer.append_events(table)
        writer.append_losses(losses)
    first_bad = f"line {bad[0].number}: {bad[0].why}" if bad else ""
    return ImportSummary(out, sum(t.num_rows for t in tables), lost, len(bad), first_bad, dict(skipped), tuple(notes))


def import_qemu(paths: list[Path], out: Path, *, into: bool = False, force: bool = False) -> ImportSummary:
    """Keep QEMU's `query-migrate` answers in a trace: into an existing one, or into a new one without events.

    Which side an answer is from shows in it: only the destination has blocktimes, only the source RAM counters.

    Raises:
        IncompleteData: not the JSON of query-migrate.
    """
    figures: dict[str, Any] = {}
    for path in paths:
        answer = _migrate_answer(path)
        if {"destination", "source"} & answer.keys():  # as faultreplay keeps them
            figures |= answer
        else:
            side = "destination" if any(key.startswith("postcopy-") for key in answer) else "source"
            figures[side] = answer
    if into:
        trace = open_trace(out)
        trace.meta.extra["qemu"] = (trace.meta.extra.get("qemu") or {}) | figures
        update_meta(out, trace.meta)
        return ImportSummary(out, 0, 0, 0, "", {})
    meta = Meta(origin="imported", extra={"qemu": figures, "import": {"from": "qemu-migrate"}})
    reason = "QEMU's figures only: no events"
    meta.probes = [Probe(probe.tracepoint, probe.groups[0], "missing", reason) for probe in PROBES]
    TraceWriter(out, meta, force=force).close()
    return ImportSummary(
        out, 0, 0, 0, "", {}, ("no events: QEMU's figures stand alone, there are no faults to replay",)
    )


def _migrate_answer(path: Path) -> dict[str, Any]:
    try:
        answer = json.loads("\n".join(line for _, line in read_lines(path)))
    except ValueError:
        raise IncompleteData(f"{path}: not JSON: save the answer of QMP's query-migrate as it is") from None
    if isinstance(answer, dict) and isinstance(answer.get("return"), dict):
        answer = answer["return"]
    if not isinstance(answer, dict) or not ({"status", "destination", "source"} & answer.keys()):
        raise IncompleteData(f"{path}: not an answer of query-migrate: it has no status")
    return answer


def _built(items: Iterator[Item], builder: Builder) -> Iterator[Item]:
    """Events go into `builder`; what is not an event, or cannot be built, comes out."""
    for item in items:
        if isinstance(item, Raw):
            try:
                builder.add(item)
            except (ValueError, OverflowError) as error:
                yield BadLine(0, item.name, str(error))
        else:
            yield item


def _table(builder: Builder) -> pa.Table:
    rows = builder.take()
    try:
        return pa.Table.from_pylist(rows, EVENTS)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise IncompleteData(f"a number does not fit into its column: {str(error).splitlines()[0]}") from None


def _refusal(path: Path, bad: list[BadLine], max_errors: int) -> str:
    first = bad[0]
    place = f"{path}:{first.number}" if first.number else str(path)
    budget = f"more than --max-errors {max_errors}; the first is " if max_errors else ""
    return f"{place}: {budget}{first.why}: {first.text.strip()[:100]!r} (--max-errors N lets N lines pass)"


def _meta(kind: str, path: Path, source: Source, builder: Builder) -> Meta:
    meta = Meta(origin="imported", probes=builder.probes(), targets=builder.targets(), command=source.command)
    meta.host = Host(source.kernel, source.machine, source.cpu_model, source.cpus, kvm_flavour=builder.flavour)
    meta.clock.name = source.clock
    meta.clock.start_ns, meta.clock.end_ns = builder.first_ns, builder.last_ns
    meta.extra["import"] = {"from": kind, "file": path.name}
    return meta


def _notes(source: Source, skipped: Counter[str], bad: list[BadLine]) -> list[str]:
    notes = ["no userfaultfd messages in the source: pages of userfaults are known only where KVM's events tell them"]
    if source.coarse:
        notes.append("time stamps of whole microseconds: use perf script --ns, trace-cmd report -t")
    if source.clock != "CLOCK_MONOTONIC":
        notes.append(f"clock: {source.clock} (perf record -k CLOCK_MONOTONIC, trace-cmd record -C mono make it one)")
    if skipped:
        notes.append(f"events not taken: {', '.join(f'{name} ({n})' for name, n in skipped.most_common(5))}")
    if bad:
        notes.append(f"{len(bad)} lines could not be read")
    return notes
