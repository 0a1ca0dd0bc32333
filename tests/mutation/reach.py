"""Which tests reach which lines: a mutant is run with those alone that reach it, the quickest first."""

from __future__ import annotations

import ast
import collections
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

PACKAGES: Final = ("*/faulttrace/stitch/*.py", "*/replay/*/*.py")
"""whose lines are looked at"""
EVERY: Final = "*"
"""in the place of a test: the line runs while tests are collected"""


@dataclass(frozen=True)
class Reach:
    """Of one list of tests, run in one way."""

    seconds: dict[str, float]
    """processor time of each test, slowed down by the looking"""
    lines: dict[str, dict[int, list[str]]]
    """module -> line -> the tests that run it; a file of tests, where a fixture does that several share; or `EVERY`"""

    def tests(self, module: str, span: range | None) -> list[list[str]]:
        """Those that run one of the lines of `span`, a list a file; all where it is None. The quickest first."""
        of_line = self.lines.get(module, {})
        named = {name for line in span or () for name in of_line.get(line, ())}
        files: dict[str, list[str]] = collections.defaultdict(list)
        for test in sorted(self.seconds, key=lambda test: (self.seconds[test], test)):
            file = test.partition("::")[0]
            if span is None or EVERY in named or file in named or test in named:
                files[file].append(test)
        return sorted(files.values(), key=lambda tests: sum(self.seconds[test] for test in tests))

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"seconds": self.seconds, "lines": self.lines}))

    @classmethod
    def read(cls, path: Path) -> Reach:
        """What `write` wrote."""
        told = json.loads(path.read_text())
        lines = {module: {int(n): tests for n, tests in found.items()} for module, found in told["lines"].items()}
        return cls(told["seconds"], lines)


def span_of(source: str, line: int) -> range | None:
    """The lines of the statement that `line` is in, without its body; None: it runs when the module is imported."""
    inner: ast.stmt | None = None
    for outer in ast.walk(ast.parse(source)):
        if not isinstance(outer, ast.FunctionDef):
            continue
        for node in ast.walk(outer):
            if node is outer or not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or 0):
                continue
            if inner is None or node.lineno >= inner.lineno:
                inner = node
    if inner is None:
        return None
    body = getattr(inner, "body", None)
    last = body[0].lineno - 1 if body else inner.end_lineno or inner.lineno
    return range(inner.lineno, max(last, line) + 1)


class _Watch:
    """A plugin of pytest: tells coverage which test runs."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.now = EVERY

    def switch(self, name: str) -> None:
        """What follows is run for this."""
        self.now = name
        self.coverage.switch_context(name)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """A test, with its fixtures."""
        began = time.process_time()
        self.switch(item.nodeid)
        yield
        self.seconds[item.nodeid] = round(time.process_time() - began, 3)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """A fixture that later tests find made is theirs as well."""
        kept = self.now
        if fixturedef.scope != "function":
            self.switch(kept.partition("::")[0])
        yield
        self.switch(kept)


def measured(root: Path, words: Sequence[str], tests: Sequence[str], into: Path, plugins: Sequence[Any]) -> int:
    """Run the tests once and write what they reach `into` a file; pytest's exit code. In a process of its own."""
    import coverage

    looking = coverage.Coverage(data_file=None, include=list(PACKAGES), config_file=False)
    looking.start()
    watch = _Watch(looking)
    watch.switch(EVERY)
    os.chdir(root)
    ended = int(pytest.main([*words, *tests], plugins=[*plugins, watch]))
    looking.stop()
    data = looking.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        module = os.path.relpath(os.path.realpath(path), root)
        lines[module] = {n: sorted(set(names) - {""}) for n, names in data.contexts_by_lineno(path).items()}
    Reach(watch.seconds, lines).write(into)
    return ended
