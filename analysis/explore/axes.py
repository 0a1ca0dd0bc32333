"""What a sweep varies: parsed from ``uffd-missing.handlers=1,2,4`` and ``fetch=10us..1ms:7``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.units import format_bytes, format_ns, parse_duration_ns, parse_size_bytes
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import Param, load_mechanism
from faultreplay.replay.language.names import COST_NAMES, current_name
from faultreplay.replay.language.reading import counts_things

DEFAULT_POINTS: Final = 9
MOST_POINTS: Final = 1000
MOST_CELLS: Final = 1_000_000
_RANGE = re.compile(r"(?P<low>.+?)\.\.(?P<high>.+?)(?::(?P<points>\d{1,9}))?")

Unit = Literal["ns", "bytes", "factor", "number"]


@dataclass(frozen=True)
class Axis:
    """One thing that varies: a cost by `name`, or the parameter `name` of `mechanism`."""

    mechanism: str
    """empty: a cost, which all mechanisms share"""
    name: str
    unit: Unit
    """of `values`; ``factor``: times what the cost was"""
    values: tuple[float, ...]

    @property
    def key(self) -> str:
        """As the user writes it: ``uffd-missing.handlers`` or ``fetch``; a mechanism of a file by the file's stem."""
        return f"{stem_of(self.mechanism)}.{self.name}" if self.mechanism else self.name

    def touches(self, mechanism: str) -> bool:
        """Whether `mechanism` is another one at another value of this axis."""
        return self.mechanism in ("", mechanism)

    def show(self, value: float) -> str:
        """A value with its unit."""
        match self.unit:
            case "ns":
                return format_ns(value)
            case "bytes":
                return format_bytes(value)
            case "factor":
                return f"x{value:.3g}"
        return f"{value:.3g}"


Point = tuple[tuple[str, float], ...]
"""Values of some axes by key, in the order of the axes."""


def parse_axis(text: str, mechanisms: Sequence[str]) -> Axis:
    """``NAME=VALUES``; values are a list, or LOW..HIGH[:POINTS] at even ratios.

    A cost takes durations (a constant in place of its distribution) or factors (``x0.5``: the distribution, stretched).
    A parameter takes what its unit says and stays within its bounds.

    Raises:
        UsageError: not of that form; no such cost, parameter or mechanism in this sweep; a value out of bounds.
    """
    key, equals, values = text.partition("=")
    key = current_name(key.strip(), f"--vary {text}")
    if not equals or not values.strip():
        raise UsageError(f"--vary {text}: write NAME=VALUES, as uffd-missing.handlers=1,2,4 or fetch=10us..1ms:7")
    if key in COST_NAMES:
        unit: Unit = "factor" if re.match(r"\s*x\d", values) else "ns"
        return Axis("", key, unit, _values(text, values, unit, None))
    mechanism, dot, name = key.rpartition(".")
    if mechanism.endswith(".fallback"):
        mechanism, name = mechanism.removesuffix(".fallback"), f"fallback.{name}"
    if not dot:
        known = f"{nearest(key, COST_NAMES)} they are {', '.join(COST_NAMES)}"
        raise UsageError(f"--vary {text}: '{key}' is no cost:{known}; or MECHANISM.PARAMETER")
    mechanism = next((one for one in mechanisms if mechanism in (one, stem_of(one))), mechanism)
    if mechanism not in mechanisms:
        raise UsageError(f"--vary {text}: '{mechanism}' is not in this sweep: -m {','.join(mechanisms)}")
    name = name.replace("-", "_")
    loaded = load_mechanism(mechanism)
    param = loaded.params.get(name)
    for other in loaded.fallback.values() if name.startswith("fallback.") else ():
        param = param or other.params.get(name.removeprefix("fallback."))
    if param is None:
        known = f"{nearest(name, loaded.params)} it has {', '.join(loaded.params) or 'none'}"
        raise UsageError(f"--vary {text}: {mechanism} has no parameter '{name}':{known}")
    unit = "ns" if param.unit == "ns" else "bytes" if param.unit.startswith("bytes") else "number"
    axis = Axis(mechanism, name, unit, _values(text, values, unit, param))
    for value in axis.values:
        loaded.with_params({name: value})
    return axis


