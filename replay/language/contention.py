"""Which locks and sections of a mechanism have a cost; the others need no operation in the engine."""

from __future__ import annotations

from collections.abc import Callable

from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.stage import Amount

Mean = Callable[[Mechanism, Amount | None], int]


def lock_matters(mechanism: Mechanism, lock: str, mean: Mean) -> bool:
    """Whether some stage of some path holds `lock` for any time; empty: no lock."""
    if not lock:
        return False
    stages = (stage for path in mechanism.paths.values() for stage in path)
    holding = [s.options for s in stages if (s.verb == "hold" and s.name == lock) or s.options.under == lock]
    costs = (cost for o in holding for cost in (o.takes, o.contended, o.also, o.walk, o.cold))
    return any(mean(mechanism, cost) > 0 for cost in costs)


def section_matters(mechanism: Mechanism, section: str, mean: Mean) -> bool:
    """Whether anybody is slowed down by who else is inside `section`."""
    stages = (stage for path in mechanism.paths.values() for stage in path)
    entering = [s.options for s in stages if (s.verb == "enter" and s.name == section) or s.options.within == section]
    return any(mean(mechanism, cost) > 0 for o in entering for cost in (o.each, o.once))
