"""A mechanism with its parameters set, and how it serves each class of fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.units import parse_size_bytes
from faultreplay.replay.language import expressions
from faultreplay.replay.language.reading import number_in
from faultreplay.replay.language.rules import Stream, WindowRule
from faultreplay.replay.language.stage import Amount, Stage, StageOptions
from faultreplay.replay.language.stages import Param, Resource
from faultreplay.replay.language.status import UNKNOWN, Status
from faultreplay.replay.language.streams import PageStream

KERNEL_ALONE: Final = ("stage2", "minor-host")
"""Classes whose faults the accessor's own thread resolves in the kernel: all of what was recorded is work."""
_AWAKE: Final = StageOptions(awake=True)
_STAGE2: Final = (Stage("delay", "stage2_fault"), Stage("wake", 0, _AWAKE))
_RECORDED: Final = (Stage("recorded", True), Stage("wake", 0))
_RECORDED_AWAKE: Final = (Stage("recorded", True, _AWAKE), Stage("wake", 0, _AWAKE))
_NOTHING: Final = (Stage("wake", 0),)


@dataclass(frozen=True)
class Answer:
    """How a class of fault by a kind of accessor is served."""

    by: Literal["own", "fall-back", "recorded", "nothing"]
    """a path of the mechanism's file, one of a file it falls back to, the stall of the recording, or no time at all"""
    server: Mechanism | None
    """whose path it is; None: of no file"""
    path: str
    stages: tuple[Stage, ...]

    @property
    def simulated(self) -> bool:
        """Whether the path makes the stall; otherwise it is the one of the recording."""
        return not any(stage.verb == "recorded" for stage in self.stages)


@dataclass(frozen=True)
class Mechanism:
    """A way to handle faults, as its file says it, with parameters set."""

    name: str
    file: str
    title: str
    stands_for: str
    source: tuple[str, ...]
    limits: tuple[str, ...]
    granule: Amount
    serves: tuple[str, ...]
    fallback: Mapping[str, Mechanism]
    params: Mapping[str, Param]
    values: Mapping[str, float]
    resources: Mapping[str, Resource]
    paths: Mapping[str, tuple[Stage, ...]]
    classes: Mapping[str, str]
    window: WindowRule | None
    push: Stream | None
    shards: Amount
    streams: tuple[PageStream, ...] = ()
    status: Status = UNKNOWN

    def value(self, operand: Amount) -> float:
        """The number behind a number, a size, ``$param`` or an expression of parameters.

        Raises:
            UsageError: an expression is negative.
        """
        if not expressions.is_expression(operand):
            return float(parse_size_bytes(operand) if isinstance(operand, str) else operand)
        value = expressions.evaluate(operand, self.values)
        if value < 0:
            raise UsageError(f"{self.name}: {operand} is {value:g}: it must not be negative")
        return value

    @property
    def write_after_read(self) -> bool:
        """Whether a page that a fault for a read brought faults once more when it is written."""
        return "rewrite" in self.paths

    @property
    def granule_bytes(self) -> int:
        """The size in which missing memory is filled in."""
        return int(self.value(self.granule))

    def serving(self, kind: str) -> Mechanism | None:
        """Who serves this kind of accessor: the mechanism, its fall-back, or none."""
        if kind in self.serves:
            return self
        other = self.fallback.get(kind)
        return other.serving(kind) if other else None

    def answer(self, name: str, kind: str) -> Answer:
        """The path of a class of fault (or of ``present``, ``refault``, ``rewrite``) for a kind of accessor.

        A class without a path takes as long as it took in the recording.
        """
        server = self.serving(kind)
        paths = server.paths if server else {}
        by: Literal["own", "fall-back"] = "own" if server is self else "fall-back"
        built_in = {
            "rewrite": ("(nothing)", _NOTHING),
            "present": ("(stage2)", _STAGE2),
            "refault": ("(stage2)", _STAGE2),
        }
        if name in built_in:
            for candidate in (name,) if name == "rewrite" else (name, "stage2"):
                if candidate in paths:
                    return Answer(by, server, candidate, paths[candidate])
            return Answer("nothing" if name == "rewrite" else "own", None, *built_in[name])
        target = server.classes.get(name, name) if server else name
        if target in paths:
            return Answer(by, server, target, paths[target])
        if name == "window":
            return Answer("nothing", None, "(nothing)", _NOTHING)
        if name in KERNEL_ALONE:
            return Answer("recorded", None, "(recorded awake)", _RECORDED_AWAKE)
        return Answer("recorded", None, "(recorded)", _RECORDED)

    def with_params(self, changes: Mapping[str, Any]) -> Mechanism:
        """The same mechanism with some parameters set; numbers, or texts with a unit as ``10us`` or ``2M``.

        ``fallback.NAME`` sets a parameter of the mechanisms fallen back to.

        Raises:
            UsageError: no such parameter, or out of bounds.
        """
        values = dict(self.values)
        fallback = dict(self.fallback)
        for key, raw in changes.items():
            if key.startswith("fallback."):
                if not fallback:
                    raise UsageError(f"{self.name}: has no fall-back, so '{key}' has no effect")
                fallback = {kind: other.with_params({key[9:]: raw}) for kind, other in fallback.items()}
                continue
            param = self.params.get(key)
            if param is None:
                has = f"{nearest(key, self.params)} it has {', '.join(self.params) or 'none'}"
                raise UsageError(f"{self.name}: no parameter '{key}':{has}")
            values[key] = in_bounds(number_in(raw, param.unit, f"{self.name}.{key}"), param, f"{self.name}.{key}")
        return replace(self, values=values, fallback=fallback)


def in_bounds(value: float, param: Param, place: str) -> float:
    """`value`, where it lies within the parameter's bounds; `place` is for the message."""
    if not param.minimum <= value <= param.maximum:
        raise UsageError(f"{place}: {value:g} is out of bounds: {param.minimum:g} to {param.maximum:g} {param.unit}")
    return value
