"""Mechanisms as data: read, checked, parameters set. The engine sees only what the compiler makes of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns, parse_size_bytes
from faultreplay.replay.language import words as lang
from faultreplay.replay.language.places import line_of
from faultreplay.replay.language.words import Stage

MECHANISMS_DIR: Final = Path(__file__).parent.parent / "mechanisms"
_TOP: Final = frozenset(
    {
        "title",
        "stands_for",
        "source",
        "limits",
        "granule",
        "serves",
        "fallback",
        "shards",
        "params",
        "resources",
        "paths",
        "classes",
        "window",
        "push",
    }
)
KERNEL_ALONE: Final = ("stage2", "minor-host")
"""Classes whose faults the accessor's own thread resolves in the kernel: all of what was recorded is work."""
_STAGE2: Final = (Stage("delay", "stage2_fault", {}, 0), Stage("wake", 0, {"awake": True}, 0))
_RECORDED: Final = (Stage("recorded", True, {}, 0), Stage("wake", 0, {}, 0))
_RECORDED_AWAKE: Final = (Stage("recorded", True, {"awake": True}, 0), Stage("wake", 0, {"awake": True}, 0))
_NOTHING: Final = (Stage("wake", 0, {}, 0),)
_REQUIRED: Final = ("title", "stands_for", "source", "limits", "granule", "paths")


@dataclass(frozen=True)
class Param:
    """A number a user may set with ``--set MECHANISM.NAME=VALUE``."""

    name: str
    unit: str
    default: float
    minimum: float
    maximum: float
    help: str


