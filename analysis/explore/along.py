"""The rows of one comparison along one axis: a sweep of one trace in this process, for a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from faultreplay.analysis.compare.alike import left_out, question_of
from faultreplay.analysis.compare.predict import run
from faultreplay.analysis.compare.served import why_no_row
from faultreplay.analysis.explore.axes import Axis, costs_at, part_of, settings_at
from faultreplay.analysis.explore.crossover import REFERENCES, Values

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case

POINTS: Final = 9
_DIGITS: Final = 3


def fetch_axis(case: Case) -> Axis:
    """Fetch from a tenth to ten times what the trace's costs say; from 1 us to 1 ms where they say nothing."""
    costs = case.costs()
    mean = costs["fetch"].distribution.mean if "fetch" in costs else 0.0
    low, high = (mean / 10, mean * 10) if mean >= 100 else (1e3, 1e6)
    values = (low * (high / low) ** (n / (POINTS - 1)) for n in range(POINTS))
    return Axis("", "fetch", "ns", tuple(float(f"{value:.{_DIGITS}g}") for value in values))


def along(case: Case, mechanisms: Sequence[str], axis: Axis) -> tuple[Values, dict[str, str]]:
    """Total stall, ns, of each mechanism at each value of `axis`, all else as in the comparison; the first seed.

    Mechanisms without numbers for the trace, references and those with windows of their own are left out; and those
    that leave out what another one does, which are returned beside the numbers with what that is.
    """
    loaded = [case.load(name) for name in mechanisms if name not in REFERENCES]
    choices = [m for m in loaded if m.window is None and not why_no_row(case, m)]
    unranked = left_out({m.name: question_of(case.read, m) for m in choices})
    choices = [m for m in choices if m.name not in unranked]
    costs = case.costs()
    points = [((axis.key, value),) for value in axis.values]

    def total(cell: tuple[int, int]) -> float:
        mechanism, point = choices[cell[0]], part_of(points[cell[1]], [axis], choices[cell[0]].name)
        varied = mechanism.with_params(settings_at(point, [axis]))
        table = costs_at(costs, point, [axis])
        return float(run(case.read, varied, table, case.setup, case.windows_of(varied.name)).total_stall_ns)

    cells = [(m, p) for m in range(len(choices)) for p in range(len(points))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        totals = dict(zip(cells, pool.map(total, cells), strict=True))
    values: Values = {point: {m.name: totals[n, p] for n, m in enumerate(choices)} for p, point in enumerate(points)}
    return values, unranked
