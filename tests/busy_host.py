"""Live tests on a host that others use too: what is a matter of time is judged again, on that ground alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

BUSY_SHARE: Final = 0.05
"""of the time some thread that could run waited for a CPU: from here on a threshold of time says nothing"""


def waited_ns() -> int:
    """How long, since boot, at least one thread waited for a CPU (pressure stall information); 0 where not told."""
    try:
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except (OSError, IndexError):
        return 0
    return int(line.rpartition("total=")[2]) * 1000


def judged_in_time(attempt: Callable[[], T], judge: Callable[[T], None], *, tries: int = 5) -> T:
    """Make `attempt` and `judge` how long things took in it; again only where the host was busy meanwhile.

    What must hold on any host (counts, contents) does not belong into `judge`: it is never tried again.
    """
    for left in reversed(range(tries)):
        begun, before = time.monotonic_ns(), waited_ns()
        made = attempt()
        share = (waited_ns() - before) / max(time.monotonic_ns() - begun, 1)
        busy = share > BUSY_SHARE or (before == 0 and os.getloadavg()[0] > (os.cpu_count() or 1))
        try:
            judge(made)
        except AssertionError as error:
            if not busy or not left:
                error.add_note(f"threads waited for a CPU in {share:.0%} of the time; {left} tries were left")
                raise
        else:
            return made
    raise AssertionError("unreachable")
