"""The layouts of lines that perf script, trace-cmd report and ftrace write, and what such a line is.

A line is `WHO TIME: EVENT: TEXT`. WHO differs between tools, versions and options; few different ones are in a file,
so `parse_who` is slow and exact. Lines that are no events (headers, stacks, marks of lost events) are told apart here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from faultreplay.collect.importers.raw import LostEvents, seconds_to_ns


class Who(NamedTuple):
    """Who raised an event, and where; `tgid` 0 and `cpu` -1: not known."""

    comm: str
    tgid: int
    tid: int
    cpu: int


class Line(NamedTuple):
    """A line that is an event. `event` is as printed; `digits`: those of the fraction of a second, 0 in the
    latency format (whole microseconds since the buffer began)."""

    who: Who
    ts_ns: int
    digits: int
    event: str
    text: str


class Passed(NamedTuple):
    """A line that is no event: a header, part of a stack, an empty line."""


class Unreadable(NamedTuple):
    """Neither: `why` says what lacks where it is known."""

    why: str


Lexed: TypeAlias = Line | LostEvents | Passed | Unreadable

_TIME: Final = r"(?:(?P<s>\d{1,9})\.(?P<f>\d{1,9})|(?P<us>\d{1,15})us\S?|(?P<count>\d+))"
_FTRACE_WHO: Final = (
    r"^\s*(?P<comm>.*?)-(?P<tid>\d+)\s+(?:\(\s*(?P<tgid>\d+|-+)\)\s+)?"
    r"(?:\[(?P<cpu>\d+)\](?:\s+(?P<flags>[A-Za-z.#+!*@$0-9]{2,8}))?|(?P<cpu2>\d+)[^\d\s]\S{1,7})"
)
_PERF_WHO: Final = (
    r"^\s*(?:(?P<comm>\S(?:.*\S)?)\s+)?(?P<pid>-?\d+)(?:/(?P<tid>-?\d+))?"
    r"(?:\s+\[(?P<cpu>-?\d+)\])?(?:\s+(?P<flags>[A-Za-z.#+!*@$][A-Za-z0-9.#+!*@$]*))?"
)
# Hex address and more, as perf's frames; `=> function`, as ftrace's and trace-cmd's; function alone, as perf -F sym.
FRAME: Final = re.compile(
    r"^\s+(?:[0-9a-f]{1,16}(?:\s+\S.*)?|=> .*|[^\s\[\d]\S*\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?(?: [(\[].*)?|\S+ \(\S+\)"
    r"|\[unknown\].*|\S+:\d+|\.\.\. .*|[A-Za-z_]\w+)$"
)
EVENT_TIME: Final = re.compile(r"[0-9]us\S? ?:|[0-9]\.[0-9]+: ")
_ARROW: Final = re.compile(r"^\s*=>\s")


@dataclass(frozen=True)
class Layout:
    """How a tool writes its lines: patterns, what it looks like and the command that makes it."""

    name: str
    who: re.Pattern[str]
    line: re.Pattern[str]
    event: re.Pattern[str]
    looks: str
    command: str
    passed: re.Pattern[str]


PERF: Final = Layout(
    "perf-script",
    re.compile(_PERF_WHO + r"\s*$"),
    re.compile(_PERF_WHO + r"\s+" + _TIME + r":\s+(?P<rest>.*)$"),
    re.compile(r"(?:\d+\s+)?(?P<event>[\w.-]+:[\w.*-]+)(?::[A-Za-z]+)?:(?:\s+(?P<text>.*))?$"),
    "COMM PID/TID [CPU] TIME: CATEGORY:EVENT: ...",
    "perf script --ns --show-lost-events -F comm,pid,tid,cpu,time,event,trace",
    re.compile(
        r"^(?:#.*|\[ perf record: .*|Warning:.*|Check IO/CPU overload!.*|'\w+' not valid for .*"
        r"|Samples for .*|\s*\S+\[[0-9a-f]+\]|\s*[\w./+-]+:\d+)$"
    ),
)
FTRACE: Final = Layout(
    "trace-cmd",
    re.compile(_FTRACE_WHO + r"\s*$"),
    re.compile(_FTRACE_WHO + r"\s+" + _TIME + r"\s?:\s+(?P<rest>.*)$"),
    re.compile(r"(?P<event>[\w.-]+):(?:\s*(?P<text>.*))?$"),
    "COMM-TID [CPU] TIME: EVENT: ...",
    "trace-cmd report -t, or cat /sys/kernel/tracing/trace",
    re.compile(
        r"^(?:#.*|cpus=\d+|version ?=? ?\d.*|CPU \d+ is empty|file .* is empty|-{5,}|Dumping ftrace buffer:"
        r"|\s+\(ftrace buffer empty\)|trace_clock: .*|CPU: \d+|bytes: \d+|Kernel buffer statistics:"
        r"|(?:entries|(?:commit )?overrun|dropped events): \d+|(?:oldest|now) (?:event )?ts: ?.*"
        r"|read events: \d+|  Note: .*|\s*overriding event .*)$"
    ),
)

NO_NAME: Final = "(no name)"
_SYS_ENTER: Final = re.compile(r"^sys_(?P<call>\w+)\((?P<text>.*)\)$")
_SYS_EXIT: Final = re.compile(r"^sys_(?P<call>\w+) -> (?P<text>\S+)$")
_OF_FILE: Final = re.compile(r"^\s*\S+\.dat:\s")  # trace-cmd report of several files: threads of several machines
_SIDE_BAND: Final = re.compile(r"PERF_RECORD_\w+")
_PERF_LOST: Final = re.compile(r"PERF_RECORD_LOST\w*\b.*?\blost\s*:?\s*(\d+)|\[lost (\d+) events\]", re.IGNORECASE)
_PERF_CHUNKS: Final = re.compile(r"^Processed \d+ events and lost (\d+) chunks!")
_FTRACE_LOST: Final = re.compile(r"^\s*CPU:\s*(\d+) \[(?:LOST (\d+) EVENTS|EVENTS DROPPED)\]")
_OVERRUN: Final = re.compile(r"^#\s*(?:entries-in-buffer/entries-written:\s*|latency: \d+ us, #)(\d+)/(\d+)")
_STATISTICS: Final = re.compile(r"^(?:overrun|dropped events): (\d+)$")
_PRINTK: Final = re.compile(r"^(?:<\d+>)?(?:\S.{0,80}? kernel: ?)?\[\s*\d+\.\d{6}\](?:\s?\[\s*[TC]\d+\])?:?\s?")


def parse_who(layout: Layout, text: str) -> Who | None:
    """The part of a line before its time."""
    found = layout.who.match(text)
    return None if found is None or "\0" in text or _OF_FILE.match(text) else _who(layout, found)


def lex(layout: Layout, line: str) -> Lexed:
    """What one line is; slow and exact."""
    if "\0" in line:
        return Unreadable("NUL bytes in the line: the file is damaged there")
    if lost := _lost(layout, line):
        return lost
    if not line.strip() or line.startswith("#") or layout.passed.match(line):
        return Passed()
    found = None if _OF_FILE.match(line) else layout.line.match(line)
    if found is not None:
        return _line(layout, found)
    return Passed() if FRAME.match(line) or _ARROW.match(line) else Unreadable("")


def _line(layout: Layout, found: re.Match[str]) -> Lexed:
    who = _who(layout, found)
    if who is None:
        return Unreadable("a thread or CPU number that no Linux has")
    if found["count"] is not None:
        return Unreadable(
            "the time is a count, not seconds (clock x86-tsc or counter?): record with the clock mono "
            "(trace-cmd record -C mono; echo mono > /sys/kernel/tracing/trace_clock)"
        )
    if found["us"] is not None:
        ts_ns, digits = int(found["us"]) * 1000, 0
    else:
        ts_ns, digits = seconds_to_ns(found["s"], found["f"]), len(found["f"])
    event, text = _event(layout, found["rest"])
    if event == NO_NAME:
        return Unreadable("")
    return Line(who, ts_ns, digits, event, text) if event else Passed()


def without_printk(line: str) -> str:
    """The line without the kernel log's own prefix, as in an ftrace dump of an oops."""
    return _PRINTK.sub("", line, count=1)


