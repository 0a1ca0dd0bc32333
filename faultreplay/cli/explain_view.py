"""`explain`: the stages of one fault after the other, under the recording and under each mechanism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.views.explain import Life, Other, Stage

MOST_OTHERS: Final = 4
"""Other faults named below a wait; JSON has all."""
_COLUMNS: Final = (
    Column("mechanism", "under"),
    Column("at_ns", "after", "ns"),
    Column("took_ns", "took", "ns"),
    Column("share", "share", "text", keep=5),
    Column("what", "what"),
)


def explain_report(trace: str, lives: Sequence[Life]) -> Report:
    """A table a fault; records are its stages, one each."""
    tables = [_one(trace, list(group)) for _, group in groupby(lives, key=lambda life: life.fault_id)]
    if not tables:
        return Report([], [], f"{trace}: no fault has an end: there is no life to tell", [])
    records = [record for table in tables for record in table.records]
    first, *further = tables
    words = ["after: from the fault's start; the stages of a fault add up to its stall"]
    if len({life.mechanism for life in lives}) == 1:
        words.append("-m NAME shows the same fault as it is replayed under a mechanism")
    return Report(
        records,
        first.columns,
        first.title,
        [*first.notes, *words],
        rows=first.rows,
        rules=first.rules,
        extra={"lives": [asdict(life) for life in lives]},
        further=further,
    )


def _one(trace: str, lives: list[Life]) -> Report:
    rows: list[dict[str, Any]] = []
    rules: set[int] = set()
    for life in lives:
        rows += _rows(life)
        rules.add(len(rows) - 1)
    records = [record for life in lives for record in _records(life)]
    fault = lives[0]
    page = "unknown" if fault.page is None else hex(fault.page)
    title = f"{trace}: fault {fault.fault_id}, {fault.who}, {fault.cause} {fault.access}, page {page}"
    return Report(records, _COLUMNS, title, [], rows=rows, rules=frozenset(rules))


def _rows(life: Life) -> Iterator[dict[str, Any]]:
    if life.stall_ns is None:
        yield {"mechanism": life.mechanism, "what": life.note, "share": "", "at_ns": "", "took_ns": ""}
        return
    at = f"{life.start_ns / 1e6:,.3f} ms"
    began = f"in all, from {at} on" if life.stall_ns else f"no stall, at {at}"
    yield {"mechanism": life.mechanism, "at_ns": "", "took_ns": life.stall_ns, "share": "", "what": began}
    for stage in life.stages:
        share = f"{100 * stage.took_ns / life.stall_ns:.0f} %" if life.stall_ns else ""
        yield {
            "mechanism": f"  {stage.word}",
            "at_ns": stage.at_ns,
            "took_ns": stage.took_ns,
            "share": share,
            "what": stage.what,
        }
        for words in _others(stage):
            yield {"mechanism": "", "at_ns": "", "took_ns": "", "share": "", "what": f"  {words}"}


def _others(stage: Stage) -> Iterator[str]:
    """Who had what a stage waited for, and who waited before."""
    for other in stage.held_by[:MOST_OTHERS]:
        until = "" if other.until_ns is None else f" until {_after(other.until_ns)}"
        yield f"with {_name(other)}{until}"
    if len(stage.held_by) > MOST_OTHERS:
        yield f"and {len(stage.held_by) - MOST_OTHERS} more"
    if stage.ahead:
        more = len(stage.ahead) - 1
        yield f"queued before: {_name(stage.ahead[0])}" + (f" and {more} more" if more else "")


def _name(other: Other) -> str:
    return f"fault {other.fault_id} ({other.who})" if other.fault_id >= 0 else f"a fault of {other.who}"


def _after(ns: int) -> str:
    return f"+{format_ns(ns)}" if ns >= 0 else f"-{format_ns(-ns)}"


def _records(life: Life) -> Iterator[dict[str, Any]]:
    base = {
        "fault_id": life.fault_id,
        "mechanism": life.mechanism,
        "who": life.who,
        "cause": life.cause,
        "access": life.access,
        "page": life.page,
        "start_ns": None if life.stall_ns is None and life.start_ns < 0 else life.start_ns,
        "stall_ns": life.stall_ns,
    }
    none = {"stage": None, "what": life.note, "word": "", "at_ns": None, "took_ns": None, "held_by": "", "ahead": ""}
    if not life.stages:
        yield base | none
    for number, stage in enumerate(life.stages):
        yield base | {
            "stage": number,
            "what": stage.what,
            "word": stage.word,
            "at_ns": stage.at_ns,
            "took_ns": stage.took_ns,
            "held_by": _ids(stage.held_by),
            "ahead": _ids(stage.ahead),
        }


def _ids(others: Sequence[Other]) -> str:
    """Numbers of faults; -1 stands for one that the recording has not."""
    return " ".join(str(other.fault_id) for other in others)
