"""Mechanisms as data: read, checked, parameters set. The engine sees only what the compiler makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.fault_columns import ACCESSORS, CAUSES
from faultreplay.replay.language import expressions, inherit
from faultreplay.replay.language import words as lang
from faultreplay.replay.language.mechanism_record import Mechanism, in_bounds
from faultreplay.replay.language.reading import TomlFile, number_in, shown
from faultreplay.replay.language.rules import read_stream, read_window
from faultreplay.replay.language.stages import Operands, Param, Resource
from faultreplay.replay.language.status import read_status
from faultreplay.replay.language.streams import check_stream_paths, read_storage, read_streams

__all__ = ["Mechanism", "Param", "Resource", "list_mechanisms", "load_mechanism"]
MECHANISMS_DIR: Final = Path(__file__).parent.parent / "mechanisms"
_TOP: Final = frozenset(
    {
        "extends",
        "changes",
        "title",
        "stands_for",
        "source",
        "limits",
        "status",
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
        "streams",
    }
)
_WORDS: Final = frozenset({"title", "stands_for", "source", "limits", "status", "params", "changes", "extends"})
_REQUIRED: Final = ("title", "stands_for", "source", "limits", "granule", "paths")
MOST_SERVERS: Final = 1 << 20
MOST_SHARDS: Final = 1 << 16
MOST_FALLBACKS: Final = 16
"""Files deep."""


def list_mechanisms() -> list[str]:
    """Names of the shipped mechanisms."""
    return sorted(path.stem for path in MECHANISMS_DIR.glob("*.toml"))


def load_mechanism(name_or_path: str | Path) -> Mechanism:
    """A shipped mechanism by name, or a user's file (anything with a slash or ending in ``.toml``).

    Raises:
        UsageError: there is none, or the file breaks the language; the message names file, line and reason.
    """
    return _load(str(name_or_path), ()).mechanism()


def _load(text: str, above: tuple[str, ...]) -> _Reader:
    shipped = "/" not in text and not text.endswith(".toml")
    path = MECHANISMS_DIR / f"{text}.toml" if shipped else Path(text)
    identity = str(path.absolute()) if "\0" in text else str(path.resolve())
    if identity in above:
        names = " -> ".join(Path(step).stem for step in (*above[above.index(identity) :], identity))
        raise UsageError(f"{above[-1]}: fall-back or extends goes in a cycle: {names}")
    if len(above) >= MOST_FALLBACKS:
        raise UsageError(f"{above[-1]}: falls back {MOST_FALLBACKS} files deep: no mechanism needs that")
    try:
        file = TomlFile.read(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not shipped:
            raise UsageError(f"{path}: no mechanism file to read: {error.strerror}") from None
        raise UsageError(
            f"no mechanism '{text}':{nearest(text, list_mechanisms())} shipped are {', '.join(list_mechanisms())}; "
            "or give a .toml file"
        ) from None
    return _Reader(file, (*above, identity))


class _Reader:
    """A mechanism's tables, each read once; `Operands` checks their values."""

    def __init__(self, file: TomlFile, above: tuple[str, ...]) -> None:
        file.known(file.data, sorted(_TOP))
        base = None
        if "extends" in file.data:
            other = _load(file.words(file.data["extends"], "extends"), above)
            other.mechanism()  # errors in that file are reported there
            base = other.file
        self.file: TomlFile = inherit.ExtendingFile(file, base)
        self.data, self.above = self.file.data, above

    def mechanism(self) -> Mechanism:
        file = self.file
        data = self.data
        for key in _REQUIRED:
            if key not in data:
                raise file.fail(f"missing '{key}'")
        params = {name: self.param(name, entry) for name, entry in self.table("params").items()}
        self.operands = Operands(file, params, {})
        resources = {name: self.resource(name, entry) for name, entry in self.table("resources").items()}
        self.operands = operands = Operands(file, params, resources)
        serves = tuple(file.texts(data.get("serves", list(ACCESSORS)), "serves"))
        for kind in serves:
            if kind not in ACCESSORS:
                raise file.fail(f"'{kind}' is no accessor: they are {', '.join(ACCESSORS)}", "serves")
        paths = {name: operands.stages(name, entry) for name, entry in self.table("paths").items()}
        streams = read_streams(file, operands, data.get("streams"))
        check_stream_paths(file, streams, paths)
        classes = self.table("classes")
        for key, target in classes.items():
            if key not in CAUSES or not isinstance(target, str) or target not in paths:
                reason = f"{key} = {shown(target)}: maps a class of fault to a path of this file"
                raise file.fail(reason, "classes", key)
        self.check_used(params)
        return Mechanism(
            name=file.path.stem,
            file=str(file.path),
            title=file.words(data["title"], "title"),
            stands_for=file.words(data["stands_for"], "stands_for").strip(),
            source=tuple(file.texts(data["source"], "source")),
            limits=tuple(file.texts(data["limits"], "limits")),
            granule=operands.size(data["granule"], "granule"),
            serves=serves,
            fallback=self.fallback(serves),
            params=params,
            values={name: param.default for name, param in params.items()},
            resources=resources,
            paths=paths,
            classes=dict(classes),
            window=read_window(file, operands, data["window"]) if "window" in data else None,
            push=read_stream(file, operands, data["push"]) if "push" in data else None,
            streams=streams,
            shards=operands.count(data.get("shards", 1), 1, MOST_SHARDS, "shards"),
            status=read_status(file, data.get("status")),
        )

    def check_used(self, params: Mapping[str, Param]) -> None:
        """Setting a parameter that nothing uses would have no effect."""
        used = set(expressions.named_in({key: entry for key, entry in self.data.items() if key not in _WORDS}))
        for name in params:
            if name not in used:
                reason = f"nothing uses this parameter: write ${name} somewhere, or leave it out"
                raise self.file.fail(reason, "params", name)

    def table(self, key: str) -> dict[str, Any]:
        return self.file.table(self.data.get(key, {}), key)

    def param(self, name: str, entry: Any) -> Param:
        place = ("params", name)
        keys = ("default", "min", "max", "unit", "help")
        entry = self.file.known(entry, keys, *place)
        for key in keys:
            if key not in entry:
                raise self.file.fail(f"missing '{key}'", *place)
        unit = self.file.words(entry["unit"], *place, "unit")
        low, high, default = (
            number_in(entry[key], unit, self.file.place(*place, key)) for key in ("min", "max", "default")
        )
        if low > high:
            raise self.file.fail(f"min {low:g} is above max {high:g}", *place, "min")
        param = Param(name, unit, default, low, high, self.file.words(entry["help"], *place, "help"))
        in_bounds(default, param, self.file.place(*place, "default"))
        return param

    def resource(self, name: str, entry: Any) -> Resource:
        place = ("resources", name)
        entry = self.file.table(entry, *place)
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in lang.RESOURCE_KEYS:
            raise self.file.fail(f"kind must be one of {', '.join(lang.RESOURCE_KEYS)}", *place)
        self.file.known(entry, ("kind", "says", *lang.RESOURCE_KEYS[kind]), *place)
        self.file.words(entry.get("says", ""), *place, "says")
        if kind == "storage":
            return read_storage(self.file, self.operands, name, entry)
        per = entry.get("per", "vm")
        if per not in lang.PER:
            raise self.file.fail(f"per must be one of {', '.join(lang.PER)}", *place, "per")
        key = {"servers": "servers", "link": "bandwidth"}.get(kind)
        if key is None:
            return Resource(name, kind, 0, per)
        if key not in entry:
            raise self.file.fail(f"missing '{key}'", *place)
        if kind == "servers":
            return Resource(name, kind, self.operands.count(entry[key], 0, MOST_SERVERS, *place, key), per)
        return Resource(name, kind, self.operands.size(entry[key], *place, key, unit="bytes/s"), per)

    def fallback(self, serves: tuple[str, ...]) -> dict[str, Mechanism]:
        found = {}
        for kind, name in self.file.known(self.table("fallback"), ACCESSORS, "fallback").items():
            if kind in serves:
                raise self.file.fail(
                    "is served by this mechanism and falls back too: say one of them", "fallback", kind
                )
            found[kind] = _load(self.file.words(name, "fallback", kind), self.above).mechanism()
        return found
