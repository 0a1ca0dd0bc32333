"""What a line is that is in no layout we read, in words: what was expected and which command makes the right file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from faultreplay.collect.importers.layouts import FTRACE, PERF, Layout, Line, lex
from faultreplay.collect.importers.raw import BadLine
from faultreplay.faulttrace.errors import IncompleteData

_PERF_EVENT: Final = re.compile(r"(?:^|\s)(?:\d+\s+)?[a-z_0-9]+:[a-z_0-9]+:(?:\s(?P<text>.*))?$")
_PERF_TIME: Final = re.compile(r"\s*\b\d+\.\d+:(?:\s|$)")
_PERF_PERSON: Final = re.compile(r"^\s*(?P<comm>.*?\S)??\s*(?P<tid>\b\d+(?:/\d+)?)?\s*(?:\[\d+\]\s*)?$")
_KINDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"^\s*(?:\d+\)|[\d.]+ \|\s+\d+\))\s.*(?:\||/\*|[;{}])"),
     "the function_graph tracer's output, whose lines have no time and no thread: "
     "echo nop > /sys/kernel/tracing/current_tracer and record the events"),
    (re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"),
     "a wall-clock time before the columns (perf-prof writes so)"),
    (re.compile(r"^(?:Attaching \d+ probes?|Attached \d+ probes?|@\w*(?:\[.*\])?:|\[[\dKMG]+, [\dKMG]+\))"),
     "bpftrace's own output: a histogram has no events; print them (--from bpftrace)"),
    (re.compile(r"^\s*\d+\.\d+ \(\s*(?:\d+\.\d+ ms)?\s*\):"), "perf trace's output: use perf script"),
    (re.compile(r"\{ cpu_id = \d+ \}"), "LTTng's text, which is not read"),
    (re.compile(r"^\s*\{"), "JSON: --from perf-json, bpftrace or qemu-migrate"),
    (re.compile(r"^\(qemu\)|^(?:Migration )?[Ss]tatus: "), "QEMU's monitor: --from qemu-migrate takes query-migrate"),
    (re.compile(r"^\s*(?:Analyze events for|VM-EXIT\s+Samples|# Samples:|Overhead\s+Command)"),
     "a table that perf made of the events: give the events themselves"),
    (re.compile(r"^\s*\S+\.(?:dat|trace):\s"), "a report of several files at once: report one file at a time"),
    (re.compile(r"^\s*<idle>.*ms \(\+"), "the verbose latency format: echo noverbose > trace_options"),
)  # fmt: skip


def why_not(layout: Layout, path: Path, bad: BadLine, *, events: int) -> str:
    """Why `bad` is not a line of `layout`.

    Raises:
        IncompleteData: no event was read so far and the whole file is something else that can be named.
    """
    what = _what(layout, bad.text)
    expected = f"expected '{layout.looks}' ({layout.command})"
    if what and not events:
        raise IncompleteData(f"{path}:{bad.number}: {what}; {expected}: {bad.text.strip()[:100]!r}")
    tool = "perf script" if layout is PERF else "trace-cmd report or ftrace"
    return f"not a line of {tool}{': ' + what if what else ''}: {expected}"


def _what(layout: Layout, line: str) -> str:
    for pattern, words in _KINDS:
        if pattern.search(line):
            return words
    other = FTRACE if layout is PERF else PERF
    if isinstance(lex(other, line), Line):
        return f"this is a line of {'trace-cmd or ftrace' if layout is PERF else 'perf script'}: --from {other.name}"
    lacking = _lacking(line) if layout is PERF else []
    if len(lacking) > 1 or "pid and tid" in lacking:
        return f"the columns {', '.join(lacking)} are missing"
    return f"the column {lacking[0]} is missing" if lacking else ""


def _lacking(line: str) -> list[str]:
    """Columns of perf script that this line of it lacks; none: it does not look like such a line."""
    event = _PERF_EVENT.search(line)
    head = line[: event.start()] if event else line
    time = _PERF_TIME.search(head)
    if event is None and time is None:
        return []
    person = _PERF_PERSON.match(head[: time.start()] if time else head)
    lacking = [words for name, words in (("comm", "comm"), ("tid", "pid and tid")) if not (person and person[name])]
    lacking += [name for name, found in (("time", time), ("event", event)) if found is None]
    if event is not None and not (event["text"] or "").strip():
        lacking.append("trace")
    return lacking
