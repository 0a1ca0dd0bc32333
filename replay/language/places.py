"""The line of a key in a TOML text. `tomllib` keeps no positions, so the text is searched for headers and keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_HEADER = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


class _Entry(NamedTuple):
    """A header or a key of the text."""

    number: int
    """its line, from 1"""
    path: tuple[str, ...]
    """keys from the root"""
    depth: int
    """how many of them are the header's"""
    repeat: int
    """how often the same header stood before"""


def line_of(text: str, place: Sequence[str | int]) -> int:
    """Line number (from 1) of a key or table in TOML `text`.

    Args:
        text: the file
        place: keys from the root; an integer is the index in an array of tables, as ``("paths", "missing", 2)``

    Returns: the line of the key, else of the nearest table around it, else 1.
    """
    index = next((part for part in place if isinstance(part, int)), None)
    keys = tuple(part for part in place if not isinstance(part, int))
    best = (0, 1)
    for number, path, depth, repeat in _entries(text):
        length = len(path)
        if length <= best[0] or path != keys[:length]:
            continue
        if index is not None and depth == place.index(index) and repeat != index:
            continue
        best = (length, number)
    return best[1]


@lru_cache(maxsize=4)
def _entries(text: str) -> tuple[_Entry, ...]:
    """Headers and keys of a file, looked for once: a reader asks for the line of each stage."""
    found = []
    header: tuple[str, ...] = ()
    repeats: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _HEADER.match(line):
            header = _keys(match[1])
            repeats[header] = repeats.get(header, -1) + 1
            found.append(_Entry(number, header, len(header), repeats[header]))
        elif match := _KEY.match(line):
            found.append(_Entry(number, header + _keys(match[1]), len(header), repeats.get(header, 0)))
    return tuple(found)


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(piece.strip(" \"'") for piece in dotted.split("."))
