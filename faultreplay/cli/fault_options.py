"""Which faults of a trace: the options that every view of faults shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from faultreplay.cli.options import parse_names
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns

if TYPE_CHECKING:
    from faultreplay.analysis.views.chosen import Choice

F = TypeVar("F", bound=Callable[..., Any])


def fault_choice_options(function: F) -> F:
    """Which faults of a trace: --vcpu, --cause, --longer, --time."""
    for option in reversed(
        (
            click.option("--vcpu", metavar="N,...", help="Faults of these vCPUs only."),
            click.option("--cause", metavar="CAUSE,...", help="Of these causes only, as missing,stage2."),
            click.option("--longer", metavar="TIME", help="Only those that stalled longer, as 10ms."),
            click.option("--time", metavar="FROM-UNTIL", help="Only of this time, as 5s-8s from the trace's start."),
        )
    ):
        function = option(function)
    return function


def fault_choice(options: Mapping[str, Any]) -> Choice:
    """The values of `fault_choice_options`.

    Raises:
        UsageError: one that is not of its form.
    """
    from faultreplay.analysis.views.chosen import Choice
    from faultreplay.faulttrace.cut import Span, parse_span

    span = parse_span(options["time"]) if options["time"] is not None else Span()
    return Choice(
        vcpus=parse_vcpus(options["vcpu"]),
        causes=parse_names((options["cause"] or "",)),
        longer_ns=parse_duration_ns(options["longer"]) if options["longer"] is not None else None,
        from_ns=span.from_ns,
        until_ns=span.until_ns,
    )


def parse_vcpus(text: str | None) -> tuple[int, ...]:
    """`0,2` as numbers of vCPUs, each once; none where the option is not given.

    Raises:
        UsageError: not whole numbers.
    """
    words = [word.strip() for word in text.split(",")] if text is not None else []
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 7):
            raise UsageError(f"--vcpu {word!r}: the number of a vCPU is a whole number")
    return tuple(dict.fromkeys(int(word) for word in words))
