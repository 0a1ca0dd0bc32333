"""What happens seldom in the compiled loop, as functions: windows, the background stream, the open-loop source.

A call with arrays costs reference counts; what every fault goes through stands in the loop itself (`kernel`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from faultreplay.replay.engine.cpus import Host, dequeue, give_up
from faultreplay.replay.engine.draws import draw_bits, sample, sixteen
from faultreplay.replay.engine.jit import inline, part
from faultreplay.replay.engine.layout import (
    A_FIRST,
    A_KIND,
    A_LEFT,
    A_REFAULTS,
    A_RESUME,
    A_TOUCHED,
    AWAY,
    CLOCK,
    DRAW,
    INF,
    NEVER,
    NEXT,
    ON,
    P_BACKLOG,
    P_BYTES,
    P_LINK,
    P_ON_LINK,
    P_PLACED,
    PC,
    Q_FREE,
    Q_WORK,
    R_BUSY,
    R_BYTES,
    R_FREE_AT,
    R_SLEEPERS,
    REWRITE,
    ROW,
    S_FAULTS,
    S_REFAULTED,
    S_STOPPED,
    SINCE,
    SLOT_PUSH,
    SLOT_SOURCE,
    SLOT_WINDOW,
    T_LEFT,
    T_QUEUE,
    T_STATE,
    T_WHO,
    TRY,
    W_BLOCKS_ALL,
    W_BLOCKS_WRITES,
    W_EMPTIES,
    W_ENTER,
    W_ENTER_PER_PAGE_PS,
    W_LEAVE,
    W_LEAVE_PER_PAGE_PS,
    W_LENGTH,
    W_RESUME,
    W_RETOUCH,
    W_START,
    W_STOPS,
    WHO,
)
from faultreplay.replay.engine.opcodes import (
    COALESCE_SLEEPS,
    COALESCE_WAKE,
    PC_ARRIVE,
    PC_ENDED,
    PC_RESUME,
    PC_START,
    PER_ACCESSOR,
    PER_VM,
    TAIL_AWAKE,
    WAKE_COST,
    WAKE_FROM,
    WAKE_SECTION,
    WAKE_TAIL,
)
from faultreplay.replay.engine.threads import wake_up
from faultreplay.replay.engine.tournament import set_key


class Machine(NamedTuple):
    """The state of a run, for functions; the loop has the same arrays as variables."""

    host: Host
    st: Any
    """[slots, SLOT_COLUMNS]"""
    ac: Any
    """[A, A_COLUMNS]"""
    rs: Any
    """[resource instances, R_COLUMNS]"""
    stage2_epoch: Any
    """[G]: see `records.Granules`"""
    epoch: Any
    """[1]: how often stage 2 was emptied, and 1"""
    spent: Any
    """[operations, SPENT_COLUMNS]"""
    ready: Any
    """[slots]: a stack of those that go on at this instant"""
    first: Any
    """slot of the first accessor"""
    cpus: Any
    open_loop: Any
    time_limit: Any
    """event times end here"""


@inline
def instance(base: Any, per: Any, accessor: Any, shard: Any, row: Any) -> Any:
    """Which of a resource's instances this fault uses: two columns of the operation, from `of` on."""
    if per == PER_VM:
        return base
    if per == PER_ACCESSOR:
        return base + accessor
    return base + (np.int64(shard[row]) if row >= 0 else np.int64(0))


