"""A mechanism's path as an SVG ladder: the accessor's lane, the others' lane, and the words of each stage."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping

from faultreplay.cli.models_view import path_steps
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.mechanism import Mechanism

_ACCESSOR, _OTHER, _WORDS = 40, 120, 160  # x of the lanes and of the words
_LINE, _GAP = 17, 9
_COLUMNS = 78


def ladder(mechanism: Mechanism, path: str, costs: Mapping[str, Cost]) -> str:
    """One path. Full line: it runs; broken line: it sleeps; a dot: it works at this stage; an arrow: it is woken."""
    parts: list[str] = []
    y = 30
    for step in path_steps(mechanism, path, costs):
        words = textwrap.wrap(step.words, _COLUMNS) or [""]
        says = textwrap.wrap(step.says, _COLUMNS)
        height = _LINE * (len(words) + len(says)) + _GAP
        middle = y + _LINE / 2 + 2
        asleep = step.accessor in ("┆", "╵")
        parts.append(_lane(_ACCESSOR, y, height, broken=asleep))
        if step.other:
            parts.append(_lane(_OTHER, y, height, broken=False))
        at = _OTHER if step.other in ("├", "┌", "└") else _ACCESSOR if step.accessor in ("├", "╵") else 0
        if at:
            parts.append(f'<circle cx="{at}" cy="{middle}" r="4" class="dot"/>')
        if step.accessor.startswith("╷◀"):
            parts.append(f'<path d="M{_OTHER} {middle}H{_ACCESSOR + 5}" class="lane" marker-end="url(#arrow)"/>')
        for number, line in enumerate([*words, *says]):
            kind = "words" if number < len(words) else "says"
            text = html.escape(line)
            parts.append(f'<text x="{_WORDS}" y="{y + _LINE * (number + 1) - 3}" class="{kind}">{text}</text>')
        y += height
    title = html.escape(f"{mechanism.title}: what a fault of class {path} goes through")
    return (
        f'<div class="ladder"><svg class="ladder" viewBox="0 0 780 {y + 6}" role="img" aria-label="{title}">'
        '<defs><marker id="arrow" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        '<path d="M0 0L6 3L0 6z" class="dot"/></marker></defs>'
        f'<text x="{_ACCESSOR}" y="18" class="head">accessor</text><text x="{_OTHER}" y="18" class="head">others</text>'
        f"{''.join(parts)}</svg></div>"
    )


def _lane(x: int, y: float, height: float, *, broken: bool) -> str:
    return f'<path d="M{x} {y}V{y + height}" class="lane{" asleep" if broken else ""}"/>'
