"""A table cut to what somebody wants to see: some columns, sorted by one, several traces in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from faultreplay.cli.render import SPAN, Column, Record, Report
from faultreplay.faulttrace.errors import UsageError, nearest

_TRACE: Final = Column("trace", "trace")


def columns_of(text: str, known: Sequence[Column]) -> list[Column]:
    """The columns named in `total-stall,p50`: by the words of their title, or by their field; never left out.

    Raises:
        UsageError: there is no such column.
    """
    chosen = []
    for name in (part.strip() for part in text.split(",")):
        column = _find(name, known, "--columns")
        if column not in chosen:
            chosen.append(column)
    return [replace(column, keep=9) for column in chosen]


def sort_key(text: str, known: Sequence[Column]) -> tuple[str, bool]:
    """(field, whether the greatest comes first) of `p99` or `-p99`.

    Raises:
        UsageError: there is no such column.
    """
    return _find(text.removeprefix("-"), known, "--sort").key, text.startswith("-")


def word(column: Column) -> str:
    """A column's title as one writes it on a command line: `total-stall`."""
    return column.title.replace("-\n", "").replace("\n", "-").replace(" ", "-").lower()


def with_columns(report: Report, chosen: Sequence[Column]) -> Report:
    """`report` with its first column and the chosen ones."""
    first = [column for column in report.columns[:1] if column.key not in {c.key for c in chosen}]
    return replace(report, columns=[*first, *chosen])


def with_order(report: Report, key: str, descending: bool) -> Report:
    """`report` with its rows in order of the field `key`; what is indented stays below its row, words come last."""
    groups = _groups(report)
    predicted = [record for record in report.records if record.get("row") != "measured"]
    numbers = {str(record.get("mechanism")): record.get(key) for record in predicted}

    def place(group: Sequence[Record]) -> tuple[int, float]:
        name = str(group[0].get("mechanism")).removesuffix(" *")
        value = numbers.get(name, group[0].get(key))
        if name == "measured":
            return (-1, 0.0)
        if not isinstance(value, int | float):
            return (1, 0.0)
        return (0, -value if descending else value)

    groups.sort(key=place)
    return _from_groups(report, groups, ruled=bool(report.rules))


def together(reports: Sequence[tuple[str, Report]]) -> Report:
    """Tables of several traces as one: each row with its trace, and words that do not hold for all with it too.

    Args:
        reports: (name of the trace, its table).
    """
    first = reports[0][1]
    rows: list[dict[str, Any]] = []
    rules = set()
    columns = {column.key: column for _, report in reports for column in report.columns}
    ordered = sorted(columns.values(), key=lambda column: _place(column, reports))
    for name, report in reports:
        for row in _rows(report):
            shown = {**row, "trace": name}
            if SPAN in shown:
                shown[SPAN] = f"{row.get('mechanism')}: {row[SPAN]}"
            rows.append(shown)
        rules.add(len(rows) - 1)
    return replace(
        first,
        title="; ".join(report.title for _, report in reports),
        records=[{"trace": name, **record} for name, report in reports for record in report.records],
        columns=[_TRACE, *ordered],
        lead=_of_all([(name, report.lead) for name, report in reports]),
        notes=_of_all([(name, report.notes) for name, report in reports]),
        made_of={"trace": ", ".join(str(report.made_of.get("trace")) for _, report in reports)}
        | {key: value for key, value in first.made_of.items() if key != "trace"},
        rows=rows,
        rules=frozenset(rules),
        further=[replace(more, title=f"{name}: {more.title}") for name, report in reports for more in report.further],
        extra={"traces": {name: dict(report.extra) for name, report in reports}},
    )


def _rows(report: Report) -> Sequence[Record]:
    return report.records if report.rows is None else report.rows


def _place(column: Column, reports: Sequence[tuple[str, Report]]) -> int:
    """How far to the right a column stands in any of the tables: all have one order, and some lack columns."""
    orders = [[other.key for other in report.columns] for _, report in reports]
    return max(keys.index(column.key) for keys in orders if column.key in keys)


def _of_all(words: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """What is said of every trace once, the rest with the trace's name."""
    said = [line for _, lines in words for line in dict.fromkeys(lines)]
    everywhere = [line for line in dict.fromkeys(said) if said.count(line) == len(words)]
    return [f"{name}: {line}" for name, lines in words for line in lines if line not in everywhere] + everywhere


def _find(name: str, known: Sequence[Column], option: str) -> Column:
    for column in known:
        if name in (column.key, word(column)):
            return column
    words = [word(column) for column in known]
    hint = nearest(name, [*words, *(column.key for column in known)])
    raise UsageError(f"{option} {name}: no such column:{hint} there are {', '.join(words)}")


def _groups(report: Report) -> list[list[Record]]:
    groups: list[list[Record]] = []
    for row in report.rows or ():
        if groups and str(row.get("mechanism")).startswith(" "):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _from_groups(report: Report, groups: Sequence[Sequence[Record]], *, ruled: bool) -> Report:
    ends, count = set(), 0
    for group in groups:
        count += len(group)
        ends.add(count - 1)
    return replace(report, rows=[row for group in groups for row in group], rules=frozenset(ends if ruled else ()))
