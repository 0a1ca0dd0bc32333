"""Import: read, build, write; count what could not be read and refuse past the error budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from faultreplay.collect.importers.build import Builder
from faultreplay.collect.importers.files import Progress
from faultreplay.collect.importers.json_readers import read_bpftrace, read_perf_json
from faultreplay.collect.importers.layouts import PERF
from faultreplay.collect.importers.order import Turns
from faultreplay.collect.importers.raw import (
    BACKWARDS,
    BadLine,
    BlockEnd,
    Item,
    LostEvents,
    Raw,
    RawColumns,
    Skipped,
    Source,
)
from faultreplay.collect.importers.text import read_perf_script, read_trace_cmd
from faultreplay.collect.importers.tools import read_through_tool
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Host, Meta
from faultreplay.faulttrace.writer import TraceWriter, whole_trace

Reader = Callable[[Path, Source, Progress | None], Iterator[Item]]
_READERS: Final[dict[str, Reader]] = {
    "perf-script": read_perf_script,
    "perf-json": read_perf_json,
    "trace-cmd": read_trace_cmd,
    "bpftrace": read_bpftrace,
}
SOURCES: Final = (*_READERS, "qemu-migrate")
_BATCH: Final = 1 << 16
_EXPLAINS_ONLY: Final = (
    "sched:sched_waking", "sched:sched_process_exec", "kvmmmu:fast_page_fault", "kvmmmu:kvm_mmu_zap_all_fast",
    "kvm:kvm_dirty_ring_push", "kvm:kvm_pml_full", "kvm:kvm_unmap_hva_range", "kvm:kvm_try_async_get_page",
    "migrate:", "thp:", "ksm:", "vmscan:", "huge_memory:", "lock:",
    "syscalls:sys_enter_close", "syscalls:sys_enter_read", "syscalls:sys_exit_read", "syscalls:sys_exit_userfaultfd",
)  # fmt: skip
"""Events that bound no stall: one that cannot be read is counted under "events not taken" and refuses no import."""


@dataclass(frozen=True)
class ImportSummary:
    """What came of an import. `skipped`: events that were not taken, by name."""

    path: Path
    events: int
    lost: int
    bad_lines: int
    first_bad: str
    skipped: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class _Tally:
    """What came up while reading that is no event."""

    bad: list[BadLine] = field(default_factory=list)  # the first one only
    bad_lines: int = 0
    lost: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)


def import_file(
    kind: str,
    path: Path,
    out: Path,
    *,
    max_errors: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> ImportSummary:
    """Make the trace `out` from `path`, the output of the tool `kind`, or its data file where the tool is installed.

    Raises:
        UsageError: no such kind or file, or `out` exists.
        IncompleteData: more than `max_errors` lines cannot be read, or none is an event; nothing is left behind.
        MissingFeature: a data file, and the tool that reads it is not here.
    """
    if kind not in _READERS:
        raise UsageError(f"'{kind}' is not a source: choose one of {', '.join(SOURCES)}")
    source, builder, turns, tally = Source(), Builder(), Turns(), _Tally()
    items = read_through_tool(kind, path, source, progress) or _READERS[kind](path, source, progress)
    meta = Meta(origin="imported")
    with whole_trace(out, meta, force=force) as writer:
        for item in items:
            _take(item, builder, tally, kind=kind)
            if tally.bad_lines > max_errors:
                raise IncompleteData(_refusal(path, tally, max_errors))
            if isinstance(item, BlockEnd) or len(builder.rows) >= _BATCH:
                _write(builder, writer, turns, path)
        _write(builder, writer, turns, path)
        builder.finish()
        if not builder.kept:
            names = sorted({name for name, _ in builder.not_taken})
            others = f"; it has {', '.join(names[:5])}" if names else ""
            if any("kvm_s390_" in name for name in names):
                raise IncompleteData(f"{path}: KVM events of s390: not supported (of x86 and arm64 they are)")
            raise IncompleteData(f"{path}: no event that faultreplay knows{others}: is it the output of {kind}?")
        _check_threads(path, kind, builder, turns)
        _check_time(path, kind, source, writer.rows)
        notes = _notes(source, builder, turns, tally)
        _fill_meta(meta, source, builder)
        said = {"from": kind, "file": path.name, "notes": notes, "bad_lines": tally.bad_lines}
        meta.extra["import"] = said | {"losses_told": source.tells_losses, "not_taken": _not_taken(builder)}
        writer.append_losses(_dated(tally, builder))
    first_bad = f"line {tally.bad[0].number}: {tally.bad[0].why}" if tally.bad else ""
    skipped: dict[str, int] = {}
    for (name, _), mark in builder.not_taken.items():
        skipped[name] = skipped.get(name, 0) + mark.count
    return ImportSummary(out, writer.rows, tally.lost, tally.bad_lines, first_bad, skipped, tuple(notes))


def _take(item: Item, builder: Builder, tally: _Tally, *, kind: str) -> None:
    match item:
        case Raw():
            try:
                builder.add(item)
            except (ValueError, OverflowError) as error:
                _bad(BadLine(item.line, item.name, str(error), item.name), builder, tally)
        case RawColumns():
            builder.add_columns(item)
        case Skipped(name, line, count, why):
            builder.leave(name, why, line, count)
        case LostEvents(count, cpu):
            tally.lost += count
            ts_ns = -1 if item.unknown_time else item.ts_ns or builder.last_ns
            tally.losses.append({"ts_ns": ts_ns, "cpu": cpu, "probe": f"{kind} (all)", "lost": count})
        case BadLine():
            _bad(item, builder, tally)


def _bad(item: BadLine, builder: Builder, tally: _Tally) -> None:
    if item.event.startswith(_EXPLAINS_ONLY):
        builder.leave(item.event, f"could not be read: {item.why}", item.number)
        return
    tally.bad_lines += 1
    tally.bad = tally.bad or [item]


def _write(builder: Builder, writer: TraceWriter, turns: Turns, path: Path) -> None:
    try:
        table, lines = builder.rows.take()
    except ValueError as error:
        raise IncompleteData(f"{path}: {error}") from None
    turns.feed(table, lines)
    writer.append_events(table)


def _dated(tally: _Tally, builder: Builder) -> list[dict[str, Any]]:
    """A loss of unknown time is one up to the end: somewhere between the first event and the last."""
    rows = [row | {"ts_ns": builder.last_ns if row["ts_ns"] < 0 else row["ts_ns"]} for row in tally.losses]
    return sorted(rows, key=lambda row: int(row["ts_ns"]))


def _refusal(path: Path, tally: _Tally, max_errors: int) -> str:
    first = tally.bad[0]
    place = f"{path}:{first.number}" if first.number else str(path)
    budget = f"more than --max-errors {max_errors}; the first is " if max_errors else ""
    return f"{place}: {budget}{first.why}: {first.text.strip()[:100]!r} (--max-errors N lets N lines pass)"


def _check_time(path: Path, kind: str, source: Source, rows: int) -> None:
    """perf script prints in the order of time; with --deltatime its times are differences."""
    back = source.marks.get(BACKWARDS)
    if kind == "perf-script" and back is not None and back.count > max(10, rows // 20):
        raise IncompleteData(
            f"{path}:{back.line}: times go backwards in {back.count:,} lines: are they differences (--deltatime)? "
            f"Use {PERF.command}"
        )


def _check_threads(path: Path, kind: str, builder: Builder, turns: Turns) -> None:
    """perf script -F pid without tid looks like tid alone; threads of one process would be taken for one."""
    why = builder.not_a_thread
    if turns.two_vcpus is not None:
        tid, one, other = turns.two_vcpus
        why = f"{tid} enters vCPU {one} and, without an exit between, vCPU {other}"
    if kind == "perf-script" and why:
        raise IncompleteData(
            f"{path}: {why}: a process, not a thread: the column tid is missing "
            f"({PERF.command}), or the numbers are of two pid namespaces"
        )


def _fill_meta(meta: Meta, source: Source, builder: Builder) -> None:
    meta.probes, meta.targets, meta.command = builder.probes(), builder.targets(), source.command
    meta.host = Host(source.kernel, source.machine, source.cpu_model, source.cpus, kvm_flavour=builder.flavour)
    meta.clock.name = source.clock
    meta.clock.start_ns, meta.clock.end_ns = builder.first_ns, builder.last_ns


def _not_taken(builder: Builder) -> list[dict[str, Any]]:
    """Events not taken: name, count, first line and why; the most frequent first."""
    return [
        {"event": name, "count": mark.count, "first_line": mark.line, "why": why}
        for (name, why), mark in sorted(builder.not_taken.items(), key=lambda pair: -pair[1].count)
    ]


def _notes(source: Source, builder: Builder, turns: Turns, tally: _Tally) -> list[str]:
    notes = ["no userfaultfd messages in the source: pages of userfaults are known only where KVM's events tell them"]
    if source.coarse:
        notes.append("time stamps of whole microseconds: use perf script --ns, trace-cmd report -t")
    if source.clock != "CLOCK_MONOTONIC":
        notes.append(f"clock: {source.clock} (perf record -k CLOCK_MONOTONIC, trace-cmd record -C mono make it one)")
    if not source.tells_losses:
        notes.append("losses are not known: perf script tells them with --show-lost-events only")
    if unknown := sum(row["lost"] for row in tally.losses if row["ts_ns"] < 0):
        notes.append(f"{unknown:,} events were overwritten or dropped in the tool's buffer, at times it does not say")
    notes += turns.words()
    notes += [f"{mark.count:,} {what} (the first: line {mark.line})" for what, mark in source.marks.items()]
    if source.tail_cut:
        notes.append("the file does not end with a newline: it may be cut, and its last line with it")
    if builder.not_taken:
        most = sorted(builder.not_taken.items(), key=lambda pair: -pair[1].count)
        named = ", ".join(f"{name} ({mark.count:,})" for (name, _), mark in most[:5])
        more = f" and {len(most) - 5} more" if len(most) > 5 else ""
        notes.append(f"events not taken: {named}{more}; faultreplay inspect says why")
    if tally.bad:
        first = tally.bad[0]
        notes.append(f"{tally.bad_lines} lines could not be read, the first: line {first.number}: {first.why}")
    return notes
