"""Which thread carries out a slot, and on which CPU: it sleeps, wakes as another thread, or comes back as its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from faultreplay.replay.engine.cpus import give_up, hand_over, pass_on, want
from faultreplay.replay.engine.jit import part
from faultreplay.replay.engine.layout import (
    A_LEFT,
    A_TAIL,
    ON,
    SINCE,
    T_LEFT,
    T_NAPPED,
    T_QUEUE,
    T_STATE,
    T_WHO,
    V_HOME,
    WHO,
)
from faultreplay.replay.engine.opcodes import (
    PC_ARRIVE,
    PC_START,
)


@part
def rest(host: Any, slot: Any, now: Any) -> None:
    """`slot` sleeps; its CPU, if it has one, goes to whoever is next."""
    if host.th[slot, T_STATE] == ON:
        give_up(host, slot, now)


@part
def wake_up(host: Any, slot: Any, now: Any, who: Any, ns: Any) -> Any:
    """`slot` goes on as thread `who`, which wakes and has `ns` to do first; the key of its next event."""
    rest(host, slot, now)  # whoever brought it here leaves the CPU to who waits
    host.th[slot, T_QUEUE] = host.tv[who, V_HOME]
    host.th[slot, T_WHO] = who
    return want(host, slot, now, ns, 0)


@part
def wake_server(host: Any, slot: Any, now: Any, q: Any, who: Any, ns: Any) -> Any:  # noqa: PLR0917
    """`slot` goes on as the server's thread `who` of run queue `q`, which wakes in `ns`: whether that takes time."""
    th = host.th
    if th[slot, T_STATE] == ON and th[slot, T_QUEUE] == q:
        hand_over(host, slot, now, who, ns)
        return True
    rest(host, slot, now)
    th[slot, T_QUEUE] = q
    th[slot, T_WHO] = who
    if ns > 0:
        want(host, slot, now, ns, 0)
    return ns > 0


@part
def come_back(host: Any, slot: Any, now: Any, who: Any) -> Any:
    """`slot`, woken, runs as thread `who`: whether it does so now."""
    th = host.th
    if th[slot, T_WHO] != who:  # a server's thread brought it here, on that thread's CPU
        rest(host, slot, now)
        th[slot, T_QUEUE] = host.tv[who, V_HOME]
        th[slot, T_WHO] = who
    if th[slot, T_STATE] == ON:
        return True
    want(host, slot, now, 0, 0)
    return th[slot, T_STATE] == ON and th[slot, T_LEFT] <= 0  # it took another's CPU: it pays for that first


@part
def lend(host: Any, slot: Any, other: Any) -> None:
    """The thread of `slot`, on its CPU if it has one, goes on as `other`."""
    th = host.th
    if th[slot, T_STATE] == ON:
        pass_on(host, slot, other)
    else:
        th[other, T_QUEUE] = th[slot, T_QUEUE]
        th[other, T_WHO] = th[slot, T_WHO]


@part
def sets_out(machine: Any, faults: Any, slot: Any, row: Any, now: Any) -> Any:
    """The accessor of `slot` sleeps and thinks before fault `row`, or, -1, to the end of the recording: (its clock,
    where it goes on, its next event or -1: it does so at once).
    """
    host, st, ac, th, asleep = machine.host, machine.st, machine.ac, machine.host.th, faults.asleep
    a = st[slot, WHO]
    if asleep.size and row >= 0 and asleep[row] > 0 and ac[a, A_LEFT] < 0 and th[slot, T_NAPPED] != row + 1:
        th[slot, T_NAPPED] = row + 1
        t = now + asleep[row]
        return t, np.int64(PC_START), (t << host.bits) | slot
    left = ac[a, A_TAIL]
    if ac[a, A_LEFT] >= 0:
        left = ac[a, A_LEFT]
    elif row >= 0:
        left = faults.think[row]
    ac[a, A_LEFT] = -1
    st[slot, SINCE] = now
    if row < 0:  # nor what it runs then
        rest(host, slot, now)
        st[slot, SINCE] = now + left
        return now + left, np.int64(PC_ARRIVE), ((now + left) << host.bits) | slot
    if left > 0 or th[slot, T_STATE] != ON:  # nobody touches memory without a CPU
        want(host, slot, now, left, 1)
        if left > 0 or th[slot, T_STATE] != ON or th[slot, T_LEFT] > 0:
            return now, np.int64(PC_ARRIVE), host.tree[host.leaves + slot]
    return now, np.int64(PC_ARRIVE), np.int64(-1)
