"""A check of a mechanism file beyond reading it: every path must compile."""

from __future__ import annotations

import itertools
from typing import Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.language.compiler import Compiler, Demand
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import Mechanism

_SMALLEST_PAGE_BYTES: Final = 4096


def check_mechanism(mechanism: Mechanism) -> None:
    """Compile all paths for all accessors, with and without host CPUs, at the shipped costs and 4K pages.

    So a file that is found sound is not refused when a trace is replayed, but for what only that trace or the
    command line adds: larger pages, other costs, parameters.

    Raises:
        UsageError: a path cannot be run; the message names the file.
    """
    needed = list(itertools.product(range(len(CAUSES)), range(len(ACCESSORS))))
    for on_cpus in (False, True):
        try:
            demand = Demand(
                accessors=1,
                page_bytes=_SMALLEST_PAGE_BYTES,
                needed=needed,
                refaults=True,
                rewrites=True,
                on_cpus=on_cpus,
            )
            Compiler(mechanism, load_costs(), demand).program()
        except UsageError as error:
            raise UsageError(f"{mechanism.file}: {error}") from None
