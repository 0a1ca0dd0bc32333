"""Windows: intervals with their own rule. Parsed from ``2s+50ms:freeze``, turned into rows the kernel reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS
from faultreplay.faulttrace.units import format_bytes, parse_duration_ns
from faultreplay.replay.engine import layout as o
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.stage import Amount

WINDOW_KINDS: Final = {
    "pause": "pause-only",
    "pause-only": "pause-only",
    "freeze": "freeze",
    "memslot-destroy": "memslot-destroy",
    "uffd-wp": "uffd-wp-freeze",
    "uffd-wp-freeze": "uffd-wp-freeze",
}
"""Kind of a window -> the mechanism whose rule it is."""


@dataclass(frozen=True)
class Window:
    """At `start_ns` from the beginning of the recording, memory is held still for `length_ns` of work."""

    start_ns: int
    length_ns: int
    kind: str = ""
    """whose rule holds inside, for mechanisms without a rule of their own; empty: none of them is touched"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """parameters of that kind's rule"""


def parse_window(text: str) -> Window:
    """`Window` from ``2s+50ms:freeze`` or ``2s+50ms``.

    Raises:
        UsageError: not of that form, or no such kind.
    """
    times, _, kind = text.partition(":")
    start, plus, length = times.partition("+")
    if not plus:
        raise UsageError(f"'{text}' is not a window: write START+LENGTH:KIND, as 2s+50ms:freeze")
    if kind and kind not in WINDOW_KINDS:
        raise UsageError(f"'{kind}' is no kind of window: they are {', '.join(WINDOW_KINDS)}")
    return Window(parse_duration_ns(start), parse_duration_ns(length), kind)


def rule_for(mechanism: Mechanism, window: Window) -> Mechanism | None:
    """Whose [window] rule holds: the mechanism's own, else that of the window's kind."""
    if mechanism.window is not None:
        return mechanism
    return load_mechanism(WINDOW_KINDS[window.kind]).with_params(window.settings) if window.kind else None


Bound = Sequence[tuple[Window, Mechanism]]
"""windows in order of time, each with the mechanism whose rule holds inside"""


def bound_by(mechanism: Mechanism, windows: Sequence[Window]) -> Bound:
    """The windows that hold for `mechanism`, with whose rule."""
    pairs = [(window, rule_for(mechanism, window)) for window in sorted(windows, key=lambda w: w.start_ns)]
    return [(window, rule) for window, rule in pairs if rule is not None and rule.window is not None]


def refill_bytes(bound: Bound, page_bytes: int) -> int:
    """What one fault maps again after a window emptied stage 2; 0 where none does. Several windows: the least."""
    rules = [(mechanism, mechanism.window) for _, mechanism in bound if mechanism.window]
    sizes = [
        page_bytes if rule.refill is None else mechanism.value(rule.refill)
        for mechanism, rule in rules
        if rule.empties_stage2
    ]
    return int(min(sizes, default=0))


def window_rows(
    bound: Bound, costs: Mapping[str, Cost], retouch: str, seed: int, used: dict[str, str]
) -> npt.NDArray[np.int64]:
    """A row for the kernel of each window."""
    rows: list[npt.NDArray[np.int64]] = []
    for window, mechanism in bound:
        rule = mechanism.window
        assert rule is not None, "bound_by keeps mechanisms with a rule"
        row = np.zeros(o.W_COLUMNS, np.int64)
        row[o.W_START], row[o.W_LENGTH] = window.start_ns, window.length_ns
        for index, (charges, fixed, per_page) in enumerate(
            ((rule.enter, o.W_ENTER, o.W_ENTER_PER_PAGE_PS), (rule.leave, o.W_LEAVE, o.W_LEAVE_PER_PAGE_PS))
        ):
            for number, charge in enumerate(charges):
                distribution = _distribution(mechanism, charge.cost, costs, used)
                if charge.per_touched_page:
                    row[per_page] += round(distribution.mean * 1000)
                else:
                    row[fixed] += _one(distribution, seed, len(rows) * 64 + index * 16 + number)
        row[o.W_RESUME] = _one(_distribution(mechanism, rule.resume or 0, costs, used), seed, len(rows) * 64 + 63)
        blocks, stops = rule.blocks, list(rule.stops)
        if retouch == "working-set":
            # upper bound: every accessor that may block is assumed to write at once
            stops += [kind for kind in blocks if kind == "vcpu"]
        row[o.W_STOPS] = _bits(stops)
        row[o.W_BLOCKS_ALL] = _bits(kind for kind, which in blocks.items() if which == "all")
        row[o.W_BLOCKS_WRITES] = _bits(kind for kind, which in blocks.items() if which == "write")
        row[o.W_EMPTIES] = int(rule.empties_stage2)
        row[o.W_RETOUCH] = int(retouch == "working-set")
        rows.append(row)
    for before, after in itertools.pairwise(rows):
        if before[o.W_START] + before[o.W_LENGTH] > after[o.W_START]:
            raise UsageError("two windows overlap: memory cannot be held still twice at once")
    return np.stack(rows) if rows else np.zeros((0, o.W_COLUMNS), np.int64)


def guarded(mechanism: Mechanism, kind: str) -> bool:
    """True when a write by this kind of accessor cannot happen inside the window."""
    rule = mechanism.window
    return rule is not None and (kind in rule.stops or kind in rule.blocks)


def _bits(kinds: Iterable[str]) -> int:
    wanted = set(kinds)
    return sum(1 << index for index, kind in enumerate(ACCESSORS) if kind in wanted)


def _one(distribution: Distribution, seed: int, number: int) -> int:
    if distribution.is_constant:
        return round(distribution.mean)
    return int(distribution.sample(1, seed * 1_000_003 + number)[0])


def _distribution(
    mechanism: Mechanism, operand: Amount, costs: Mapping[str, Cost], used: dict[str, str]
) -> Distribution:
    if not isinstance(operand, str):
        return Distribution.constant(operand)
    if is_expression(operand):
        return Distribution.constant(mechanism.value(operand))
    if operand in COST_NAMES:
        if operand not in costs:
            raise UsageError(f"{mechanism.name} charges '{operand}', for which the cost table has no value")
        used[operand] = costs[operand].provenance
        return costs[operand].distribution
    return Distribution.constant(parse_duration_ns(operand))


def window_words(mechanism: Mechanism) -> str:
    """What a mechanism's [window] rule says, as a sentence."""
    rule = mechanism.window
    if rule is None:
        return ""
    parts = [rule.says.rstrip(".") or "a window of its own"]
    if rule.enter:
        parts.append(f"enter: {' + '.join(map(str, rule.enter))}")
    if rule.leave:
        parts.append(f"leave: {' + '.join(map(str, rule.leave))}")
    if rule.stops:
        then = "" if rule.resume is None else f", then {rule.resume}"
        parts.append(f"does not run: {', '.join(rule.stops)}{then}")
    if rule.blocks:
        parts.append("waits for the end: " + ", ".join(f"{kind} ({which})" for kind, which in rule.blocks.items()))
    if rule.empties_stage2:
        parts.append("stage2 is empty afterwards")
        if rule.refill is not None:
            parts.append(f"one fault maps {format_bytes(int(mechanism.value(rule.refill)))} again")
    open_to = [kind for kind in ACCESSORS if not guarded(mechanism, kind)]
    parts.append(f"writes not stopped (hazards): {', '.join(open_to)}" if open_to else "no write gets through")
    return "; ".join(parts)
