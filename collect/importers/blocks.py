"""Blocks of lines to events in columns: what most lines are is read by string operations over the whole block.

The rest, line by line, by `layouts.lex`. Both give the same: the tests compare them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.collect.importers.layouts import (
    EVENT_TIME,
    FRAME,
    FTRACE,
    Layout,
    Line,
    Passed,
    Unreadable,
    Who,
    lex,
    parse_who,
    without_printk,
)
from faultreplay.collect.importers.raw import BACKWARDS, BadLine, LostEvents, Source

_NAME: Final = {"trace-cmd": r"^[A-Za-z0-9_.-]+$", "perf-script": r"^[A-Za-z0-9_.-]+:[A-Za-z0-9_.*-]+$"}
_HEADER: Final = re.compile(r"^# (os release|arch|cpudesc|nrcpus online|cmdline|clockid)\s*: ?(.+)$")
_COLUMNS: Final = {
    "line": pl.Int64, "who": pl.Int64, "ts_ns": pl.Int64, "digits": pl.Int64, "event": pl.String, "text": pl.String,
}  # fmt: skip


@dataclass
class Lexer:
    """Lexes the blocks of one file; keeps what its lines share.

    `people` are the different WHO of the file, `frame`'s column `who` is an index into it.
    """

    layout: Layout
    source: Source
    fast: bool = True
    people: list[Who] = field(default_factory=list)
    kernel_log: bool = False  # an ftrace dump among the lines of a kernel log: others than its own are passed over
    _known: dict[str | Who, int] = field(default_factory=dict)
    _last: tuple[int, int, str, str] = (0, -1, "", "")

    def block(self, first: int, lines: list[str]) -> tuple[pl.DataFrame, list[LostEvents | BadLine]]:
        """Events of a block (line, who, ts_ns, digits, event, text) in its order, and what else was in it."""
        raw = pl.Series("raw", lines, pl.String)
        if not self.fast:
            frame, others = pl.DataFrame(schema=_COLUMNS), list(enumerate(lines, start=first))
        else:
            frame, rest = self._by_columns(raw, first)
            others = list(zip(rest.to_list(), raw.gather(rest - first).to_list(), strict=True))
        slow, odd = self._line_by_line(others)
        if slow.height:
            frame = pl.concat([frame, slow]).sort("line", maintain_order=True)
        self._marks(frame)
        return frame, [_dated(item, frame) if isinstance(item, LostEvents) else item for item in odd]

    def _by_columns(self, raw: pl.Series, first: int) -> tuple[pl.DataFrame, pl.Series]:
        """Events that string operations read, and the numbers of the lines they did not."""
        column = pl.col
        parts = pl.DataFrame({"raw": raw}).with_row_index("line", offset=first).with_columns(
            pl.col("raw").str.splitn(": ", 3).struct.rename_fields(["head", "event", "text"])
        )  # fmt: skip
        parts = (
            parts.unnest("raw")
            .with_columns(
                column("event").str.strip_chars(),
                column("text").str.strip_chars(),
                time=column("head").str.extract(r"([0-9]{1,9}\.[0-9]{1,9})$"),
            )
            .with_columns(
                pl.when(column("text").is_null()).then(column("event").str.strip_suffix(":")).otherwise("event"),
                named=column("text").is_not_null() | column("event").str.ends_with(":"),
                who=column("head").str.strip_suffix(column("time")),
            )
        )
        if self.layout.name == "perf-script":  # the period stands before the name
            parts = parts.with_columns(column("event").str.replace(r"^[0-9]+\s+", "", n=1))
        parts = parts.with_columns(who=pl.Series(self._index_of(parts["who"]), dtype=pl.Int64))
        good = (column("who") >= 0) & column("named") & column("event").str.contains(_NAME[self.layout.name])
        good &= column("time").is_not_null() & ~column("text").fill_null("").str.contains("\0", literal=True)
        parts = parts.with_columns(good=good.fill_null(value=False))
        frame = (
            parts.filter("good")
            .with_columns(column("time").str.splitn(".", 2).struct.rename_fields(["s", "f"]))
            .unnest("time")
            .select(
                column("line").cast(pl.Int64),
                "who",
                ts_ns=column("s").cast(pl.Int64) * 1_000_000_000 + column("f").str.pad_end(9, "0").cast(pl.Int64),
                digits=column("f").str.len_bytes().cast(pl.Int64),
                event="event",
                text=column("text").fill_null(""),
            )
        )
        rest = parts.filter(~column("good"))["line"].cast(pl.Int64)
        lines = raw.gather(rest - first)
        idle = lines.str.strip_chars().str.len_bytes() == 0
        stack = lines.str.contains(FRAME.pattern) & ~lines.str.contains(EVENT_TIME.pattern)
        return frame, rest.filter(~(idle | stack))

    def _index_of(self, texts: pl.Series) -> npt.NDArray[np.int64]:
        """The index in `people` of each line; -1: not in the tool's layout."""
        encoded = texts.to_arrow().dictionary_encode()
        words = encoded.dictionary.to_pylist()
        table = np.array([*(self._known[t] if t in self._known else self._learn(t) for t in words), -1], dtype=np.int64)
        index: npt.NDArray[np.int64] = table[encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)]
        return index

    def _learn(self, text: str) -> int:
        who = parse_who(self.layout, text)
        self._known[text] = -1 if who is None else self._person(who)
        return self._known[text]

    def _person(self, who: Who) -> int:
        if who not in self._known:
            self._known[who] = len(self.people)
            self.people.append(who)
        return self._known[who]

    def _line_by_line(self, others: list[tuple[int, str]]) -> tuple[pl.DataFrame, list[LostEvents | BadLine]]:
        rows: list[tuple[object, ...]] = []
        odd: list[LostEvents | BadLine] = []
        for number, text in others:
            item = lex(self.layout, text)
            if isinstance(item, Unreadable) and self.layout is FTRACE:
                if text.startswith("Dumping ftrace buffer") or (bare := without_printk(text)) != text:
                    self.kernel_log = True
                    item = lex(self.layout, bare)
                if isinstance(item, Unreadable) and self.kernel_log and not item.why:
                    self.source.mark("other lines of the kernel log", number)
                    continue
            match item:
                case Line(who, ts_ns, digits, event, words):
                    rows.append((number, self._person(who), ts_ns, digits, event, words))
                case LostEvents():
                    odd.append(replace(item, line=number))
                case Unreadable(why):
                    odd.append(BadLine(number, text, why))
                case Passed():
                    self._header(text)
                    self.kernel_log |= text.startswith("Dumping ftrace buffer")
        return pl.DataFrame(rows, schema=_COLUMNS, orient="row"), odd

    def _header(self, text: str) -> None:
        """What perf script --header says of the recording."""
        found = _HEADER.match(text)
        if found is None or self.layout is FTRACE:
            return
        name, words = found[1], found[2].strip()
        match name:
            case "os release":
                self.source.kernel = words
            case "arch":
                self.source.machine = words
            case "cpudesc":
                self.source.cpu_model = words
            case "nrcpus online" if words.isdecimal():
                self.source.cpus = int(words)
            case "cmdline":
                self.source.command = words.split()
            case "clockid":
                self.source.clock = "CLOCK_" + words.split()[0].upper()

    def _marks(self, frame: pl.DataFrame) -> None:
        """Time that goes backwards, and lines that stand there twice."""
        if not frame.height:
            return
        ts_ns, who, event, text = self._last
        before = [
            pl.col(name).shift(1, fill_value=pl.lit(value, dtype=_COLUMNS[name]))
            for name, value in (("ts_ns", ts_ns), ("who", who), ("event", event), ("text", text))
        ]
        same_time = pl.col("ts_ns") == before[0]
        found = frame.select(
            "line",
            back=pl.col("ts_ns") < before[0],
            twice=same_time & (pl.col("who") == before[1]) & (pl.col("event") == before[2])
            & (pl.col("text") == before[3]),
        )  # fmt: skip
        for name, what in (
            ("back", BACKWARDS),
            ("twice", "lines that repeat the last one"),
        ):
            lines = found.filter(name)["line"]
            if len(lines):
                self.source.mark(what, int(lines[0]), len(lines))
        self._last = frame.select("ts_ns", "who", "event", "text").row(-1)
        self.source.coarse |= bool((frame["digits"] < 9).any())
        if (frame["digits"] == 0).any():
            self.source.clock = "microseconds since the buffer began (latency format)"


def _dated(lost: LostEvents, frame: pl.DataFrame) -> LostEvents:
    """Lost before the first event after this line."""
    after = frame["line"].search_sorted(lost.line)
    return replace(lost, ts_ns=int(frame["ts_ns"][after])) if after < frame.height else lost
