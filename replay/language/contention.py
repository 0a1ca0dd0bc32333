"""Locks and sections of a mechanism: those without a cost need no operation in the engine, others fewer."""

from __future__ import annotations

from collections.abc import Callable

from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Share
from faultreplay.replay.language.stage import Amount

Mean = Callable[[Mechanism, Amount | None], int]


def lock_matters(mechanism: Mechanism, lock: str, mean: Mean) -> bool:
    """Whether some stage of some path holds `lock` for any time; empty: no lock."""
    if not lock:
        return False
    stages = (stage for path in mechanism.paths.values() for stage in path)
    holding = [s.options for s in stages if (s.verb == "hold" and s.name == lock) or s.options.under == lock]
    costs = (cost for at in holding for cost in (at.takes, at.contended, at.also, at.walk, at.cold))
    return any(mean(mechanism, cost) > 0 for cost in costs)


def section_matters(mechanism: Mechanism, section: str, mean: Mean) -> bool:
    """Whether anybody is slowed down by who else is inside `section`."""
    stages = (stage for path in mechanism.paths.values() for stage in path)
    entering = [s.options for s in stages if (s.verb == "enter" and s.name == section) or s.options.within == section]
    return any(mean(mechanism, cost) > 0 for at in entering for cost in (at.each, at.once))


def left_at_once(ops: list[list[int]], shares: list[Share], section: int, barrier: int) -> bool:
    """Where a section was entered for one delay, a single operation does all three: whether it does.

    `ops` end with the delay; nothing jumps to one of them from `barrier` on.
    """
    entered, delay = len(ops) - 2, len(ops) - 1
    if entered < barrier or [op[0] for op in ops[entered:]] != [o.ENTER, o.DELAY]:
        return False
    if ops[entered][o.SECTION] != section or ops[delay][o.DELAY_MORE]:
        return False
    ops[entered][o.COST : o.COST_DRAW + 1] = ops.pop()[o.COST : o.COST_DRAW + 1]
    ops[entered][o.ENTER_LEAVES] = 1
    for number, share in enumerate(shares):
        if share.pc == delay:
            shares[number] = share._replace(pc=entered, column=2 if share.column else 0)
    return True