def stem_of(mechanism: str) -> str:
    """A file's stem; the name of a shipped mechanism as it is."""
    return mechanism.rsplit("/", 1)[-1].removesuffix(".toml")


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values; one empty point without axes."""
    keys = [axis.key for axis in axes]
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_CELLS:
        raise UsageError(f"--vary: {count:,} combinations: at most {MOST_CELLS:,}")
    return [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def part_of(point: Point, axes: Sequence[Axis], mechanism: str) -> Point:
    """What of `point` makes a difference to `mechanism`."""
    touching = {axis.key for axis in axes if axis.touches(mechanism)}
    return tuple(item for item in point if item[0] in touching)


def settings_at(point: Point, axes: Sequence[Axis]) -> dict[str, float]:
    """Parameters (of the one mechanism that `point` was cut for) by name."""
    by_key = {axis.key: axis for axis in axes}
    return {by_key[key].name: value for key, value in point if by_key[key].mechanism}


def costs_at(costs: CostTable, point: Point, axes: Sequence[Axis]) -> CostTable:
    """`costs` with those that `point` varies replaced or stretched.

    Raises:
        UsageError: a factor for a cost without a value.
    """
    by_key = {axis.key: axis for axis in axes}
    changed: dict[str, Cost] = {}
    for key, value in point:
        axis = by_key[key]
        if axis.mechanism:
            continue
        if axis.unit == "ns":
            changed[key] = Cost(Distribution.constant(value), "assumed", "varied in a sweep")
        elif key in costs:
            old = costs[key]
            changed[key] = Cost(old.distribution.scaled(value), "assumed", f"varied in a sweep: {old.source}")
        else:
            raise UsageError(f"--vary {key}: it has no value to take {axis.show(value)} of: give durations")
    return costs.merge(changed)


def _values(text: str, values: str, unit: Unit, param: Param | None) -> tuple[float, ...]:
    whole = param is not None and counts_things(param.unit)
    match = _RANGE.fullmatch(values.strip())
    if not match:
        parts = [part for part in values.split(",") if part.strip()]
        if not 1 <= len(parts) <= MOST_POINTS:
            raise UsageError(f"--vary {text[:80]}: {len(parts)} values: 1 to {MOST_POINTS}")
        found = [_number(text, part, unit) for part in parts]
    else:
        low, high = (_number(text, match[end], unit) for end in ("low", "high"))
        points = int(match["points"] or DEFAULT_POINTS)
        if not 0 < low < high:
            raise UsageError(f"--vary {text}: a range goes up from above 0")
        if not 2 <= points <= MOST_POINTS:
            raise UsageError(f"--vary {text}: a range has 2 to {MOST_POINTS} points")
        found = [float(f"{value:.6g}") for value in np.geomspace(low, high, points)]
        found[0], found[-1] = low, high
        if unit == "ns" or whole:
            found = [float(round(value)) for value in found]
    return tuple(dict.fromkeys(found))


def _number(text: str, part: str, unit: Unit) -> float:
    part = part.strip()
    try:
        if unit == "ns":
            return float(parse_duration_ns(part))
        if unit == "bytes":
            return float(parse_size_bytes(part.removesuffix("/s")))
        number = float(part.removeprefix("x") if unit == "factor" else part)
        if math.isfinite(number) and (number >= 0 or unit != "factor"):
            return number
        raise ValueError
    except ValueError:
        raise UsageError(f"--vary {text}: '{part}' is not a number") from None
    except UsageError as error:
        raise UsageError(f"--vary {text}: {error}") from None
