"""Options of a restore: earlier runs, the storage with the snapshot, its page cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from faultreplay.cli import completion

F = TypeVar("F", bound=Callable[..., Any])


def restore_options(function: F) -> F:
    """--working-set, --storage, --page-cache, --first."""
    for option in reversed(
        (
            click.option(
                "--working-set",
                "working_sets",
                multiple=True,
                metavar="TRACE,...",
                shell_complete=completion.traces,
                help="Earlier runs of this guest: what a prefetch knows, and what --page-cache left has. "
                "Default: prefetch knows TRACE itself, which no real one can.",
            ),
            click.option(
                "--storage",
                metavar="LATENCY,RATE[,DEPTH]",
                help="The device with the snapshot file, as 80us,2GB/s,32: for every row that reads it.",
            ),
            click.option(
                "--page-cache",
                "page_cache",
                metavar="none|all|SHARE|left",
                help="What the page cache has of the snapshot at the beginning; left: what --working-set runs read.",
            ),
            click.option(
                "--first",
                type=click.IntRange(1),
                default=1000,
                show_default=True,
                help="Restores: how many accesses the column 'first N' waits for.",
            ),
        )
    ):
        function = option(function)
    return function


def restore_setup(options: Mapping[str, Any]) -> dict[str, Any]:
    """These options as fields of `Setup`; of a verb without them, none."""
    from faultreplay.analysis.compare.storage_setting import parse_page_cache, parse_storage

    if "working_sets" not in options:
        return {}
    return {
        "working_sets": tuple(name for text in options["working_sets"] for name in text.split(",") if name),
        "storage": parse_storage(options["storage"]) if options["storage"] else None,
        "page_cache": parse_page_cache(options["page_cache"]) if options["page_cache"] else None,
        "first": options["first"],
    }
