"""Which locks and sections of a mechanism cost anything: those that do not need no operation of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faultreplay.replay.language.mechanism import Mechanism

Mean = Callable[[Mechanism, Any], int]
_OF_A_LOCK = ("takes", "contended", "also", "walk", "cold")
_OF_A_SECTION = ("each", "once")


def lock_matters(mechanism: Mechanism, lock: str | None, mean: Mean) -> bool:
    """Whether some stage of some path holds `lock` for any time."""
    if lock is None:
        return False
    stages = (stage for path in mechanism.paths.values() for stage in path)
    holding = [s for s in stages if (s.verb == "hold" and s.operand == lock) or s.options.get("under") == lock]
    return any(mean(mechanism, s.options.get(key, 0)) > 0 for s in holding for key in _OF_A_LOCK)


def section_matters(mechanism: Mechanism, section: str, mean: Mean) -> bool:
    """Whether anybody is slowed down by who else is inside `section`."""
    stages = (stage for path in mechanism.paths.values() for stage in path)
    entering = [s for s in stages if (s.verb == "enter" and s.operand == section) or s.options.get("within") == section]
    return any(mean(mechanism, s.options.get(key, 0)) > 0 for s in entering for key in _OF_A_SECTION)