@dataclass(frozen=True)
class Resource:
    """What faults share: ``servers``, a ``link`` or a ``waitqueue``."""

    name: str
    kind: str
    size: Any
    """servers: how many; link: bytes/s; a number or ``$param``"""
    per: str


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
    granule: Any
    serves: tuple[str, ...]
    fallback: Mapping[str, Mechanism]
    params: Mapping[str, Param]
    values: Mapping[str, float]
    resources: Mapping[str, Resource]
    paths: Mapping[str, tuple[Stage, ...]]
    classes: Mapping[str, str]
    window: Mapping[str, Any] | None
    push: Mapping[str, Any] | None
    shards: Any

    def value(self, operand: Any) -> float:
        """The number behind a number, a size or ``$param``."""
        if isinstance(operand, str):
            return self.values[operand[1:]] if operand.startswith("$") else float(parse_size_bytes(operand))
        return float(operand)

    @property
    def write_after_read(self) -> bool:
        """Whether a page that a fault for a read brought faults once more when it is written."""
        return "rewrite" in self.paths

    @property
    def granule_bytes(self) -> int:
        """The size in which missing memory is filled in."""
        return int(self.value(self.granule))

    def serving(self, kind: str) -> Mechanism | None:
        """Who serves this kind of accessor: the mechanism, what it falls back to, or nobody."""
        if kind in self.serves:
            return self
        other = self.fallback.get(kind)
        return other.serving(kind) if other else None

    def answer(self, name: str, kind: str) -> Answer:
        """The path of a class of fault (or of ``present``, ``refault``, ``rewrite``) for a kind of accessor.

        What nobody names takes as long as it took.
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
                    raise UsageError(f"{self.name}: falls back to nothing, so '{key}' sets nothing")
                fallback = {kind: other.with_params({key[9:]: raw}) for kind, other in fallback.items()}
                continue
            param = self.params.get(key)
            if param is None:
                raise UsageError(f"{self.name}: no parameter '{key}': it has {', '.join(self.params) or 'none'}")
            values[key] = _in_bounds(_number(raw, param.unit, f"{self.name}.{key}"), param, f"{self.name}.{key}")
        return replace(self, values=values, fallback=fallback)


def list_mechanisms() -> list[str]:
    """Names of the shipped mechanisms."""
    return sorted(path.stem for path in MECHANISMS_DIR.glob("*.toml"))


def load_mechanism(name_or_path: str | Path) -> Mechanism:
    """A shipped mechanism by name, or a user's file (anything with a slash or ending in ``.toml``).

    Raises:
        UsageError: there is none, or the file breaks the language; the message names file, line and reason.
    """
    return _load(str(name_or_path), ())


def _load(text: str, above: tuple[str, ...]) -> Mechanism:
    shipped = "/" not in text and not text.endswith(".toml")
    path = MECHANISMS_DIR / f"{text}.toml" if shipped else Path(text)
    identity = str(path.resolve())
    if identity in above:
        names = " -> ".join(Path(step).stem for step in (*above[above.index(identity) :], identity))
        raise UsageError(f"{above[-1]}: fall-back goes in a cycle: {names}")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not TOML: not a text") from None
    except OSError as error:
        if not shipped:
            raise UsageError(f"{path}: no mechanism file to read: {error.strerror}") from None
        raise UsageError(
            f"no mechanism '{text}': shipped are {', '.join(list_mechanisms())}; or give a .toml file"
        ) from None
    try:
        data = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    return _Reader(path, source, data, (*above, identity)).mechanism()


class _Reader:
    """One file on its way to a `Mechanism`; every complaint goes through `fail`, which knows the line."""

    def __init__(self, path: Path, text: str, data: dict[str, Any], above: tuple[str, ...]) -> None:
        self.path, self.text, self.data, self.above = path, text, data, above

    def fail(self, reason: str, *place: str | int) -> UsageError:
        return UsageError(f"{self.place(*place)}: {reason}")

    def place(self, *place: str | int) -> str:
        dotted = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
        return f"{self.path}:{line_of(self.text, place)}: {dotted}" if place else f"{self.path}:1: file"

    def mechanism(self) -> Mechanism:
        data = self.data
        for key in data:
            if key not in _TOP:
                raise self.fail(f"unknown key; known are {', '.join(sorted(_TOP))}", key)
        for key in _REQUIRED:
            if key not in data:
                raise self.fail(f"missing '{key}'")
        params = {name: self.param(name, entry) for name, entry in self.table("params").items()}
        self.names = tuple(params)
        resources = {name: self.resource(name, entry) for name, entry in self.table("resources").items()}
        self.resources = resources
        serves = tuple(self.strings("serves", list(lang.ACCESSOR_KINDS)))
        for kind in serves:
            if kind not in lang.ACCESSOR_KINDS:
                raise self.fail(f"'{kind}' is no accessor: they are {', '.join(lang.ACCESSOR_KINDS)}", "serves")
        paths = {name: self.stages(name, entry) for name, entry in self.table("paths").items()}
        for name in paths:
            if name not in lang.CLASSES and name not in lang.BUILT_IN_PATHS:
                known = ", ".join((*lang.CLASSES, "refault", "rewrite"))
                raise self.fail(f"unknown class of fault; the classes are {known}", "paths", name)
        classes = self.table("classes")
        for key, target in classes.items():
            if key not in lang.CLASSES or target not in paths:
                raise self.fail(f"{key} = {target!r}: maps a class of fault to a path of this file", "classes", key)
        return Mechanism(
            name=self.path.stem,
            file=str(self.path),
            title=str(data["title"]),
            stands_for=str(data["stands_for"]).strip(),
            source=tuple(self.strings("source")),
            limits=tuple(self.strings("limits")),
            granule=self.size(data["granule"], "granule"),
            serves=serves,
            fallback=self.fallback(serves),
            params=params,
            values={name: param.default for name, param in params.items()},
            resources=resources,
            paths=paths,
            classes=dict(classes),
            window=self.window(),
            push=self.push(),
            shards=self.size(data.get("shards", 1), "shards"),
        )

    def table(self, key: str) -> dict[str, Any]:
        entry = self.data.get(key, {})
        if not isinstance(entry, dict):
            raise self.fail("must be a table", key)
        return entry

    def strings(self, key: str, default: list[str] | None = None) -> list[str]:
        entry = self.data.get(key, default)
        entry = [entry] if isinstance(entry, str) else entry
        if not isinstance(entry, list) or not all(isinstance(item, str) and item for item in entry):
            raise self.fail("must be a text or a list of texts", key)
        return entry

    def size(self, value: Any, *place: str | int) -> Any:
        """A number, a size as ``4K``, or ``$param``; not negative."""
        if isinstance(value, str) and value.startswith("$"):
            lang.check_param(value, self.names, self.place(*place))
            return value
        if isinstance(value, str):
            try:
                return parse_size_bytes(value)
            except UsageError as error:
                raise self.fail(str(error), *place) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise self.fail(f"{value!r} is not a size of 0 or more", *place)
        return value

    def known(self, entry: Any, keys: Mapping[str, Any] | tuple[str, ...], *place: str | int) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise self.fail("must be a table", *place)
        for key in entry:
            if key not in keys:
                raise self.fail(f"unknown key; known are {', '.join(keys)}", *place, key)
        return entry

    def param(self, name: str, entry: Any) -> Param:
        place = ("params", name)
        entry = self.known(entry, ("default", "min", "max", "unit", "help"), *place)
        for key in ("default", "min", "max", "unit", "help"):
            if key not in entry:
                raise self.fail(f"missing '{key}'", *place)
        unit = str(entry["unit"])
        low, high, default = (_number(entry[key], unit, self.place(*place, key)) for key in ("min", "max", "default"))
        if low > high:
            raise self.fail(f"min {low:g} is above max {high:g}", *place, "min")
        param = Param(name, unit, default, low, high, str(entry["help"]))
        _in_bounds(default, param, self.place(*place, "default"))
        return param

    def resource(self, name: str, entry: Any) -> Resource:
        place = ("resources", name)
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if kind not in lang.RESOURCE_KEYS:
            raise self.fail(f"kind must be one of {', '.join(lang.RESOURCE_KEYS)}", *place)
        self.known(entry, ("kind", "says", *lang.RESOURCE_KEYS[kind]), *place)
        per = entry.get("per", "vm")
        if per not in lang.PER:
            raise self.fail(f"per must be one of {', '.join(lang.PER)}", *place, "per")
        key = {"servers": "servers", "link": "bandwidth"}.get(kind)
        if key is None:
            return Resource(name, kind, 0, per)
        if key not in entry:
            raise self.fail(f"missing '{key}'", *place)
        return Resource(name, kind, self.size(entry[key], *place, key), per)

    def stages(self, name: str, entry: Any) -> tuple[Stage, ...]:
        if not isinstance(entry, list):
            raise self.fail(f"must be a list of stages, each under [[paths.{name}]]", "paths", name)
        stages = tuple(self.stage(("paths", name, number), item) for number, item in enumerate(entry))
        lang.check_path(stages, f"{self.path}: paths.{name}")
        return stages

    def stage(self, place: tuple[str, str, int], entry: Any) -> Stage:
        if not isinstance(entry, dict):
            raise self.fail("must be a table", *place)
        verbs = [key for key in entry if key in lang.VERBS]
        if len(verbs) != 1:
            unknown = [key for key in entry if key not in lang.VERBS and key not in lang.COMMON_OPTIONS]
            raise self.fail(
                f"a stage has exactly one of {', '.join(lang.VERBS)}; this one has {', '.join(verbs) or 'none'}"
                + (f" and the unknown key '{unknown[0]}'" if unknown and not verbs else ""),
                *place,
            )
        name = verbs[0]
        verb = lang.VERBS[name]
        self.known(entry, (name, *verb.options, *lang.COMMON_OPTIONS), *place)
        operand = entry[name]
        self.operand(verb.operand, operand, (*place, name))
        for key in ("idle", "latency", "walk"):
            if key in entry:
                lang.check_cost(entry[key], self.names, self.place(*place, key))
        if not isinstance(entry.get("asleep", False), bool):
            lang.check_cost(entry["asleep"], self.names, self.place(*place, "asleep"))
        if "bytes" in entry:
            self.size(entry["bytes"], *place, "bytes")
        if "from" in entry:
            self.operand("waitqueue", entry["from"], (*place, "from"))
        if "times" in entry:
            self.times(str(entry["times"]), (*place, "times"))
        if name == "retry":
            self.retry(entry, place)
        conditions = entry.get("when", [])
        for condition in [conditions] if isinstance(conditions, str) else conditions:
            if condition not in lang.CONDITIONS:
                raise self.fail(f"'{condition}' is none of {', '.join(lang.CONDITIONS)}", *place, "when")
        options = {key: value for key, value in entry.items() if key != name}
        return Stage(name, operand, options, line_of(self.text, (*place, name)))

    def operand(self, kind: str, operand: Any, place: tuple[str | int, ...]) -> None:
        if kind == "cost":
            lang.check_cost(operand, self.names, self.place(*place))
        elif kind in lang.RESOURCE_KEYS:
            names = [r.name for r in self.resources.values() if r.kind == kind]
            if operand not in names:
                raise self.fail(
                    f"'{operand}' is no resource of kind {kind}: declared are {', '.join(names) or 'none'}", *place
                )
        elif kind == "true" and operand is not True:
            raise self.fail("write it as '= true'", *place)
        elif kind == "join" and operand != "join":
            raise self.fail('the only way to coalesce is "join"', *place)

    def times(self, text: str, place: tuple[str | int, ...]) -> None:
        if text in lang.TIMES_FIXED:
            return
        what, _, name = text.partition(":")
        if what not in lang.TIMES_COUNTED:
            raise self.fail(f"'{text}' is none of waiters:NAME, idle:NAME, {', '.join(lang.TIMES_FIXED)}", *place)
        self.operand(lang.TIMES_COUNTED[what], name, place)

    def retry(self, entry: dict[str, Any], place: tuple[str, str, int]) -> None:
        for key in ("chance", "most"):
            if key not in entry:
                raise self.fail(f"missing '{key}': a retry needs a chance and a limit", *place)
        chance, most = entry["chance"], entry["most"]
        self.size(chance, *place, "chance")
        if not isinstance(chance, str) and not 0 <= chance <= 1:
            raise self.fail(f"chance {chance} is not between 0 and 1", *place, "chance")
        if isinstance(most, bool) or not isinstance(most, int) or not 0 < most <= 1000:
            raise self.fail("most must be a whole number from 1 to 1000", *place, "most")

    def fallback(self, serves: tuple[str, ...]) -> dict[str, Mechanism]:
        found = {}
        for kind, name in self.known(self.table("fallback"), lang.ACCESSOR_KINDS, "fallback").items():
            if kind in serves:
                raise self.fail("is served by this mechanism and falls back too: say one of them", "fallback", kind)
            found[kind] = _load(str(name), self.above)
        return found

    def window(self) -> dict[str, Any] | None:
        if "window" not in self.data:
            return None
        window = dict(self.known(self.data["window"], lang.WINDOW_KEYS, "window"))
        for kind in window.get("stops", []):
            if kind not in lang.ACCESSOR_KINDS:
                raise self.fail(f"'{kind}' is no accessor", "window", "stops")
        for kind, which in window.get("blocks", {}).items():
            if kind not in lang.ACCESSOR_KINDS or which not in ("all", "write"):
                raise self.fail("blocks maps vcpu, vmm or kernel to all or write", "window", "blocks")
        if window.get("empties", "none") not in ("none", "stage2"):
            raise self.fail("empties is none or stage2", "window", "empties")
        for key in ("enter", "leave"):
            for item in window.get(key, []):
                name, _, times = str(item).partition(" * ")
                lang.check_cost(name, self.names, self.place("window", key))
                if times not in ("", "touched_pages"):
                    raise self.fail(f"'{item}': a cost may be multiplied by touched_pages only", "window", key)
        if "refill" in window:
            window["refill"] = self.size(window["refill"], "window", "refill")
        if "resume" in window:
            lang.check_cost(window["resume"], self.names, self.place("window", "resume"))
        return window

    def push(self) -> dict[str, Any] | None:
        if "push" not in self.data:
            return None
        push = dict(self.known(self.data["push"], lang.PUSH_KEYS, "push"))
        for key in ("link", "order"):
            if key not in push:
                raise self.fail(f"missing '{key}'", "push")
        self.operand("link", push["link"], ("push", "link"))
        if push["order"] not in ("address", "recorded"):
            raise self.fail("order is address or recorded", "push", "order")
        for key in ("backlog", "memory"):
            push[key] = self.size(push.get(key, 0), "push", key)
        lang.check_cost(push.get("latency", 0), self.names, self.place("push", "latency"))
        return push


def _number(raw: Any, unit: str, place: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise UsageError(f"{place}: {raw!r} is not a number")
    if not isinstance(raw, str):
        return float(raw)
    if unit == "ns":
        return float(parse_duration_ns(raw, default_unit="ns"))
    if unit.startswith("bytes"):
        return float(parse_size_bytes(raw.removesuffix("/s")))
    try:
        return float(raw)
    except ValueError:
        raise UsageError(f"{place}: '{raw}' is not a number ({unit})") from None


def _in_bounds(value: float, param: Param, place: str) -> float:
    if not param.minimum <= value <= param.maximum:
        raise UsageError(f"{place}: {value:g} is out of bounds: {param.minimum:g} to {param.maximum:g} {param.unit}")
    return value
