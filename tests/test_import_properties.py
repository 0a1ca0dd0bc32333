"""Importers of text: by columns as line by line, and no number of a damaged file without a mark."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultreplay.collect.importers import import_file
from faultreplay.collect.importers.build import Builder
from faultreplay.collect.importers.layouts import FTRACE, PERF, Layout
from faultreplay.collect.importers.raw import BadLine, Item, Raw, RawColumns, Skipped, Source
from faultreplay.collect.importers.text import read_text
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.store import open_trace

HERE = Path(__file__).parent
FILES = [
    *((path, FTRACE) for path in sorted((HERE / "golden").glob("*trace-cmd*"))),
    *((path, PERF) for path in sorted((HERE / "golden").glob("*perf*.txt*"))),
    *((path, PERF if "perf" in path.name else FTRACE) for path in sorted((HERE / "cases").glob("*.txt"))),
]


def built(items: Iterator[Item]) -> tuple[pl.DataFrame, list[Item]]:
    """The rows, and what was no event, sorted."""
    builder, others = Builder(), []
    for item in items:
        match item:
            case Raw():
                try:
                    builder.add(item)
                except ValueError as error:
                    others.append(BadLine(item.line, item.name, str(error)))
            case RawColumns():
                builder.add_columns(item)
            case Skipped(name, line, count, why):
                builder.leave(name, why, line, count)
            case _:
                others.append(item)
    frame = pl.from_arrow(builder.rows.take()[0])
    assert isinstance(frame, pl.DataFrame)
    left = [(name, why, mark.count, mark.line) for (name, why), mark in builder.not_taken.items()]
    return frame, [*sorted(map(str, left)), *sorted(map(str, others))]


def same_both_ways(path: Path, layout: Layout) -> None:
    try:
        fast = built(read_text(layout, path, marks := Source()))
    except IncompleteData as error:
        with pytest.raises(IncompleteData) as again:
            built(read_text(layout, path, Source(), fast=False))
        assert str(again.value) == str(error)
        return
    slow = built(read_text(layout, path, other := Source(), fast=False))
    assert fast[0].equals(slow[0])
    assert fast[1] == slow[1]
    assert marks == other


@pytest.mark.parametrize(("path", "layout"), FILES, ids=[path.name for path, _ in FILES])
def test_by_columns_as_line_by_line(path: Path, layout: Layout) -> None:
    same_both_ways(path, layout)


def lines_of(path: Path, most: int) -> list[str]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return text.splitlines(keepends=True)[:most]


PIECES = [line for path, layout in FILES if layout is FTRACE for line in lines_of(path, 20)]
PERF_PIECES = [line for path, layout in FILES if layout is PERF for line in lines_of(path, 20)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_by_columns_as_line_by_line_when_damaged(data: st.DataObject) -> None:
    layout, pieces = data.draw(st.sampled_from([(FTRACE, PIECES), (PERF, PERF_PIECES)]))
    lines = data.draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=8))
    at = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(0, len(lines[at])))
    noise = data.draw(st.text(alphabet=": []0123456789abcdefx-/().\t\0\ufffd", max_size=6))
    lines[at] = lines[at][:cut].rstrip("\n") + noise + data.draw(st.sampled_from(["\n", lines[at][cut:]]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.txt"
        path.write_text("".join(lines), errors="replace")
        same_both_ways(path, layout)


WHO = "       CPU 0/KVM-4145  [002] d....    86.58"


def faults(count: int) -> list[str]:
    """So many stage-2 faults of 9 us: three lines each."""
    info = "info1 0x0000000000000182 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000"
    lines = []
    for n in range(count):
        us = 1000 + 20 * n
        lines += [
            f"{WHO}{us:04}: kvm_exit: vcpu 5 reason EPT_VIOLATION rip 0xffffffff81040f72 {info}\n",
            f"{WHO}{us + 1:04}: kvm_page_fault: vcpu 5 rip 0xffffffff81040f72 address 0x{4096 * n:016x} error_code 6\n",
            f"{WHO}{us + 9:04}: kvm_entry: vcpu 5, rip 0xffffffff81040f72\n",
        ]
    return lines


USUAL = 3  # no messages, whole microseconds, the clock


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_dropped_doubled_or_cut_line_gives_no_number_without_a_mark(data: st.DataObject) -> None:
    lines = faults(4)
    at = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["drop", "double", "cut", "swap"]))
    match how:
        case "drop":
            del lines[at]
        case "double":
            lines.insert(at, lines[at])
        case "cut":
            lines[at] = lines[at][: data.draw(st.integers(1, len(lines[at]) - 2))] + "\n"
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.txt"
        path.write_text("".join(lines))
        try:
            import_file("trace-cmd", path, Path(folder) / "x.trace")
        except IncompleteData as error:
            assert f"{path}:" in str(error)
            return
        trace = open_trace(Path(folder) / "x.trace")
        found = trace.faults()
        notes = trace.meta.extra["import"]["notes"]
        right = found["stall_ns"].to_list() == [9000] * 4 and found["page"].to_list() == [4096 * n for n in range(4)]
        marked = len(notes) > USUAL or found["stall_ns"].null_count() > 0 or set(found["join"]) != {"exit/entry"}
        assert right or marked, (how, at, found.select("start_ns", "stall_ns", "page"), notes)
