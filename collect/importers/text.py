"""Readers of text with one event a line: perf script, trace-cmd report, tracefs' trace and trace_pipe, ftrace dumps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import numpy as np
import polars as pl

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.blocks import Lexer
from faultreplay.collect.importers.columns import has_forms, read_columns
from faultreplay.collect.importers.files import Progress, read_blocks
from faultreplay.collect.importers.layouts import FTRACE, PERF, Layout
from faultreplay.collect.importers.printed import parse_fields
from faultreplay.collect.importers.raw import BadLine, BlockEnd, Item, Raw, RawColumns, Skipped, Source
from faultreplay.collect.importers.refusals import why_not

KNOWN: Final = {probe.tracepoint: probe for probe in PROBES}
_FULL_NAME: Final = {tracepoint.partition(":")[2]: tracepoint for tracepoint in KNOWN}


def read_perf_script(path: Path, source: Source, progress: Progress | None = None) -> Iterator[Item]:
    """``perf script --ns -F comm,pid,tid,cpu,time,event,trace`` (or its default columns)."""
    source.tells_losses = False
    return read_text(PERF, path, source, progress)


def read_trace_cmd(path: Path, source: Source, progress: Progress | None = None) -> Iterator[Item]:
    """``trace-cmd report -t``, or the text of tracefs' own ``trace`` file, in the latency format too."""
    return read_text(FTRACE, path, source, progress)


def read_text(
    layout: Layout,
    path: Path,
    source: Source,
    progress: Progress | None = None,
    *,
    stream: IO[bytes] | None = None,
    fast: bool = True,
) -> Iterator[Item]:
    """Events of a file in `layout`, or of what a tool made of it (`stream`); `fast` off: line by line, for tests.

    Raises:
        IncompleteData: the file as a whole is something else; says what, and which command makes the right one.
    """
    lexer = Lexer(layout, source, fast)
    events = 0
    for first, lines in read_blocks(path, source, progress, stream):
        frame, odd = lexer.block(first, lines)
        for item in odd:
            if isinstance(item, BadLine):
                why = item.why or why_not(layout, path, item, events=events + frame.height)
                yield replace(item, why=why)
            else:
                source.tells_losses = True
                yield item
        events += frame.height
        yield from _items(lexer, frame)
        yield BlockEnd()


def _items(lexer: Lexer, frame: pl.DataFrame) -> Iterator[Item]:
    """Raws in the order of the file, then columns of the frequent events."""
    if not frame.height:
        return
    names = frame.group_by("event", maintain_order=True).agg(pl.len().alias("n"), pl.col("line").first())
    needed = {}
    for event, count, line in names.iter_rows():
        full = event if lexer.layout is PERF else _FULL_NAME.get(event, event)
        if full in KNOWN:
            needed[event] = full
        else:
            yield Skipped(full, line, count, "nothing here is made of it")
    frame = frame.with_columns(pl.col("event").replace_strict(needed, default=None)).drop_nulls("event")
    one_by_one, columns = [], []
    for (event,), lines in frame.group_by("event", maintain_order=True):
        if not (lexer.fast and has_forms(str(event))):
            one_by_one.append(lines)
            continue
        for taken, fields in read_columns(str(event), lines):
            if fields is None:
                one_by_one.append(taken)
            else:
                columns.append(_columns(lexer, str(event), taken, fields))
    if one_by_one:
        rest = pl.concat(one_by_one).sort("line", maintain_order=True)
        yield from (_raw(lexer, row) for row in rest.select("line", "who", "ts_ns", "event", "text").iter_rows())
    yield from columns


def _raw(lexer: Lexer, row: tuple[int, int, int, str, str]) -> Item:
    line, who, ts_ns, event, text = row
    try:
        fields = parse_fields(event.partition(":")[2], text)
    except ValueError as error:
        why = str(error) if text or lexer.layout is FTRACE else f"the column trace is missing ({PERF.command})"
        return BadLine(line, f"{event}: {text}", why, event)
    if not fields and text and KNOWN[event].reads:
        return Skipped(event, line, why="the form in which it is printed is not known here")
    person = lexer.people[who]
    return Raw(ts_ns, person.cpu, person.tgid, person.tid, person.comm, event, fields, line)


def _columns(lexer: Lexer, event: str, lines: pl.DataFrame, fields: dict[str, np.ndarray]) -> RawColumns:
    people = np.array([(who.cpu, who.tid) for who in lexer.people], dtype=np.int64)
    who = lines["who"].to_numpy()
    seen = [lexer.people[index] for index in np.unique(who)]
    cpu, tid = people[who].T
    return RawColumns(
        event, lines["ts_ns"].to_numpy(), cpu, tid, lines["line"].to_numpy(), fields,
        tuple((person.tid, person.comm) for person in seen if person.comm),
        {person.tid: person.tgid for person in seen if person.tgid},
    )  # fmt: skip
