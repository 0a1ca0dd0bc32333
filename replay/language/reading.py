"""A user's TOML file: every value is read through a check of its type and bounds that knows file, line and key.

Not `msgspec.convert`: it says where in the data a value is, but not on which line, and not how to fix it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.regular import read_text_file
from faultreplay.faulttrace.units import LONGEST_NS, MOST_BYTES, parse_duration_ns, parse_size_bytes
from faultreplay.replay.language.places import line_of

_MOST_NUMBER: Final = 1 << 53  # above, floats leave whole numbers out


class TomlFile:
    """One file on its way to a mechanism or a cost table.

    A `place` is the keys from the root; an integer is the index in an array of tables.
    """

    def __init__(self, path: Path, text: str, data: dict[str, Any]) -> None:
        self.path, self.text, self.data = path, text, data

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """The file at `path`.

        Raises:
            UsageError: not a text, not TOML, no regular file, or larger than any such file is.
            FileNotFoundError, NotADirectoryError: there is none.
            NoPermission: it may not be read.
        """
        text = read_text_file(path)
        try:
            return cls(path, text, tomllib.loads(text))
        except RecursionError:
            raise UsageError(f"{path}: not TOML: nested too deeply") from None
        except ValueError as error:  # also what Python's own int() refuses
            raise UsageError(f"{path}: not TOML: {error}") from None

    def fail(self, reason: str, *place: str | int) -> UsageError:
        """The complaint about what stands at `place`, to be raised."""
        return UsageError(f"{self.place(*place)}: {reason}")

    def place(self, *place: str | int) -> str:
        """`FILE:LINE: dotted.key`."""
        if not place:
            return f"{self.path}:1: file"
        path, text, place = self.origin(place)
        dotted = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
        return f"{path}:{line_of(text, place)}: {dotted}"

    def origin(self, place: tuple[str | int, ...]) -> tuple[str, str, tuple[str | int, ...]]:
        """(file, its text, place in it): for files that take tables over from others."""
        return str(self.path), self.text, place

    def table(self, value: Any, *place: str | int) -> dict[str, Any]:
        """A table."""
        if not isinstance(value, dict):
            raise self.fail(f"must be a table, not {kind_of(value)}", *place)
        return value

    def known(self, value: Any, keys: Iterable[str], *place: str | int) -> dict[str, Any]:
        """A table with no keys but `keys`."""
        table = self.table(value, *place)
        keys = tuple(keys)
        for key in table:
            if key not in keys:
                raise self.fail(f"unknown key; known are {', '.join(keys)}", *place, key)
        return table

    def words(self, value: Any, *place: str | int) -> str:
        """A text."""
        if not isinstance(value, str):
            raise self.fail(f"must be a text in quotes, not {kind_of(value)}", *place)
        return value

    def texts(self, value: Any, *place: str | int) -> list[str]:
        """A text or a list of texts, none of them empty."""
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(item, str) and item for item in entries):
            raise self.fail("must be a text or a list of texts", *place)
        return entries

    def flag(self, value: Any, *place: str | int) -> bool:
        """true or false."""
        if not isinstance(value, bool):
            raise self.fail(f"must be true or false, not {kind_of(value)}", *place)
        return value

    def whole(self, value: Any, low: int, high: int, *place: str | int) -> int:
        """A whole number within bounds."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"must be a whole number from {low} to {high}, not {shown(value)}", *place)
        return value

    def share(self, value: Any, *place: str | int) -> float:
        """A number from 0 to 1."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"must be a number from 0 to 1, not {kind_of(value)}", *place)
        if not 0 <= value <= 1:
            raise self.fail(f"{shown(value)} is not between 0 and 1", *place)
        return value

    def size(self, value: Any, *place: str | int) -> int:
        """Bytes: a whole number, or a text as ``4K``."""
        if isinstance(value, str):
            try:
                return parse_size_bytes(value)
            except UsageError as error:
                raise self.fail(str(error), *place) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_BYTES:
            raise self.fail(f"{shown(value)} is not a size of 0 or more (as 4096 or '4K')", *place)
        if value != int(value):
            raise self.fail(f"{shown(value)} is not a whole number of bytes", *place)
        return int(value)


def number_in(raw: Any, unit: str, place: str) -> float:
    """A parameter's value in its `unit`: a number, or a text with a unit of its own.

    Raises:
        UsageError: not a finite number, not whole where things are counted, or beyond the limits.
    """
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise UsageError(f"{place}: {shown(raw)} is not a number")
    try:
        if isinstance(raw, str) and unit == "ns":
            return float(parse_duration_ns(raw, default_unit="ns"))
        if isinstance(raw, str) and unit.startswith("bytes"):
            return float(parse_size_bytes(raw.removesuffix("/s")))
        value = float(raw)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    except (ValueError, OverflowError):
        raise UsageError(f"{place}: '{shown(raw)}' is not a number ({unit})") from None
    most = LONGEST_NS if unit == "ns" else MOST_BYTES if unit.startswith("bytes") else _MOST_NUMBER
    if not math.isfinite(value) or abs(value) > most:
        raise UsageError(f"{place}: {shown(raw)} is not a number within the limit (at most {most:g} {unit})")
    if counts_things(unit) and not value.is_integer():
        raise UsageError(f"{place}: {shown(raw)} is no whole number ({unit})")
    return value


def counts_things(unit: str) -> bool:
    """Whether a parameter of this unit is a whole number."""
    return unit not in ("", "ratio", "share", "probability")


def kind_of(value: Any) -> str:
    """What a TOML value is, in words."""
    kinds = (
        (bool, "true or false"),
        (str, "a text"),
        ((int, float), "a number"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), "a date or time")


def shown(value: Any) -> str:
    """`value` in a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return kind_of(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
