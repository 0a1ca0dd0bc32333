"""What the shell is offered for mechanisms, parameters, cost files and traces."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem


def traces(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Traces, as directories or packed, that begin so; where there is none, any directory."""
    folder, _, _ = incomplete.rpartition("/")
    at = Path(f"{folder}/") if incomplete.startswith("/") or folder else Path()
    names = sorted(str(path) for path in at.glob("*.trace")) if at.is_dir() else []
    found = [name for name in names if name.startswith(incomplete.removeprefix("./"))]
    return [CompletionItem(name) for name in found] or [CompletionItem(incomplete, type="dir")]


def mechanisms(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped mechanisms and .toml files, after the last comma; after a colon the parameters of one."""
    done, comma, last = incomplete.rpartition(",")
    name, colon, part = last.rpartition(":")
    if colon:
        words = [f"{name}:{param}=" for param in _params(name) if param.startswith(part)]
    else:
        words = [word for word in (*_shipped(), *_files()) if word.startswith(last)]
    return [CompletionItem(f"{done}{comma}{word}") for word in words]


def settings(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`MECHANISM.PARAMETER=`."""
    name, dot, part = incomplete.rpartition(".")
    if not dot:
        return [CompletionItem(f"{word}.") for word in _shipped() if word.startswith(part)]
    return [CompletionItem(f"{name}.{param}=") for param in _params(name) if param.startswith(part)]


def cost_files(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped cost files, and .toml files."""
    from faultreplay.replay.language.costs import list_costs

    words = [word for word in (*list_costs(), *_files()) if word.startswith(incomplete)]
    return [CompletionItem(word) for word in words] or [CompletionItem(incomplete, type="file")]


def _shipped() -> list[str]:
    from faultreplay.replay.language.mechanism import list_mechanisms

    return list_mechanisms()


def _files() -> list[str]:
    return sorted(str(path) for path in Path().glob("*.toml"))


def _params(name: str) -> list[str]:
    from faultreplay.faulttrace.errors import FaultreplayError
    from faultreplay.replay.language.mechanism import load_mechanism

    try:
        return list(load_mechanism(name).params)
    except FaultreplayError:
        return []
