"""How large a module, a function and its signature may be; exit code 1 where one is larger. Part of `make lint`.

python scripts/sizes.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 15_000
MOST_TEST_BYTES: Final = 24_000
"""Of a test module: it is read one test at a time, and its cases are rows of data."""
MOST_LINES: Final = 80
MOST_PARAMETERS: Final = 8
ROOMS: Final = (
    "analysis",
    "benchmarks",
    "collect",
    "faultreplay",
    "faulttrace",
    "lab",
    "replay",
    "scripts",
    "tests",
)
WHOLE: Final = ("replay/engine/kernel.py", "tests/replay_model.py:fault")
"""Exceptions for good: the compiled loop, in which a call at the end of each fault makes replays slower, and its
counterpart in simpy, which is read beside it."""


def too_large(path: str, text: str) -> Iterator[tuple[str, str]]:
    """(`path` or ``path:function``, what is too large of it) for one module."""
    most = MOST_TEST_BYTES if path.startswith("tests/") else MOST_BYTES
    if len(text.encode()) > most:
        yield path, f"{len(text.encode()):,} bytes, at most {most:,}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if lines > MOST_LINES:
            yield f"{path}:{node.name}", f"{lines} lines, at most {MOST_LINES}"
        if count > MOST_PARAMETERS:
            yield f"{path}:{node.name}", f"{count} parameters, at most {MOST_PARAMETERS}"


def main(root: Path) -> int:
    """Print what is too large below `root`; 1 if anything is."""
    found = [
        (where, what)
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
        for where, what in too_large(str(path.relative_to(root)), path.read_text(encoding="utf-8"))
        if not where.startswith(WHOLE)
    ]
    for where, what in found:
        print(f"{where}: {what}: split it", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent.parent))
