"""The curves of a sweep: what each mechanism comes to along an axis, and who is best on a grid of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from faultreplay.analysis.explore.axes import Axis
from faultreplay.analysis.explore.crossover import REFERENCES, Values, excess
from faultreplay.faulttrace.plain_text import plain

_CURVES: Final = {
    "mechanism": pl.String,
    "at": pl.Float64,
    "value": pl.String,
    "number": pl.Float64,
    "others": pl.String,
}
_BEST: Final = {
    "x": pl.Float64,
    "x_value": pl.String,
    "y": pl.Float64,
    "y_value": pl.String,
    "best": pl.String,
    "number": pl.Float64,
    "excess_percent": pl.Float64,
}


def curves(axis: Axis, axes: Sequence[Axis], values: Values) -> pl.DataFrame:
    """What each mechanism comes to along `axis`.

    Args:
        axis: one of `axes`.
        axes: all that vary.
        values: point of the grid -> mechanism -> the number by which mechanisms are ranked, as of `crossings`.

    Returns:
        `mechanism`, `at` (value of the axis), `value` (the same with its unit), `number` (as in `values`), `others`
        (the values of the other axes in words; empty: there is none). References are left out. In order of mechanism
        as first met, `others` as first met, `at`.
    """
    others = [one for one in axes if one.key != axis.key]
    rows = []
    for point, at in values.items():
        here = dict(point)
        words = ", ".join(f"{one.key}={one.show(here[one.key])}" for one in others)
        rows += [
            (plain(name), here[axis.key], axis.show(here[axis.key]), float(number), words)
            for name, number in at.items()
            if name not in REFERENCES
        ]
    order = {name: place for place, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    place = {words: n for n, words in enumerate(dict.fromkeys(row[4] for row in rows))}
    rows.sort(key=lambda row: (order[row[0]], place[row[4]], row[1]))
    return pl.DataFrame(rows, schema=_CURVES, orient="row")


def best_on_grid(across: Axis, up: Axis, values: Values) -> pl.DataFrame:
    """The best mechanism at each point of a grid of two axes; further axes must not vary in `values`.

    Columns: `x`, `y` (values of `across` and `up`), `x_value`, `y_value` (with their units), `best`, `number` (its
    own), `excess_percent` (of the worst over the best; null: fewer than two have a number).
    """
    rows: list[tuple[object, ...]] = []
    for point, at in values.items():
        choice = {name: number for name, number in at.items() if name not in REFERENCES}
        if not choice:
            continue
        here, over = dict(point), excess(at)
        best = min(choice, key=lambda name: (choice[name], name))
        places = [part for axis in (across, up) for part in (here[axis.key], axis.show(here[axis.key]))]
        rows.append((*places, plain(best), float(choice[best]), None if over is None or over > 1e6 else 100 * over))
    return pl.DataFrame(rows, schema=_BEST, orient="row")
