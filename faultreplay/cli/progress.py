"""Words on long work, on stderr and only for a person: nothing when it is piped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from faultreplay.cli.manners import person_watches
from faultreplay.faulttrace.plain_text import plain


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step; yields the function that names the next one."""
    if not person_watches():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda words: status.update(escape(plain(words)))


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar; yields the function that takes what is done now, its number and how many there are."""
    if not person_watches():
        yield lambda _words, _number, _all: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda words, number, count: progress.update(
            task, description=escape(plain(words)), completed=number, total=count
        )


@contextlib.contextmanager
def amount(words: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes read; yields the function that takes those so far and all (0: not known), None where piped."""
    if not person_watches():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(plain(words)), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
