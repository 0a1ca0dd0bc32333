"""Where in a TOML text a key stands. `tomllib` keeps no positions, so the text is searched for headers and keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADER = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


def line_of(text: str, place: Sequence[str | int]) -> int:
    """Line number (from 1) of a key or table in TOML `text`.

    Args:
        text: the file
        place: keys from the root; an integer is the index in an array of tables, as ``("paths", "missing", 2)``

    Returns: the line of the key, else of the nearest table around it, else 1.
    """
    index = next((part for part in place if isinstance(part, int)), 0)
    best = (0, 1)
    header: list[str] = []
    seen: dict[str, int] = {}
    current = 0
    indexed = any(isinstance(part, int) for part in place)
    keys = [str(part) for part in place if not isinstance(part, int)]
    for number, line in enumerate(text.splitlines(), 1):
        match = _HEADER.match(line)
        if match:
            header = [piece.strip(" \"'") for piece in match[1].split(".")]
            name = ".".join(header)
            current = seen.get(name, -1) + 1
            seen[name] = current
            path = header
        else:
            match = _KEY.match(line)
            if not match:
                continue
            path = header + [piece.strip(" \"'") for piece in match[1].split(".")]
        if indexed and current != index and header == keys[: len(header)] and len(header) > 1:
            continue
        common = 0
        for a, b in zip(path, keys, strict=False):
            if a != b:
                break
            common += 1
        if common == len(path) and common > best[0]:
            best = (common, number)
    return best[1]
