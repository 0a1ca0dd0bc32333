"""Faults on a granule that others have asked for: they join, and are woken when it is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from faultreplay.replay.engine.draws import draw_bits, sample, sixteen
from faultreplay.replay.engine.jit import part
from faultreplay.replay.engine.layout import (
    A_KIND,
    CLOCK,
    DRAW,
    INF,
    NEXT,
    PC,
    Q_FREE,
    R_SLEEPERS,
    ROW,
    T_QUEUE,
    WHO,
)
from faultreplay.replay.engine.machine import instance
from faultreplay.replay.engine.opcodes import (
    COALESCE_SLEEPS,
    COALESCE_WAKE,
    COST,
    COST_DRAW,
    COST_TABLE,
    PC_ENDED,
    PC_RESUME,
    TAIL_AWAKE,
    WAKE_FROM,
    WAKE_SECTION,
    WAKE_TAIL,
)
from faultreplay.replay.engine.threads import rest, wake_up


@part
def join(  # noqa: PLR0917
    machine: Any, code: Any, faults: Any, granules: Any, slot: Any, row: Any, t: Any
) -> Any:
    """`slot`, at a COALESCE, finds at `t` that the granule of `row` is there or on its way: (its clock, whether it need
    not wait, its next event).
    """
    host, st, ops = machine.host, machine.st, code.ops
    pc, who, granule = st[slot, PC], st[slot, WHO], faults.granule[row]
    at = granules.present_at[granule]
    if at == INF:
        st[slot, NEXT] = granules.joined[granule]
        granules.joined[granule] = slot
        return t, False, np.int64(INF)
    machine.spent[pc, 0] += max(t, at) - t
    if machine.cpus and at > t:  # a stream brings it: sleeps until then
        rest(host, slot, t)
        return at, False, (at << host.bits) | slot
    # resolved meanwhile, or on its way with a known arrival: only the wake is left
    wake = ops[pc, COALESCE_WAKE]
    if ops[pc, COALESCE_SLEEPS]:
        queue = instance(ops[wake, WAKE_FROM], ops[wake, WAKE_FROM + 1], who, faults.shard, row)
        machine.rs[queue, R_SLEEPERS] -= 1
    took = ops[wake, COST]
    if ops[wake, COST_TABLE] >= 0:
        draw = ops[wake, COST_DRAW]
        bits = draw_bits(code.seed, st[slot, DRAW], draw >> 2)
        took += sample(code.tables, ops[wake, COST_TABLE], sixteen(bits, draw))
    machine.spent[wake, 1] += took
    if machine.ac[who, A_KIND] == 0:
        machine.stage2_epoch[granule] = machine.epoch[0]
    return max(t, at) + took, True, np.int64(INF)


@part
def tell(  # noqa: PLR0917
    machine: Any, code: Any, faults: Any, joiner: Any, t: Any, now: Any, slower: Any, ready_count: Any
) -> Any:
    """Those that joined the fault of another are woken at `t`, when the granule is there, and pay for their own wake:
    how many slots are ready. `joiner`: the last that joined; `slower`: ns more where its wake goes through the section.
    """
    host, st, ops = machine.host, machine.st, code.ops
    while joiner >= 0:
        following = st[joiner, NEXT]
        whose, row = st[joiner, WHO], st[joiner, ROW]
        # its own wake, from where it sleeps: another class or kind of accessor has another path
        asleep_at = st[joiner, PC]
        wake = ops[asleep_at, COALESCE_WAKE]
        if ops[asleep_at, COALESCE_SLEEPS]:
            machine.rs[
                instance(ops[wake, WAKE_FROM], ops[wake, WAKE_FROM + 1], whose, faults.shard, row), R_SLEEPERS
            ] -= 1
        if machine.ac[whose, A_KIND] == 0:
            machine.stage2_epoch[faults.granule[row]] = machine.epoch[0]
        ns = ops[wake, COST] + (slower if ops[wake, WAKE_SECTION] else 0)
        if ops[wake, COST_TABLE] >= 0:
            table, draw = ops[wake, COST_TABLE], ops[wake, COST_DRAW]
            if machine.cpus and ops[wake, WAKE_TAIL] != TAIL_AWAKE:
                table += np.int64(host.queues[host.th[joiner, T_QUEUE], Q_FREE] == 0)
            bits = draw_bits(code.seed, st[joiner, DRAW], draw >> 2)
            ns += sample(code.tables, table, sixteen(bits, draw))
        begins = now if machine.cpus else max(t, st[joiner, CLOCK])
        machine.spent[asleep_at, 0] += begins - st[joiner, CLOCK]
        machine.spent[wake, 1] += ns
        if machine.cpus:
            st[joiner, PC] = PC_RESUME
            wake_up(host, joiner, now, whose, ns)  # it may have slept as another thread
        else:
            st[joiner, PC] = PC_ENDED
            st[joiner, CLOCK] = begins + ns
            machine.ready[ready_count] = joiner
            ready_count += 1
        joiner = following
    return ready_count