def _event(layout: Layout, rest: str) -> tuple[str, str]:
    """Name and text; a name in parentheses stands for what is no tracepoint; empty: not an event of its own."""
    other = _of_ftrace(rest) if layout is FTRACE else _SIDE_BAND.match(rest)
    if isinstance(other, tuple):
        return other
    if other is not None:
        return other[0], rest
    found = layout.event.match(rest)
    if found is None:
        word = rest.split(maxsplit=1)[0] if rest.strip() else ""
        return (word.rstrip(":") if word.endswith(":") else NO_NAME, "")
    return found["event"], (found["text"] or "").rstrip()


def _of_ftrace(rest: str) -> tuple[str, str] | None:
    """What ftrace prints in forms of its own: stacks, functions, system calls in its raw text."""
    if rest.startswith("<stack trace>"):
        return "", ""
    if call := _SYS_EXIT.match(rest):
        return f"sys_exit_{call['call']}", call["text"]
    if call := _SYS_ENTER.match(rest):
        return f"sys_enter_{call['call']}", _hexadecimal(call["text"])
    return ("(function)", rest) if " <-" in rest else None


def _hexadecimal(text: str) -> str:
    """ftrace prints the arguments of a system call in hexadecimal without 0x."""
    return re.sub(r"(\w+): (-?)([0-9a-f]+)\b", r"\1: \g<2>0x\3", text)


def _who(layout: Layout, found: re.Match[str]) -> Who | None:
    if layout is PERF:
        # Alone, the number is the thread; as PID/TID it is both.
        tid = int(found["tid"] or found["pid"])
        tgid = int(found["pid"]) if found["tid"] else 0
        cpu = int(found["cpu"] or -1)
    else:
        tid, cpu = int(found["tid"]), int(found["cpu"] or found["cpu2"])
        tgid = int(found["tgid"]) if (found["tgid"] or "-").strip("-") else 0
    if max(tid, tgid) > 1 << 30 or cpu >= 1 << 15:
        return None
    return Who((found["comm"] or "").strip(), max(tgid, 0), tid, cpu)


def _lost(layout: Layout, line: str) -> LostEvents | None:
    if layout is PERF:
        if found := _PERF_LOST.search(line):
            return LostEvents(int(found[1] or found[2]))
        found = _PERF_CHUNKS.match(line)
        lost = int(found[1]) if found else 0
    else:
        if found := _FTRACE_LOST.match(line):
            return LostEvents(int(found[2] or 1), int(found[1]))
        found = _OVERRUN.match(line)
        lost = int(found[2]) - int(found[1]) if found else 0
        if found := _STATISTICS.match(line):
            lost = int(found[1])
    return LostEvents(lost, unknown_time=True) if lost > 0 else None
