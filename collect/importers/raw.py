"""What every reader of another tool's output gives: events by name and field, losses, and what it cannot read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

BACKWARDS: Final = "times before that of the line above"


@dataclass(frozen=True, slots=True)
class Raw:
    """One event as the source tells it. `name` is ``category:event``; `tgid` 0 where the source has no process id."""

    ts_ns: int
    cpu: int
    tgid: int
    tid: int
    comm: str
    name: str
    fields: dict[str, int]
    line: int = 0


@dataclass(frozen=True, slots=True)
class RawColumns:
    """Many events of one name in columns, in the order of the file; all have the same fields."""

    name: str
    ts_ns: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]
    line: npt.NDArray[np.int64]
    fields: dict[str, npt.NDArray[np.uint64] | npt.NDArray[np.int64]]
    comms: tuple[tuple[int, str], ...]
    """Threads and their names; more than one where a thread has changed it."""
    tgids: dict[int, int]
    """Thread -> its process, if the text has it."""


@dataclass(frozen=True, slots=True)
class LostEvents:
    """The source's own word that it lost events; `unknown_time`: it does not say when."""

    count: int
    cpu: int = -1
    unknown_time: bool = False
    line: int = 0
    ts_ns: int = 0
    """Time of the first event after it; 0: that of the last one."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that ought to be an event and cannot be read as one; `event`: which one, where that much can be read."""

    number: int
    text: str
    why: str
    event: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Events that are not taken: `count` of them from line `line` on."""

    name: str
    line: int = 0
    count: int = 1
    why: str = ""


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """A whole block of the file has been read: what was built of it may be written."""


@dataclass
class Mark:
    """How often something odd was seen, and the first line."""

    count: int = 0
    line: int = 0

    def add(self, line: int, count: int = 1) -> None:
        """`count` more, the first of them in `line`."""
        if count:
            self.line = self.line or line
            self.count += count


@dataclass
class Source:
    """What the file says of itself, and what is odd about it; filled while it is read."""

    clock: str = "not stated by the source"
    kernel: str = ""
    machine: str = ""
    cpu_model: str = ""
    cpus: int = 0
    command: list[str] = field(default_factory=list)
    coarse: bool = False  # time stamps of whole microseconds
    tells_losses: bool = True
    tail_cut: bool = False  # the file does not end with a newline
    marks: dict[str, Mark] = field(default_factory=dict)

    def mark(self, what: str, line: int, count: int = 1) -> None:
        """Remember that `what` was seen."""
        self.marks.setdefault(what, Mark()).add(line, count)


Item: TypeAlias = Raw | RawColumns | LostEvents | BadLine | Skipped | BlockEnd


def seconds_to_ns(whole: str, fraction: str) -> int:
    """Integer ns of ``whole.fraction`` seconds."""
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])


def number(text: str) -> int:
    """An integer as tracing tools print it: decimal or 0x..., signed.

    Raises:
        ValueError: anything else.
    """
    text = text.strip().rstrip(",")
    if re.fullmatch(r"-?0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    raise ValueError(f"'{text}' is not a number")


def short(items: Iterable[str], most: int = 5) -> str:
    """The first few, and how many more."""
    words = list(items)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
