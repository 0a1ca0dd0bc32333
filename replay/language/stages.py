"""The paths of a mechanism file, stage by stage, on their way to `Stage`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language import expressions
from faultreplay.replay.language import words as lang
from faultreplay.replay.language.names import current_name
from faultreplay.replay.language.places import line_of
from faultreplay.replay.language.reading import TomlFile, counts_things, shown
from faultreplay.replay.language.stage import FIELD_OF, Amount, Stage, StageOptions

MOST_STAGES: Final = 56
"""Of a path: each stage may draw one random number, a wake two, and the engine gives a path sixty."""
_MOST_RETRIES: Final = 1000
_RESOURCE_OF: Final = {"from": "waitqueue", "under": "lock", "within": "section", "readers": "servers"}


@dataclass(frozen=True)
class Param:
    """A number a user may set with ``--set MECHANISM.NAME=VALUE``."""

    name: str
    unit: str
    default: float
    minimum: float
    maximum: float
    help: str


@dataclass(frozen=True, kw_only=True)
class StorageKeys:
    """What a storage has besides its bandwidth (`words.RESOURCE_KEYS`)."""

    latency: Amount
    depth: Amount
    readahead: Amount
    onward: bool
    cached: Amount
    left: Amount


@dataclass(frozen=True)
class Resource:
    """What faults share: ``servers``, a ``link`` or a ``waitqueue``."""

    name: str
    kind: str
    size: Amount
    """servers: how many; link, storage: bytes/s; a number or ``$param``"""
    per: str
    storage: StorageKeys | None = None
    """of a storage: its further keys"""


class Operands:
    """Checks of the values in a stage or a window: costs, sizes, parameters, resources."""

    def __init__(self, file: TomlFile, params: Mapping[str, Param], resources: Mapping[str, Resource]) -> None:
        self.file, self.params, self.resources = file, params, resources

    def cost(self, value: Any, *place: str | int) -> Amount:
        """A cost name (a former name becomes the present one), a duration, a ``$param`` of ns, or arithmetic."""
        if expressions.is_arithmetic(value):
            return self.arithmetic(value, *place)
        if isinstance(value, str) and value.startswith("$"):
            return self.param(value, ("ns",), *place)
        if isinstance(value, str):
            value = current_name(value, self.file.place(*place))
        return lang.check_cost(value, (), self.file.place(*place))

    def size(self, value: Any, *place: str | int, unit: str = "bytes") -> Amount:
        """Bytes as a number, a size as ``4K``, or a ``$param`` of that `unit`, or arithmetic; not negative."""
        if expressions.is_arithmetic(value):
            return self.arithmetic(value, *place)
        if isinstance(value, str) and value.startswith("$"):
            return self.param(value, (unit,), *place)
        return self.file.size(value, *place)

    def count(self, value: Any, low: int, high: int, *place: str | int) -> Amount:
        """A whole number or a ``$param`` that counts; `high` bounds the parameter too. Arithmetic over parameters."""
        if expressions.is_arithmetic(value):
            return self.arithmetic(value, *place)
        if not isinstance(value, str) or not value.startswith("$"):
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            return self.file.whole(value, low, high, *place)
        self.param(value, None, *place)
        param = self.params[value[1:]]
        if not low <= param.minimum or not param.maximum <= high or not counts_things(param.unit):
            raise self.file.fail(f"'{value}' must count from {low} to {high} at most: its bounds say otherwise", *place)
        return value

    def chance(self, value: Any, *place: str | int) -> None:
        """A share of 1 or a ``$param`` that stays one."""
        if not isinstance(value, str) or not value.startswith("$"):
            self.file.share(value, *place)
            return
        self.param(value, None, *place)
        param = self.params[value[1:]]
        if not 0 <= param.minimum <= param.maximum <= 1:
            raise self.file.fail(f"'{value}' must stay between 0 and 1: its bounds say otherwise", *place)

    def arithmetic(self, value: str, *place: str | int) -> str:
        """An expression over declared parameters (`expressions.evaluate`), in the unit of its place."""
        try:
            expressions.evaluate(value, {name: max(param.default, 1.0) for name, param in self.params.items()})
        except UsageError as error:
            raise self.file.fail(str(error), *place) from None
        return value

    def param(self, value: str, units: tuple[str, ...] | None, *place: str | int) -> str:
        """``$name`` of a declared parameter in one of `units` (None: in any that is no time and no size)."""
        lang.check_param(value, tuple(self.params), self.file.place(*place))
        unit = self.params[value[1:]].unit
        wanted = "no time and no size" if units is None else f"a parameter in {' or '.join(units)}"
        if unit not in units if units is not None else unit == "ns" or unit.startswith("bytes"):
            raise self.file.fail(f"'{value}' is in {shown(unit)}: here stands {wanted}", *place)
        return value

    def resource(self, kind: str, name: Any, *place: str | int) -> None:
        """The name of a declared resource of `kind`."""
        names = [r.name for r in self.resources.values() if r.kind == kind]
        if name not in names:
            raise self.file.fail(
                f"{shown(name)} is no resource of kind {kind}: declared are {', '.join(names) or 'none'}", *place
            )

    def stages(self, name: str, entry: Any) -> tuple[Stage, ...]:
        """One path, checked as a whole."""
        if not isinstance(entry, list):
            raise self.file.fail(f"must be a list of stages, each under [[paths.{name}]]", "paths", name)
        if len(entry) > MOST_STAGES:
            raise self.file.fail(f"has {len(entry)} stages: a path has at most {MOST_STAGES}", "paths", name)
        stages = tuple(self.stage(("paths", name, number), item) for number, item in enumerate(entry))
        lang.check_path(stages, str(self.file.path), f"paths.{name}")
        return stages

    def stage(self, place: tuple[str, str, int], entry: Any) -> Stage:
        """One stage."""
        entry = self.file.table(entry, *place)
        verbs = [key for key in entry if key in lang.VERBS]
        if len(verbs) != 1:
            unknown = [key for key in entry if key not in lang.VERBS and key not in lang.COMMON_OPTIONS]
            raise self.file.fail(
                f"a stage has exactly one of {', '.join(lang.VERBS)}; this one has {', '.join(verbs) or 'none'}"
                + (f" and the unknown key '{unknown[0]}'" if unknown and not verbs else ""),
                *place,
            )
        name = verbs[0]
        self.file.known(entry, (name, *lang.VERBS[name].options, *lang.COMMON_OPTIONS), *place)
        operand = self._operand(lang.VERBS[name].operand, entry[name], (*place, name))
        options = {key: value for key, value in entry.items() if key != name}
        for key, value in options.items():
            if name != "retry" or key in lang.COMMON_OPTIONS:
                options[key] = self._option(key, value, (*place, key))
        if name == "retry":
            self._retry(entry, place)
        if name == "hold":
            self._hold(entry, place)
        read = StageOptions(**{FIELD_OF.get(key, key): value for key, value in options.items()})
        file, text, origin = self.file.origin((*place, name))
        return Stage(name, operand, read, line_of(text, origin), file)

    def _operand(self, kind: str, operand: Any, place: tuple[str | int, ...]) -> Amount:
        if kind == "cost":
            return self.cost(operand, *place)
        if kind in lang.RESOURCE_KEYS:
            self.resource(kind, operand, *place)
        elif kind == "label":
            self.file.words(operand, *place)
        elif kind == "true" and operand is not True:
            raise self.file.fail("write it as '= true'", *place)
        elif kind == "size":
            return self.size(operand, *place)
        elif kind == "join" and operand not in ("join", "skip"):
            raise self.file.fail('to coalesce is "join", in a stream "skip"', *place)
        checked: Amount = operand
        return checked

    def _option(self, key: str, value: Any, place: tuple[str | int, ...]) -> Any:
        if key in _RESOURCE_OF:
            self.resource(_RESOURCE_OF[key], value, *place)
        match key:
            case "says" | "label":
                self.file.words(value, *place)
            case "idle" | "latency" | "miss" | "walk" | "takes" | "contended" | "also" | "each" | "once" | "cold":
                return self.cost(value, *place)
            case "asleep" if not isinstance(value, bool):
                return self.cost(value, *place)
            case "awake" | "cached":
                self.file.flag(value, *place)
            case "bytes" | "over" | "ahead":
                return self.size(value, *place)
            case "most":
                return self.count(value, 0, 1 << 20, *place)
            case "times":
                self._times(self.file.words(value, *place), place)
            case "when":
                conditions = tuple(self.file.texts(value, *place))
                for condition in conditions:
                    if condition not in lang.CONDITIONS:
                        raise self.file.fail(f"'{condition}' is none of {', '.join(lang.CONDITIONS)}", *place)
                return conditions
        return value

    def _times(self, text: str, place: tuple[str | int, ...]) -> None:
        if text in lang.TIMES_FIXED:
            return
        if expressions.is_expression(text):
            self.count(text, 0, 1 << 20, *place)
            return
        what, _, name = text.partition(":")
        if what not in lang.TIMES_COUNTED:
            known = ", ".join([f"{counted}:NAME" for counted in lang.TIMES_COUNTED] + list(lang.TIMES_FIXED))
            raise self.file.fail(f"'{text}' is none of {known}, $param", *place)
        self.resource(lang.TIMES_COUNTED[what], name, *place)

    def _retry(self, entry: dict[str, Any], place: tuple[str, str, int]) -> None:
        for key in ("chance", "most"):
            if key not in entry:
                raise self.file.fail(f"missing '{key}': a retry needs a chance and a limit", *place)
        self.chance(entry["chance"], *place, "chance")
        self.file.whole(entry["most"], 1, _MOST_RETRIES, *place, "most")

    def _hold(self, entry: dict[str, Any], place: tuple[str, str, int]) -> None:
        if ("also" in entry) != ("times" in entry):
            raise self.file.fail("also and times must be given together: a cost, and what is counted", *place)
        if "times" in entry and entry["times"].partition(":")[0] not in lang.TIMES_COUNTED:
            raise self.file.fail("a lock is held longer for what is counted: waiters, idle or spare", *place, "times")
