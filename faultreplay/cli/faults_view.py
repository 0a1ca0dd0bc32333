"""`inspect --faults`, `--timeline` and `--top`: a trace's faults one by one, over time, by where they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.views.chosen import Choice, Chosen
    from faultreplay.analysis.views.timeline import Timeline
    from faultreplay.analysis.views.top import Top
    from faultreplay.faulttrace.store import Trace

_BAR: Final = 24

FAULTS: Final = (
    Column("fault_id", "fault", "count"),
    Column("at_ns", "at", "ns"),
    Column("who", "who"),
    Column("cause", "cause"),
    Column("access", "acc", keep=4),
    Column("page", "page", keep=7),
    Column("stall_ns", "stall", "ns"),
    Column("queue_ns", "queue", "ns", keep=6),
    Column("service_ns", "service", "ns", keep=6),
    Column("wake_ns", "wake", "ns", keep=6),
    Column("handler_tid", "handler", "count", keep=5),
    Column("resolution", "resolved", keep=3),
    Column("join", "joined by", keep=2),
)


def faults_report(trace: Trace, choice: Choice, chosen: Chosen, most: int | None) -> Report:
    """One row a fault; of many the table shows `most`."""
    shown = chosen.frame if most is None else chosen.frame.head(most)
    records = shown.to_dicts()
    rows = [
        record
        | {
            "who": f"vCPU {record['vcpu']}" if record["vcpu"] >= 0 else f"{record['accessor']} {record['tid']}",
            "page": _address(record["page"]) if record["granule"] else "unknown",
            "fault_id": str(record["fault_id"]),
            "at_ns": f"{record['at_ns'] / 1e6:,.3f} ms",
            "handler_tid": str(record["handler_tid"] or "-"),
        }
        for record in records
    ]
    notes = [] if trace.meta.clock.start_ns else ["when the recording began is not recorded: time 0 is its first fault"]
    notes += _left(chosen.frame.height, most, "faults") + _unjudged(chosen.unjudged)
    unended = chosen.frame["stall_ns"].null_count()
    if unended and unended == chosen.frame.height and trace.meta.origin == "synthetic":
        notes += _unended(trace, unended, unended)
    elif unended:
        notes.append(f"{unended:,} of them have no end: still stalled when the recording ended, or it was not seen")
    title = f"{trace.path}: {chosen.frame.height:,} of {chosen.of:,} faults{_of(choice)}"
    return Report(records, FAULTS, title, notes, rows=rows)


def timeline_report(trace: Trace, choice: Choice, line: Timeline) -> Report:
    """One row a step of time, with a bar."""
    records = line.steps.to_dicts()
    most = max((record["stalled"] for record in records), default=0)
    unended = any(record["unended"] for record in records)
    windows = any(record["windows"] for record in records)
    rows = [
        record
        | {
            "from_ns": f"{record['from_ns'] / 1e6:,.{_decimals(line.step_ns)}f} ms",
            "bar": "#" * round(_BAR * record["stalled"] / most) if most else "",
        }
        for record in records
    ]
    columns = [
        Column("from_ns", "from", "ns"),
        Column("faults", "faults", "count"),
        *([Column("unended", "no end", "count", keep=8)] if unended else []),
        Column("stall_ns", "stall", "ns"),
        Column("longest_ns", "longest", "ns", keep=6),
        Column("stalled", "stalled\nat once", "ratio"),
        *([Column("windows", "window", keep=7)] if windows else []),
        Column("bar", "", keep=4),
    ]
    notes = [
        "stall: what all threads together stood still within the step; at once: that, for each ns of it; "
        "longest: of the faults that began in it",
        *_unjudged(line.unjudged),
        *_unended(trace, int(line.steps["unended"].sum()), int(line.steps["faults"].sum())),
    ]
    faults, stall = int(line.steps["faults"].sum()), int(line.steps["stall_ns"].sum())
    words = (
        f"{faults:,} of {line.of:,} faults began, {format_ns(stall)} of stall, in steps of {format_ns(line.step_ns)}"
    )
    return Report(records, columns, f"{trace.path}: {words}{_of(choice)}", notes, rows=rows)


_TOP: Final[Mapping[str, Sequence[Column]]] = {
    "pages": (
        Column("page", "page"),
        Column("granule", "size", "bytes", keep=5),
        Column("threads", "threads", "count", keep=6),
    ),
    "ips": (
        Column("ip", "instruction"),
        Column("pages", "pages", "count", keep=6),
        Column("threads", "threads", "count", keep=6),
    ),
    "threads": (
        Column("tid", "thread"),
        Column("name", "name", keep=7),
        Column("role", "role"),
        Column("vcpu", "vCPU", keep=6),
        Column("pages", "pages", "count", keep=4),
        Column("served", "faults\nserved", "count", keep=6),
        Column("served_ns", "service\nof them", "ns", keep=5),
    ),
    "ranges": (
        Column("start", "from"),
        Column("size_bytes", "length", "bytes"),
        Column("name", "what"),
        Column("pages", "pages", "count", keep=6),
        Column("threads", "threads", "count", keep=4),
    ),
}
_SUMS: Final = (
    Column("faults", "faults", "count"),
    Column("stall_ns", "stall", "ns"),
    Column("share_percent", "share", "percent", keep=7),
    Column("longest_ns", "longest", "ns", keep=6),
    Column("causes", "causes", keep=3),
)
_KNOWN: Final = {
    "pages": "are on an unknown page",
    "ips": "have no instruction pointer",
    "ranges": "are on an unknown page",
}
_ONE: Final = {"pages": "pages", "ips": "instructions", "threads": "threads", "ranges": "ranges"}


def top_report(trace: Trace, by: str, choice: Choice, top: Top) -> Report:
    """One row a page, instruction, thread or range; the most stall first."""
    records = top.rows.to_dicts()
    several = top.rows["vm"].n_unique() > 1
    columns = [*([Column("vm", "process")] if several else []), *_TOP[by], *_SUMS]
    if top.unended:
        columns.insert(len(columns) - 1, Column("unended", "no end", "count", keep=8))
    rows = [{key: _shown(key, value) for key, value in record.items()} for record in records]
    notes = _left(top.groups, len(records), _ONE[by]) + _unjudged(top.unjudged)
    notes += _unended(trace, top.unended, top.chosen)
    if top.unknown:
        notes.append(f"{top.unknown:,} of {top.chosen:,} faults {_KNOWN[by]}: they are in no row")
    what = f"{top.groups:,} {_ONE[by]}, {top.chosen:,} of {top.of:,} faults, {format_ns(top.stall_ns)} of stall"
    return Report(records, columns if records else [], f"{trace.path}: {what}{_of(choice)}", notes, rows=rows)


def _shown(key: str, value: Any) -> Any:
    if key in ("page", "ip", "start"):
        return _address(value)
    if key in ("vcpu", "tid", "vm"):
        return str(value) if value is not None and value >= 0 else "-"
    return _short_name(value) if key == "name" else value


def _short_name(name: str) -> str:
    """The end of a long name, which is more specific than its beginning."""
    return name if len(name) <= 24 else f"...{name[-21:]}"


def _address(value: int | None) -> str:
    return "-" if value is None else hex(value)


def _decimals(step_ns: int) -> int:
    """Decimals of a millisecond needed to distinguish two steps."""
    return next((digits for digits in range(6) if step_ns % 10 ** (6 - digits) == 0), 6)


def _of(choice: Choice) -> str:
    return "".join(f"; {words}" for words in choice.words())


def _left(count: int, shown: int | None, what: str) -> list[str]:
    hidden = count - (count if shown is None else min(shown, count))
    return (
        [f"{hidden:,} more {what}: --limit says how many are shown, json, csv and parquet hold all"] if hidden else []
    )


def _unended(trace: Trace, count: int, of: int) -> list[str]:
    if count and count == of and trace.meta.origin == "synthetic":
        return ["the trace is synthetic: no stall was measured"]
    return [f"{count:,} of them have no end: their time is not counted"] if count else []


def _unjudged(count: int) -> list[str]:
    return [f"{count:,} faults without an end are left out: whether they are longer is not known"] if count else []
