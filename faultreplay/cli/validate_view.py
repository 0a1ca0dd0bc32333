"""Validation as reports: one prediction in full, or a matrix by summary and cell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import Column, Report, format_cell
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.judge.bootstrap import Interval
    from faultreplay.analysis.judge.cells import Cell, Summary
    from faultreplay.analysis.judge.judge import Errors
    from faultreplay.analysis.judge.matrix import Matrix

_LINES: Final = (
    ("total", "total stall"),
    ("mean", "mean stall"),
    ("p50", "p50"),
    ("p90", "p90"),
    ("p99", "p99"),
    ("run_time", "run time"),
    ("last_touch", "last first touch"),
)
ONE: Final = (
    Column("what", ""),
    Column("predicted", "predicted", "ns"),
    Column("measured", "measured", "ns"),
    Column("error", "error", "error"),
    Column("bounds", "95 % interval", "text", keep=5),
    Column("floor", "A/A floor", "error"),
)
PAIRS: Final = (
    Column("source_mechanism", "costs and\naccesses from"),
    Column("mechanism", "predicted and\nmeasured"),
    Column("cells", "cells", "count", keep=8),
    Column("median", "median\n|error|", "percent"),
    Column("worst", "worst\nerror", "error"),
    Column("floor_median", "median\n|A/A|", "percent"),
    Column("floor_worst", "worst\nA/A", "error"),
    Column("last_median", "|error| of\nlast touch", "percent", keep=7),
    Column("floor_last_median", "its\n|A/A|", "percent", keep=6),
)
CELLS: Final = (
    Column("source_mechanism", "from"),
    Column("mechanism", "to"),
    Column("group", "cell", keep=8),
    Column("total_error_percent", "total", "error"),
    Column("floor_total_error_percent", "A/A", "error"),
    Column("p50_error_percent", "p50", "error", keep=5),
    Column("p90_error_percent", "p90", "error", keep=3),
    Column("p99_error_percent", "p99", "error", keep=4),
    Column("wasserstein_percent_of_mean", "dist.", "percent", keep=3),
    Column("run_time_error_percent", "run\ntime", "error", keep=5),
    Column("last_touch_error_percent", "last\ntouch", "error", keep=6),
    Column("floor_last_touch_error_percent", "its\nA/A", "error", keep=2),
)


def one(cell: Cell) -> Report:
    """One prediction: line by line what was predicted, what was measured, how far off, how far off a repeat is."""
    rows: list[dict[str, Any]] = [
        {
            "what": "faults",
            "predicted": f"{cell.predicted.faults:,}",
            "measured": f"{cell.measured.faults:,}",
            "error": "",
        }
        | {"bounds": "", "floor": ""}
    ]
    for key, title in _LINES:
        rows.append(
            {
                "what": title,
                "predicted": getattr(cell.predicted, key),
                "measured": getattr(cell.measured, key),
                "error": getattr(cell.errors, key),
                "bounds": _bounds(cell.intervals.get(key)),
                "floor": getattr(cell.floor, key) if cell.floor else None,
            }
        )
    if cell.predicted.held or cell.measured.held:
        rows.append(_line("held in windows", cell.predicted.held, cell.measured.held))
        rows.append(_line("vCPUs held", f"{cell.predicted.held_accessors}", f"{cell.measured.held_accessors}"))
    if cell.measured.startup or cell.predicted.startup:
        rows.append(_line("start-up", cell.predicted.startup, cell.measured.startup))
    if cell.measured.brought:
        rows += _prefetched(cell)
    if cell.measured.refaults or (cell.bounds and cell.bounds[1].refaults):
        rows.append(_line("refaults", f"{cell.predicted.refaults:,}", f"{cell.measured.refaults:,}"))
        rows.append(_line("their stall", cell.predicted.refault, cell.measured.refault))
    rows.append(
        {
            "what": "distance / mean",
            "predicted": "",
            "measured": "",
            "error": format_cell(cell.errors.wasserstein, "percent"),
            "bounds": "",
            "floor": format_cell(cell.floor.wasserstein, "percent") if cell.floor else None,
        }
    )
    return Report(
        records=[cell.as_record()],
        columns=ONE,
        rows=rows,
        title=f"{cell.source} ({cell.source_mechanism}) -> {cell.target} ({cell.mechanism})",
        notes=[
            _floor_words(cell),
            *_cost_words(cell),
            *([f"{cell.simulated_percent:.1f} % of the predicted faults are simulated, the rest as recorded"]
              if cell.simulated_percent < 99.95 else []),
            *_held_words(cell),
            *cell.notes,
        ],
    )  # fmt: skip


PARTS: Final = (
    Column("what", "predictions"),
    Column("cells", "number", "count"),
    Column("median", "median\n|error|", "percent"),
    Column("worst", "worst", "percent"),
    Column("floor_median", "median\n|A/A|", "percent"),
    Column("floor_worst", "worst\nA/A", "percent", keep=6),
    Column("p50_median", "|error|\nof p50", "percent", keep=5),
    Column("floor_p50_median", "|A/A|\nof p50", "percent", keep=4),
    Column("reached_percent", "reached", "percent"),
    Column("within_worst_percent", "within", "percent"),
    Column("last_median", "|error| of\nlast touch", "percent", keep=7),
    Column("floor_last_median", "its\n|A/A|", "percent", keep=3),
)


def matrix(whole: Matrix, *, shown: str) -> Report:
    """A line for each ordered pair of mechanisms, each cell, or each part; pairs and cells hold every cell as data."""
    if shown == "parts":
        from faultreplay.analysis.judge.cells import WANTED_FLOORS, WANTED_PERCENT, WANTED_WORST_PERCENT

        rows = [dict(s.__dict__) for s in whole.summaries()]
        reached = (
            f"reached: error at most {WANTED_PERCENT:g} %, or {WANTED_FLOORS:g} times the A/A of the same cell; "
            f"within: the same with {WANTED_WORST_PERCENT:g} %"
        )
        notes = [reached, *_how(whole.cells), *whole.left_out()]
        return Report(records=rows, columns=PARTS, rows=rows, title=_matrix_title(whole), notes=notes)
    each = shown == "cells"
    cells = sorted(whole.cells, key=lambda c: (c.mechanism, c.source_mechanism, c.group))
    rows = [c.as_record() for c in cells] if each else _pairs(cells)
    first = [n for n, row in enumerate(rows) if n and row["mechanism"] != rows[n - 1]["mechanism"]]
    return Report(
        records=[c.as_record() for c in cells],
        columns=CELLS if each else PAIRS,
        rows=rows,
        rules=frozenset(n - 1 for n in first),
        title=_matrix_title(whole),
        notes=[_over_all(s) for s in whole.summaries()[:3]] + [*_how(whole.cells), ALSO, *whole.left_out()],
        extra={"summary": [dict(s.__dict__) for s in whole.summaries()]},
    )


def _matrix_title(whole: Matrix) -> str:
    runs = max((c.runs for c in whole.cells), default=1)
    each = f", each the median of {runs} repeats" if runs > 1 else ""
    return f"{len(whole.cells)} predictions of total stall: accesses and costs from side A, judged on side B{each}"


def _how(cells: Sequence[Cell]) -> list[str]:
    """What the errors of these cells are, where that is not plain."""
    bounded = sum(c.bounds is not None for c in cells)
    words = [
        f"{bounded} predictions are bounds (a trace does not show what is touched again): their error is the distance "
        "from the nearest bound"
    ]
    pinned = "the lab's threads were pinned: host CPUs are a resource, scheduled as by EEVDF"
    return words * bool(bounded) + [pinned] * any(c.cpus for c in cells)


def _pairs(cells: list[Cell]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.beyond_percent is not None:
            groups.setdefault((cell.source_mechanism, cell.mechanism), []).append(cell)
    rows = []
    for (source, target), some in groups.items():
        errors = [e for c in some if (e := c.beyond_percent) is not None]
        floors = [c.floor.total for c in some if c.floor and c.floor.total is not None]
        rows.append(
            {
                "source_mechanism": source,
                "mechanism": target,
                "cells": len(some),
                "median": median(map(abs, errors)),
                "worst": max(errors, key=abs),
                "floor_median": median(map(abs, floors)) if floors else None,
                "floor_worst": max(floors, key=abs, default=None),
                "last_median": median(last) if (last := _last_touches([c.errors for c in some])) else None,
                "floor_last_median": median(last) if (last := _last_touches([c.floor for c in some])) else None,
            }
        )
    return rows


def _last_touches(errors: Sequence[Errors | None]) -> list[float]:
    return [abs(one.last_touch) for one in errors if one and one.last_touch is not None]


ALSO: Final = "by vCPUs, fetch, workload and mechanism: --show parts"


def _over_all(s: Summary) -> str:
    """Median and worst of a part of the matrix."""
    floor = "" if s.floor_median is None or s.floor_worst is None else (
        f"; A/A floor median {s.floor_median:.1f} %, worst {s.floor_worst:.1f} %"
    )  # fmt: skip
    last = "" if s.last_median is None else f"; of the last first touch: median {s.last_median:.1f} %"
    last += "" if s.last_median is None or s.floor_last_median is None else f", A/A {s.floor_last_median:.1f} %"
    return (
        f"{s.what}: {s.cells} cells, |error of total stall| median {s.median:.1f} %, worst {s.worst:.1f} %{floor}{last}"
    )


def _line(what: str, predicted: Any, measured: Any) -> dict[str, Any]:
    from faultreplay.analysis.judge.judge import relative_percent

    numbers = isinstance(predicted, int) and isinstance(measured, int)
    error = relative_percent(predicted, measured) if numbers else ""
    return {"what": what, "predicted": predicted, "measured": measured, "error": error, "bounds": "", "floor": ""}


def _prefetched(cell: Cell) -> list[dict[str, Any]]:
    """What a prefetch left to be brought on demand, and what of its pages nobody touched."""
    from faultreplay.analysis.judge.judge import relative_percent

    one, other = cell.predicted, cell.measured
    pairs = {
        "faults left": (one.left, other.left, f"{one.left:,}", f"{other.left:,}"),
        "prefetched in vain": (one.unused, other.unused, _share(one.waste), _share(other.waste)),
    }
    return [
        {"what": what, "predicted": predicted, "measured": measured, "error": relative_percent(a, b), "bounds": ""}
        | {"floor": ""}
        for what, (a, b, predicted, measured) in pairs.items()
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _bounds(interval: Interval | None) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f} %" if interval else "-"


def _floor_words(cell: Cell) -> str:
    return f"A/A floor: {cell.floor_is}" if cell.floor else "A/A floor: not measured (--again B2.trace gives one)"


def _held_words(cell: Cell) -> list[str]:
    if not cell.bounds:
        return []
    low, high = cell.bounds
    words = [
        f"held in windows: {format_ns(low.held)} if only first touches wait, {format_ns(high.held)} if all memory is "
        "touched again at once; quantiles are of stalls outside windows"
    ]
    if high.refaults:
        words.append(
            f"refaults: {low.refaults:,} ({format_ns(low.refault)}) if nothing is touched again, {high.refaults:,} "
            f"({format_ns(high.refault)}) if everything is"
        )
    return words


def _cost_words(cell: Cell) -> list[str]:
    from faultreplay.analysis.compare.sources import TRACE, CostSource, words_of

    by_source: dict[CostSource, list[str]] = {}
    for name, source in sorted(cell.costs.items()):
        by_source.setdefault(source, []).append(name)
    return [
        f"{f'costs from {cell.source}' if source == TRACE else words_of(source)}: {', '.join(names)}"
        for source, names in by_source.items()
    ]