@part
def set_off(machine: Any, arrivals: Any) -> Any:
    """The first events: of each special slot, and of accessors in a closed loop; how many slots are ready."""
    host, st, first = machine.host, machine.st, machine.first
    tree, leaves, bits, queues = host.tree, host.leaves, host.bits, host.queues.shape[0]
    if arrivals.windows.shape[0]:
        set_key(tree, leaves, SLOT_WINDOW, (arrivals.windows[0, W_START] << bits) | SLOT_WINDOW)
    if arrivals.pushed.size:
        set_key(tree, leaves, SLOT_PUSH, SLOT_PUSH)
    if machine.open_loop:
        set_key(tree, leaves, SLOT_SOURCE, (arrivals.time[arrivals.order[0]] << bits) | SLOT_SOURCE)
        return 0
    accessors = machine.ac.shape[0]
    for a in range(accessors):
        slot = first + a
        st[slot, WHO] = a
        st[slot, PC] = PC_START
        if machine.cpus:
            host.th[slot, T_QUEUE] = a % queues
            host.th[slot, T_WHO] = a
        machine.ready[accessors - 1 - a] = slot
    return accessors


@part
def open_window(  # noqa: PLR0917
    machine: Any, windows: Any, out: Any, number: Any, now: Any, pages: Any
) -> Any:
    """Window `number` begins, with so many native `pages` touched: (end, who is stopped, whose accesses wait, whose
    writes wait), the latter three as bits of accessor kinds. An end past the time limit: nothing was done.
    """
    bits = machine.host.bits
    row = windows[number]
    stops = row[W_STOPS]
    end = (
        now + row[W_LENGTH] + row[W_ENTER] + row[W_LEAVE]
        + (row[W_ENTER_PER_PAGE_PS] * pages + row[W_LEAVE_PER_PAGE_PS] * pages) // 1000
    )  # fmt: skip
    out[number, 0] = now
    out[number, 1] = end
    resumed = end + row[W_RESUME]
    if resumed >= machine.time_limit:
        return resumed, stops, row[W_BLOCKS_ALL], row[W_BLOCKS_WRITES]
    if not machine.open_loop:
        for a in range(machine.ac.shape[0]):
            if row[W_EMPTIES] and row[W_RETOUCH] and machine.ac[a, A_KIND] == 0:
                machine.ac[a, A_REFAULTS] = machine.ac[a, A_TOUCHED]
            if (stops >> machine.ac[a, A_KIND]) & 1:
                _hold_back(machine, a, now, resumed)
    machine.epoch[0] += row[W_EMPTIES]
    end = resumed if stops else end
    key = np.int64(INF)
    if number + 1 < windows.shape[0]:
        key = (max(windows[number + 1, W_START], end) << bits) | SLOT_WINDOW
    set_key(machine.host.tree, machine.host.leaves, SLOT_WINDOW, key)
    return end, stops, row[W_BLOCKS_ALL], row[W_BLOCKS_WRITES]


@part
def _hold_back(machine: Any, a: Any, now: Any, resumed: Any) -> None:
    """Accessor `a` cannot run from `now` to `resumed`: if it thinks, what is left of that is done then."""
    host, st, ac = machine.host, machine.st, machine.ac
    th = host.th
    slot = machine.first + a
    if ac[a, A_RESUME] >= resumed and ac[a, A_REFAULTS] == 0:
        return
    thinks = st[slot, PC] == PC_ARRIVE and host.tree[host.leaves + slot] != INF
    if machine.cpus and st[slot, PC] == PC_ARRIVE and th[slot, T_STATE] != AWAY:
        # it is taken off its CPU, or out of the queue for one
        if th[slot, T_STATE] == ON:
            give_up(host, slot, now)
            set_key(host.tree, host.leaves, slot, INF)
        else:
            dequeue(host, slot)
        left = th[slot, T_LEFT]
        th[slot, T_LEFT] = 0
        host.queues[th[slot, T_QUEUE], Q_WORK] -= left
        st[slot, CLOCK] = now + left
        thinks = True
    if thinks:
        went_on = max(ac[a, A_RESUME], now)
        again = max(ac[a, A_RESUME], resumed)
        ac[a, A_LEFT] = max(st[slot, CLOCK] - went_on, 0)
        ac[a, S_STOPPED] += again - went_on
        ac[a, A_RESUME] = again
        st[slot, PC] = PC_START
        st[slot, CLOCK] = again
        set_key(host.tree, host.leaves, slot, (again << host.bits) | slot)


