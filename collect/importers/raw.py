"""What every reader of another tool's output gives: events by name and field, losses, and lines it cannot read."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from faultreplay.faulttrace.errors import IncompleteData, NoPermission, UsageError


@dataclass(frozen=True)
class Raw:
    """One event as the source tells it. `name` is ``category:event``; `tgid` 0 where the source has no process id."""

    ts_ns: int
    cpu: int
    tgid: int
    tid: int
    comm: str
    name: str
    fields: dict[str, int]


@dataclass(frozen=True)
class LostEvents:
    """The source's own word that it lost events."""

    count: int
    cpu: int = -1


@dataclass(frozen=True)
class BadLine:
    """A line that ought to be an event and cannot be read as one."""

    number: int
    text: str
    why: str


@dataclass(frozen=True)
class Skipped:
    """An event that faultreplay has no use for."""

    name: str


@dataclass
class Source:
    """What the file says of itself, filled while it is read."""

    clock: str = "not stated by the source"
    kernel: str = ""
    machine: str = ""
    cpu_model: str = ""
    cpus: int = 0
    command: list[str] = field(default_factory=list)
    coarse: bool = False  # time stamps of whole microseconds


Item: TypeAlias = Raw | LostEvents | BadLine | Skipped


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, packed with gzip or not.

    Raises:
        UsageError: no such file.
        NoPermission: may not be read.
        IncompleteData: not text, or a damaged gzip file.
    """
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", errors="replace") if packed else path.open(errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1 and "\0" in line:
                    raise IncompleteData(f"{path}: not text: give the output of the tool's report, not its data file")
                yield number, line.rstrip("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder, not a file") from None
    except PermissionError:
        raise NoPermission(f"{path}: may not be read") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise IncompleteData(f"{path}: damaged gzip file: {error}") from None


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
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    raise ValueError(f"'{text}' is not a number")


def short(items: Iterable[str], most: int = 5) -> str:
    """The first few, and how many more."""
    words = list(items)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
