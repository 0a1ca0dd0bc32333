"""What happens seldom in the compiled loop, as functions: windows, the background stream, the open-loop source.

A call with arrays costs reference counts; what every fault goes through stands in the loop itself (`kernel`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from faultreplay.replay.engine.cpus import dequeue, give_up
from faultreplay.replay.engine.jit import part
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
    NOW_BEGIN,
    NOW_BLOCKS_ALL,
    NOW_BLOCKS_WRITES,
    NOW_END,
    NOW_STOPS,
    ON,
    P_BACKLOG,
    P_BYTES,
    P_LINK,
    P_ON_LINK,
    P_PLACED,
    PC,
    Q_WORK,
    R_BUSY,
    R_BYTES,
    R_FREE_AT,
    ROW,
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
    V_HOME,
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
    PC_ARRIVE,
    PC_START,
)
from faultreplay.replay.engine.tournament import set_key

STOPPED: Final = 1
BLOCKED: Final = 2


@part
def by_itself(  # noqa: PLR0917
    machine: Any, arrivals: Any, out: Any, present_at: Any, slot: Any, now: Any, pages: Any
) -> Any:
    """A window begins, with so many native `pages` touched, or the stream goes on: False where times end first."""
    if slot == SLOT_WINDOW:
        return _open_window(machine, arrivals.windows, out, now, pages)
    return _push_on(machine, arrivals, present_at, now)


@part
def _open_window(machine: Any, windows: Any, out: Any, now: Any, pages: Any) -> Any:
    """The next window begins."""
    bits, number = machine.host.bits, machine.turn[SLOT_WINDOW]
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
        return False
    if not machine.open_loop:
        for a in range(machine.ac.shape[0]):
            if row[W_EMPTIES] and row[W_RETOUCH] and machine.ac[a, A_KIND] == 0:
                machine.ac[a, A_REFAULTS] = machine.ac[a, A_TOUCHED]
            if (stops >> machine.ac[a, A_KIND]) & 1:
                _hold_back(machine, a, now, resumed)
    machine.epoch[0] += row[W_EMPTIES]
    end = resumed if stops else end
    machine.window[NOW_BEGIN] = now
    machine.window[NOW_END] = end
    machine.window[NOW_STOPS] = stops
    machine.window[NOW_BLOCKS_ALL] = row[W_BLOCKS_ALL]
    machine.window[NOW_BLOCKS_WRITES] = row[W_BLOCKS_WRITES]
    key = np.int64(INF)
    if number + 1 < windows.shape[0]:
        key = (max(windows[number + 1, W_START], end) << bits) | SLOT_WINDOW
    machine.turn[SLOT_WINDOW] = number + 1
    set_key(machine.host.tree, machine.host.leaves, SLOT_WINDOW, key)
    return True


@part
def waits_for(window: Any, kind: Any, access: Any, open_loop: Any) -> Any:
    """What the open window does to an access: nothing, 0; its accessor is STOPPED, or the access BLOCKED."""
    if open_loop and (window[NOW_STOPS] >> kind) & 1:
        return STOPPED
    blocked = (window[NOW_BLOCKS_ALL] >> kind) & 1
    if access == 1:
        blocked |= (window[NOW_BLOCKS_WRITES] >> kind) & 1
    return BLOCKED if blocked else 0


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
def _push_on(machine: Any, arrivals: Any, present_at: Any, now: Any) -> Any:
    """The background stream puts granules on its link while no more than its backlog is taken ahead; False where
    the next would come past the time limit.
    """
    pushed, push = arrivals.pushed, arrivals.push
    host, rs, link = machine.host, machine.rs, push[P_LINK]
    number = machine.turn[SLOT_PUSH]
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
            return False
        key = (at << host.bits) | SLOT_PUSH
    set_key(host.tree, host.leaves, SLOT_PUSH, key)
    machine.turn[SLOT_PUSH] = number
    return True


@part
def arrive(machine: Any, arrivals: Any, slot: Any, now: Any) -> None:
    """The open-loop source: the next fault in time begins, in `slot`."""
    host, st, ac = machine.host, machine.st, machine.ac
    order, time = arrivals.order, arrivals.time
    number = machine.turn[SLOT_SOURCE]
    machine.turn[SLOT_SOURCE] = number + 1
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
        host.th[slot, T_QUEUE] = host.tv[low, V_HOME]
        host.th[slot, T_WHO] = low
    st[slot, WHO] = low
    st[slot, ROW] = row
    st[slot, DRAW] = row
    st[slot, SINCE] = now
    st[slot, CLOCK] = now
    st[slot, TRY] = 0
    st[slot, PC] = PC_ARRIVE
