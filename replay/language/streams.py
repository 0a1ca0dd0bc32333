"""Background streams of a mechanism file: ``[[streams]]``; and a ``storage`` among its resources."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from faultreplay.faulttrace.fault_columns import CAUSES
from faultreplay.replay.language import words as lang
from faultreplay.replay.language.expressions import is_arithmetic
from faultreplay.replay.language.reading import TomlFile
from faultreplay.replay.language.stage import Amount, Stage
from faultreplay.replay.language.stages import Operands, Resource, StorageKeys

MOST_STREAMS: Final = 16
MOST_SERVERS: Final = 4096
MOST_DEPTH: Final = 1 << 16


@dataclass(frozen=True)
class PageStream:
    """Threads that bring pages by themselves, piece by piece; numbers may be ``$param``."""

    path: str
    set: str
    """which pages: a word of `words.SETS`"""
    order: str
    servers: Amount
    chunk: Amount
    """bytes of one piece; 0: a granule"""
    packed: bool
    before: bool
    says: str


def read_streams(file: TomlFile, operands: Operands, entry: Any) -> tuple[PageStream, ...]:
    """``[[streams]]`` of a file; of none, nothing.

    Raises:
        UsageError: naming the place and the reason.
    """
    if entry is None:
        return ()
    if not isinstance(entry, list) or len(entry) > MOST_STREAMS:
        raise file.fail(f"must be at most {MOST_STREAMS} streams, each under [[streams]]", "streams")
    return tuple(_stream(file, operands, one, ("streams", number)) for number, one in enumerate(entry))


def _stream(file: TomlFile, operands: Operands, entry: Any, place: tuple[str | int, ...]) -> PageStream:
    entry = file.known(entry, lang.STREAM_KEYS, *place)
    for key in ("path", "set"):
        if key not in entry:
            raise file.fail(f"missing '{key}'", *place)
    path = file.words(entry["path"], *place, "path")
    if path in CAUSES or path in lang.BUILT_IN_PATHS:
        raise file.fail(f"'{path}' is a path of faults: a stream has one of its own", *place, "path")
    order = entry.get("order", "address")
    for key, value, known in (("set", entry["set"], lang.SETS), ("order", order, lang.ORDERS)):
        if value not in known:
            raise file.fail(f"{key} is one of {', '.join(known)}", *place, key)
    if entry["set"] == "all" and order == "recorded":
        raise file.fail("of all memory no order was recorded: say address", *place, "order")
    for key in ("packed", "before"):
        file.flag(entry.get(key, False), *place, key)
    return PageStream(
        path=path,
        set=entry["set"],
        order=order,
        servers=operands.count(entry.get("servers", 1), 1, MOST_SERVERS, *place, "servers"),
        chunk=operands.size(entry.get("chunk", 0), *place, "chunk"),
        packed=bool(entry.get("packed", False)),
        before=bool(entry.get("before", False)),
        says=file.words(entry.get("says", ""), *place, "says"),
    )


def check_stream_paths(file: TomlFile, streams: Collection[PageStream], paths: Mapping[str, tuple[Stage, ...]]) -> None:
    """Every stream has its path, every further path its stream, and only these skip.

    Raises:
        UsageError: naming the place and the reason.
    """
    named = {stream.path for stream in streams}
    for number, stream in enumerate(streams):
        if stream.path not in paths:
            raise file.fail(f"there is no [[paths.{stream.path}]]", "streams", number, "path")
    for name, stages in paths.items():
        if name not in CAUSES and name not in lang.BUILT_IN_PATHS and name not in named:
            known = ", ".join((*CAUSES, "present", "refault", "rewrite"))
            raise file.fail(f"unknown class of fault, and no stream's path; the classes are {known}", "paths", name)
        wrong = "join" if name in named else "skip"
        for at, stage in enumerate(stages):
            if stage.verb == "coalesce" and stage.operand == wrong:
                reason = "a stream waits for nobody's fault: say skip" if name in named else "only a stream skips"
                raise file.fail(reason, "paths", name, at, "coalesce")


def read_storage(file: TomlFile, operands: Operands, name: str, entry: dict[str, Any]) -> Resource:
    """A resource of kind storage.

    Raises:
        UsageError: naming the place and the reason.
    """
    place = ("resources", name)
    if "latency" not in entry:
        raise file.fail("missing 'latency'", *place)
    file.flag(entry.get("onward", False), *place, "onward")
    cached = entry.get("cached", 0)
    if is_arithmetic(cached):
        operands.arithmetic(cached, *place, "cached")
    else:
        operands.chance(cached, *place, "cached")
    keys = StorageKeys(
        latency=operands.cost(entry["latency"], *place, "latency"),
        depth=operands.count(entry.get("depth", 0), 0, MOST_DEPTH, *place, "depth"),
        readahead=operands.size(entry.get("readahead", 0), *place, "readahead"),
        onward=bool(entry.get("onward", False)),
        cached=cached,
        left=operands.count(entry.get("left", 0), 0, 1, *place, "left"),
    )
    bandwidth = operands.size(entry.get("bandwidth", 0), *place, "bandwidth", unit="bytes/s")
    return Resource(name, "storage", bandwidth, "vm", keys)