@part
def push_on(machine: Any, arrivals: Any, present_at: Any, number: Any, now: Any) -> Any:
    """The background stream puts granules on its link while no more than its backlog is taken ahead: the number of the
    next one; -1: it would come past the time limit.
    """
    pushed, push = arrivals.pushed, arrivals.push
    host, rs, link = machine.host, machine.rs, push[P_LINK]
    while number < pushed.size and max(rs[link, R_FREE_AT] - now, 0) <= push[P_BACKLOG]:
        granule = pushed[number]
        number += 1
        if granule >= 0 and present_at[granule] != NEVER:
            continue
        rs[link, R_FREE_AT] = max(rs[link, R_FREE_AT], now) + push[P_ON_LINK]
        rs[link, R_BUSY] += push[P_ON_LINK]
        rs[link, R_BYTES] += push[P_BYTES]
        if granule >= 0:
            present_at[granule] = rs[link, R_FREE_AT] + push[P_PLACED]
    key = np.int64(INF)
    if number < pushed.size:
        at = max(rs[link, R_FREE_AT] - push[P_BACKLOG], now + 1)
        if at >= machine.time_limit:
            return np.int64(-1)
        key = (at << host.bits) | SLOT_PUSH
    set_key(host.tree, host.leaves, SLOT_PUSH, key)
    return np.int64(number)


@part
def arrive(machine: Any, arrivals: Any, number: Any, slot: Any, now: Any) -> None:
    """The open-loop source: fault `number` in time begins, in `slot`."""
    host, st, ac = machine.host, machine.st, machine.ac
    order, time = arrivals.order, arrivals.time
    row = order[number]
    key = np.int64(INF)
    if number + 1 < order.size:
        key = (time[order[number + 1]] << host.bits) | SLOT_SOURCE
    set_key(host.tree, host.leaves, SLOT_SOURCE, key)
    low, high = 0, ac.shape[0]
    while high - low > 1:
        middle = (low + high) // 2
        if ac[middle, A_FIRST] <= row:
            low = middle
        else:
            high = middle
    if machine.cpus:
        host.th[slot, T_QUEUE] = low % host.queues.shape[0]
        host.th[slot, T_WHO] = low
    st[slot, WHO] = low
    st[slot, ROW] = row
    st[slot, DRAW] = row
    st[slot, SINCE] = now
    st[slot, CLOCK] = now
    st[slot, TRY] = 0
    st[slot, PC] = PC_ARRIVE


@part
def refault(ac: Any, path_pc: Any, a: Any) -> Any:
    """Accessor `a` takes one of the faults again that it has to: where its path begins."""
    path = path_pc.shape[0] - 1
    if ac[a, A_REFAULTS] >= REWRITE:
        ac[a, A_REFAULTS] -= REWRITE
        path -= 2
    else:
        ac[a, A_REFAULTS] -= 1
    return path_pc[path, ac[a, A_KIND]]


@part
def tell(  # noqa: PLR0917
    machine: Any, code: Any, faults: Any, joiner: Any, t: Any, now: Any, slower: Any, ready_count: Any
) -> Any:
    """Who joined the fault of another hears at `t` that the granule is there, and wakes in its own time: how many slots
    are ready. `joiner`: the last that joined; `slower`: ns more where its wake goes through the section.
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
        ns = ops[wake, WAKE_COST] + (slower if ops[wake, WAKE_SECTION] else 0)
        if ops[wake, WAKE_COST + 1] >= 0:
            table, draw = ops[wake, WAKE_COST + 1], ops[wake, WAKE_COST + 2]
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


@part
def count_ends(ac: Any) -> Any:
    """How many faults have ended, refaults included."""
    ended = np.int64(0)
    for a in range(ac.shape[0]):
        ended += ac[a, S_FAULTS] + ac[a, S_REFAULTED]
    return ended
