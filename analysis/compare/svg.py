"""Cumulative distributions as inline SVG: no library, no script, readable in dark and light pages."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.faulttrace.plain_text import plain
from faultreplay.faulttrace.units import format_ns

# Okabe and Ito's colours: told apart by colour-blind readers too. Their black is the page's own ink, for what was
# measured. After the last one they begin again, dotted.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_DASHED, _DOTTED = ' stroke-dasharray="6 3"', ' stroke-dasharray="1.5 2.5"'
_LONGEST_LABEL = 48
_NARROW_LABEL = 30  # three of these fit beside each other
_POINTS: Final = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40


@dataclass(frozen=True)
class Curve:
    """One distribution: stalls in ns, in any order. `dashed` sets what was measured apart from predictions."""

    label: str
    stalls_ns: Ints
    dashed: bool = False


def cdf(curves: Sequence[Curve], *, width: int = 720, height: int = 320) -> str:
    """An `<svg>` of the share of stalls (vertical) that take at most so long (horizontal, logarithmic)."""
    shown = [c for c in curves if len(c.stalls_ns) and c.stalls_ns.max() > 0]
    if not shown:
        return "<p>No stalls to draw.</p>"
    low = max(min(int(c.stalls_ns[c.stalls_ns > 0].min()) for c in shown), 1)
    high = max(int(c.stalls_ns.max()) for c in shown)
    first, last = math.log10(low) - 0.05, math.log10(max(high, low + 1)) + 0.05
    wide, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(ns: float) -> float:
        return _LEFT + wide * (math.log10(max(ns, low)) - first) / (last - first)

    def y(share: float) -> float:
        return _TOP + tall * (1 - share)

    across = 3 if max(len(c.label) for c in shown) <= _NARROW_LABEL else 2
    parts = [
        f'<svg viewBox="0 0 {width} {height + 18 * math.ceil(len(shown) / across)}" role="img" '
        'aria-label="Cumulative distribution of stalls" xmlns="http://www.w3.org/2000/svg" font-size="11">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        parts.append(_line(_LEFT, y(share), width - _RIGHT, y(share), "0.15"))
        parts.append(_text(_LEFT - 6, y(share) + 4, f"{share:.0%}", "end"))
    for value in round_values(10**first, 10**last):
        at = x(value)
        parts.append(_line(at, _TOP, at, _TOP + tall, "0.15"))
        parts.append(_text(at, _TOP + tall + 16, format_ns(value).replace(".00", "").replace(".0 ", " "), "middle"))
    zeros = " (0 at the left edge)" if any((c.stalls_ns == 0).any() for c in shown) else ""
    parts.append(_text(_LEFT + wide / 2, _TOP + tall + 33, f"stall{zeros}", "middle"))
    drawn: list[str] = []
    predicted = 0
    for number, curve in enumerate(shown):
        if curve.dashed:
            colour, dash = "currentColor", _DASHED
        else:
            colour, dash = COLOURS[predicted % len(COLOURS)], _DOTTED if predicted >= len(COLOURS) else ""
            predicted += 1
        ranked = np.sort(curve.stalls_ns)
        shares = np.linspace(0, 1, _POINTS)
        points = " ".join(f"{x(quantile(ranked, q)):.1f},{y(q):.1f}" for q in shares)
        title = html.escape(plain(curve.label))
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}>'
            f"<title>{title}</title></polyline>"
        )
        column, row = number % across, number // across
        left, base = _LEFT + column * wide / across, height + 10 + 18 * row
        parts.append(f'<path d="M{left} {base - 4}h24" stroke="{colour}" stroke-width="2"{dash}/>')
        label = plain(curve.label)
        short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
        parts.append(_text(left + 30, base, html.escape(short), "start"))
    # The first curve lies on top: what was measured must not vanish under a prediction that meets it.
    return "".join([*parts, *reversed(drawn), "</svg>"])


def round_values(low: float, high: float) -> list[float]:
    """Round values within (low, high): powers of ten, or more of them where those are too few to read from."""
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, len(ticks) // 5 + (len(ticks) % 5 > 0))] if len(ticks) > 5 else ticks


def _line(x1: float, y1: float, x2: float, y2: float, opacity: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" stroke-opacity="{opacity}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{text}</text>'
