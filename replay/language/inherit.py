"""A mechanism file that builds on another one (``extends``), and the parameters that many files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.reading import TomlFile

Fail = Callable[..., UsageError]
_BY_NAME: Final = ("resources", "classes", "fallback", "paths")

SHARED_PARAMS: Final[dict[str, dict[str, Any]]] = {
    "handlers": {"default": 1, "min": 1, "max": 4096, "unit": "threads", "help": "threads that read the notifications"},
    "granule": {
        "default": "4K",
        "min": "4K",
        "max": "1G",
        "unit": "bytes",
        "help": "what one fault brings: the page size of the memory's backing",
    },
    "bandwidth": {
        "default": 0,
        "min": 0,
        "max": 1e15,
        "unit": "bytes/s",
        "help": "of the link the content comes over; 0: the cost fetch says it all",
    },
    "spin": {
        "default": "5us",
        "min": "0ns",
        "max": "1s",
        "unit": "ns",
        "help": "a fetch shorter than this is waited for on the CPU (--cpus counts it): nobody sleeps through less",
    },
    "refill": {
        "default": "4K",
        "min": "4K",
        "max": "1G",
        "unit": "bytes",
        "help": "what one fault maps again: 4K under the TDP MMU, 32K under shadow paging (8 entries, "
        "PTE_PREFETCH_NUM), more where memory is huge pages",
    },
    "storage_bandwidth": {
        "default": "2G",
        "min": 0,
        "max": 1e15,
        "unit": "bytes/s",
        "help": "of the device that the snapshot file is on; 0: no limit. An assumption: give yours with --storage",
    },
    "queue_depth": {
        "default": 32,
        "min": 0,
        "max": 65536,
        "unit": "requests",
        "help": "requests that the device serves at once; 0: no limit",
    },
    "readahead": {
        "default": "128K",
        "min": 0,
        "max": "64M",
        "unit": "bytes",
        "help": "around a page that is read: read_ahead_kb of the device, 128 by default",
    },
    "cached": {
        "default": 0,
        "min": 0,
        "max": 1,
        "unit": "share",
        "help": "of the snapshot file that is in the page cache when the guest resumes: 0 cold, 1 hot",
    },
    "left": {
        "default": 0,
        "min": 0,
        "max": 1,
        "unit": "runs",
        "help": "1: the page cache also has what earlier runs (--working-set) read",
    },
}
"""Parameters that many files have. ``name = DEFAULT`` in ``[params]`` declares one of them."""


class ExtendingFile(TomlFile):
    """A file over what it extends: the tables of both, and for a complaint the place where a table was written."""

    def __init__(self, own: TomlFile, base: TomlFile | None) -> None:
        super().__init__(own.path, own.text, own.data)
        mine = located(own.data, str(own.path), own.text)
        if base is not None:
            mine = merge(base.data, mine, own.fail)
        elif "changes" in mine:
            raise own.fail("changes stages that are inherited: say what the file extends", "changes")
        if isinstance(mine.get("params"), dict):
            mine["params"] = shared_params(mine["params"], own.fail)
        self.data = mine

    def origin(self, place: tuple[str | int, ...]) -> tuple[str, str, tuple[str | int, ...]]:
        """Of what is inherited, the file it comes from."""
        at: Any = self.data
        for depth, key in enumerate(place):
            in_list = isinstance(at, list) and isinstance(key, int) and key < len(at)
            if not (in_list or (isinstance(at, dict) and key in at)):
                break
            at = cast("Any", at)[key]
            if isinstance(at, Entry):
                return at.file, at.text, (*at.place, *place[depth + 1 :])
        return super().origin(place)


class Entry(dict[str, Any]):
    """A table of a file that remembers its place when another file inherits it."""

    def __init__(self, table: dict[str, Any], file: str, text: str, place: tuple[str | int, ...]) -> None:
        super().__init__(table)
        self.file, self.text, self.place = file, text, place


def located(data: dict[str, Any], file: str, text: str) -> dict[str, Any]:
    """The same data, in which parameters, resources and stages know their place."""
    out = dict(data)
    for key in ("params", "resources"):
        if isinstance(out.get(key), dict):
            out[key] = {
                name: Entry(entry, file, text, (key, name)) if type(entry) is dict else entry
                for name, entry in out[key].items()
            }

    def stages_of(entry: Any, *place: str) -> Any:
        if not isinstance(entry, list):
            return entry
        return [
            Entry(stage, file, text, (*place, number)) if type(stage) is dict else stage
            for number, stage in enumerate(entry)
        ]

    if isinstance(out.get("paths"), dict):
        out["paths"] = {name: stages_of(entry, "paths", name) for name, entry in out["paths"].items()}
    if isinstance(out.get("changes"), dict):
        out["changes"] = {
            path: {label: stages_of(entry, "changes", path, label) for label, entry in labels.items()}
            if isinstance(labels, dict)
            else labels
            for path, labels in out["changes"].items()
        }
    return out


def merge(base: dict[str, Any], own: dict[str, Any], fail: Fail) -> dict[str, Any]:
    """The tables of `own` over those of `base`.

    Parameters, resources, classes, fall-backs and paths are taken over by name, one of the same name in `own` stands in
    the place of the inherited one; of a parameter, single keys. ``[changes.PATH]`` puts other stages in the place of a
    labelled one. All else that `own` says replaces what it inherits; the upstream status is each file's own.

    Raises:
        UsageError: by way of `fail`, for a change of what is not there.
    """
    out = {key: entry for key, entry in base.items() if key != "status"}
    for key, entry in own.items():
        if key in ("extends", "changes"):
            continue
        inherited = out.get(key)
        if key == "params" and isinstance(entry, dict) and isinstance(inherited, dict):
            out[key] = {**inherited, **{name: _param(inherited, name, value) for name, value in entry.items()}}
        elif key in _BY_NAME and isinstance(entry, dict) and isinstance(inherited, dict):
            out[key] = {**inherited, **entry}
        else:
            out[key] = entry
    changes = own.get("changes", {})
    if not isinstance(changes, dict):
        raise fail("must be a table: [[changes.PATH.LABEL]]", "changes")
    for path, by_label in changes.items():
        stages = out.get("paths", {}).get(path)
        if not isinstance(stages, list) or not isinstance(by_label, dict):
            labels = list(by_label)[:1] if isinstance(by_label, dict) else []
            raise fail("changes stages of a path that is inherited: [[changes.PATH.LABEL]]", "changes", path, *labels)
        for label, instead in by_label.items():
            stages = _changed(stages, path, label, instead, fail)
        out["paths"] = {**out["paths"], path: stages}
    return out


def _param(inherited: dict[str, Any], name: str, value: Any) -> Any:
    before = inherited.get(name)
    if not isinstance(before, dict):
        return value
    changed = value if isinstance(value, dict) else {"default": value}
    return {**before, **changed}


def _changed(stages: list[Any], path: str, label: str, instead: Any, fail: Fail) -> list[Any]:
    labels = [stage.get("label") for stage in stages if isinstance(stage, dict)]
    if label not in labels:
        known = ", ".join(name for name in labels if name) or "none"
        raise fail(f"path '{path}' has no stage with this label; its labels are {known}", "changes", path, label)
    instead = [instead] if isinstance(instead, dict) else instead
    if not isinstance(instead, list) or not all(isinstance(stage, dict) for stage in instead):
        raise fail("must be stages: [[changes.PATH.LABEL]], or [] for none", "changes", path, label)
    at = labels.index(label)
    return [*stages[:at], *instead, *stages[at + 1 :]]


def shared_params(params: dict[str, Any], fail: Fail) -> dict[str, Any]:
    """`params` in which ``name = DEFAULT`` has become a whole declaration.

    Raises:
        UsageError: by way of `fail`, if there is no such shared parameter.
    """
    out = {}
    for name, entry in params.items():
        if isinstance(entry, dict):
            out[name] = entry
        elif name in SHARED_PARAMS:
            out[name] = {**SHARED_PARAMS[name], "default": entry}
        else:
            raise fail(
                f"no shared parameter '{name}' ({', '.join(SHARED_PARAMS)}): give a table with default, min, max, "
                "unit, help",
                "params",
                name,
            )
    return out
