"""Predicted against measured quantiles as a picture. Needs the extra `plot` (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.analysis.picture.ticks import round_values
from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature
from faultreplay.faulttrace.plain_text import plain
from faultreplay.faulttrace.units import format_ns

MARKS: Final = ((0.5, "p50", "o"), (0.9, "p90", "s"), (0.99, "p99", "^"))
MOST_PANELS: Final = 36
_BAND = 0.10  # the error that issue and docs call good


@dataclass(frozen=True)
class Panel:
    """One prediction: stalls in ns. `again` is a second measurement of the same (the A/A floor)."""

    title: str
    predicted_ns: Ints
    measured_ns: Ints
    again_ns: Ints | None = None


def quantile_plot(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG with a panel a prediction: quantile against quantile, both axes logarithmic.

    Raises:
        MissingFeature: no matplotlib.
        FaultreplayError: nothing to draw, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingFeature("a plot needs matplotlib: pip install 'faultreplay[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = [p for p in panels if (p.predicted_ns > 0).any() and (p.measured_ns > 0).any()][:MOST_PANELS]
    if not drawn:
        raise FaultreplayError("nothing to plot: no prediction has stalls on both sides")
    across = min(4, math.ceil(math.sqrt(len(drawn))))
    down = math.ceil(len(drawn) / across)
    size = (max(3.4 * across, 5.6), 3.5 * down + 0.7)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, drawn, strict=False):
        _draw(axis, panel)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_visible(False)
    figure.supxlabel("measured stall", fontsize=10)
    figure.supylabel("predicted stall", fontsize=10)
    handles, labels = _legend(axes.flat[: len(drawn)])
    compact = {"fontsize": 8, "columnspacing": 1.2, "handlelength": 1.4}
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, **compact)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise FaultreplayError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _draw(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    measured, predicted = np.sort(panel.measured_ns), np.sort(panel.predicted_ns)
    shares = np.linspace(0.002, 0.998, 250)
    x = np.array([max(quantile(measured, q), 1) for q in shares], dtype=np.float64)
    y = np.array([max(quantile(predicted, q), 1) for q in shares], dtype=np.float64)
    ends = [x, y]
    if panel.again_ns is not None and len(panel.again_ns):
        again = np.sort(panel.again_ns)
        z = np.array([max(quantile(again, q), 1) for q in shares], dtype=np.float64)
        axis.plot(x, z, color="0.55", lw=1.6, ls=":", label="measured again")
        ends.append(z)
    low, high = min(e.min() for e in ends) / 1.3, max(e.max() for e in ends) * 1.3
    line = np.array([low, high])
    axis.fill_between(line, line * (1 - _BAND), line * (1 + _BAND), color="0.9", lw=0, label="±10 %")
    axis.plot(line, line, color="0.4", lw=0.8)
    axis.plot(x, y, color="tab:blue", lw=1.6, label="predicted")
    for q, name, mark in MARKS:
        point = max(quantile(measured, q), 1), max(quantile(predicted, q), 1)
        axis.plot(*point, mark, color="tab:red", ms=5, label=name, ls="none")
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set_title("\n".join(map(_label, panel.title.split("\n"))), fontsize=9)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(FixedLocator(round_values(low, high)))
        one.set_major_formatter(FuncFormatter(lambda ns, _: format_ns(ns).replace(".00", "").replace(".0 ", " ")))
        one.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=7)


def _legend(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _label(words: str) -> str:
    """As text: matplotlib reads text between two dollar signs as mathematics."""
    return plain(words).replace("$", r"\$")
