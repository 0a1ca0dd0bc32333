"""Host CPUs as the kernel's fair scheduler shares them (EEVDF, kernel/sched/fair.c since 6.6), all weights equal.

A thread's virtual runtime is the CPU time it had. In a run queue the mean over all who run or want to is the virtual
time V; a thread is eligible while its virtual runtime is at most V, and has a deadline one slice after the runtime at
which the slice began. Who is eligible and has the earliest deadline is picked when a thread blocks or its slice ends.
A thread that slept with less than its share is placed as far before V as it was (its lag); one with more stays in the
run queue until V has passed it (DELAY_DEQUEUE). Woken, a thread takes the CPU of one that is not eligible any more.
What is left out: balancing between run queues, the tick, weights and SMT.

State is one `Host`; what the columns are: `layout`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from faultreplay.replay.engine.jit import part
from faultreplay.replay.engine.layout import (
    AWAY,
    INF,
    ON,
    Q_COLUMNS,
    Q_FREE,
    Q_HEAD,
    Q_PICKED,
    Q_RESCHED,
    Q_TIME,
    Q_WORK,
    T_BEGAN,
    T_COLUMNS,
    T_FIRM,
    T_LEFT,
    T_NEXT,
    T_QUEUE,
    T_STATE,
    T_WHO,
    V_COLUMNS,
    V_DEADLINE,
    V_LAG,
    V_RUNTIME,
    V_SLEPT,
    WAITS,
)
from faultreplay.replay.engine.tournament import set_key

SLICE_NS: Final = 2_800_000
"""Base slice: 0.7 ms x (1 + log2 of the CPUs, at most 8 of them), kernel/sched/fair.c; what 8 CPUs and more have."""

FIRM_NS: Final = 5_000
"""A step of a fault that takes less than this is done to its end: kernel code is left at its end only (PREEMPT_NONE,
VOLUNTARY and LAZY), and user code between two system calls is as short."""

LONGEST_STRETCH_NS: Final = 1 << 40
"""No event is further ahead: event times are added up in 62 bits, of which some are the slot's."""


class Host(NamedTuple):
    """CPUs, threads and the events of all slots. All int64; `simulate` without CPUs has one row of each."""

    tree: Any
    """[2 * leaves]: tournament tree of the slots' next events, time << bits | slot"""
    leaves: Any
    bits: Any
    """of an event that name the slot"""
    th: Any
    """[slots, T_COLUMNS]"""
    tv: Any
    """[threads, V_COLUMNS]: the accessors', then a server's of each resource instance"""
    queues: Any
    """[run queues, Q_COLUMNS]: one, or pinned one for each CPU"""
    on: Any
    """[run queues, CPUs of each]: slots, -1: idle"""
    slice_ns: Any
    preempt_ns: Any
    """charged where one thread takes another's CPU"""


@part
def new_host(slots: Any, bits: Any, cpus: Any, pinned: Any, preempt_ns: Any, threads: Any) -> Any:  # noqa: PLR0917
    """A `Host` on which nothing happens yet; `cpus` 0: none are counted."""
    leaves = 1
    while leaves < slots:
        leaves *= 2
    run_queues = max(cpus if pinned else 1, 1)
    th = np.zeros((slots if cpus else 1, T_COLUMNS), np.int64)
    tv = np.zeros((threads if cpus else 1, V_COLUMNS), np.int64)
    queues = np.zeros((run_queues, Q_COLUMNS), np.int64)
    queues[:, Q_FREE] = 1 if pinned else cpus
    queues[:, Q_HEAD] = -1
    on = np.full((run_queues, 1 if pinned else max(cpus, 1)), -1, np.int64)
    tree = np.full(2 * leaves, INF, np.int64)
    return Host(tree, leaves, bits, th, tv, queues, on, np.int64(SLICE_NS), preempt_ns)


@part
def charge(host: Any, q: Any, now: Any) -> None:
    """Count what has been run on the CPUs of run queue `q` until `now`."""
    th, tv, on = host.th, host.tv, host.on
    for k in range(on.shape[1]):
        slot = on[q, k]
        if slot >= 0:
            ran = now - th[slot, T_BEGAN]
            th[slot, T_LEFT] -= ran
            th[slot, T_BEGAN] = now
            tv[th[slot, T_WHO], V_RUNTIME] += ran


@part
def virtual_time(host: Any, q: Any) -> Any:
    """(how many run or want to, their mean virtual runtime)."""
    th, tv, queues, on = host.th, host.tv, host.queues, host.on
    count: Any = np.int64(0)
    total: Any = np.int64(0)
    for k in range(on.shape[1]):
        if on[q, k] >= 0:
            count += 1
            total += tv[th[on[q, k], T_WHO], V_RUNTIME]
    at = queues[q, Q_HEAD]
    while at >= 0:
        count += 1
        total += tv[th[at, T_WHO], V_RUNTIME]
        at = th[at, T_NEXT]
    return count, total // max(count, 1)


@part
def go_on(host: Any, slot: Any, now: Any) -> None:
    """`slot` has a CPU: its next event is the end of its work or of its slice."""
    tree, leaves, bits, th, tv = host.tree, host.leaves, host.bits, host.th, host.tv
    who = th[slot, T_WHO]
    stretch = min(th[slot, T_LEFT], LONGEST_STRETCH_NS)
    if not th[slot, T_FIRM]:
        stretch = min(stretch, max(tv[who, V_DEADLINE] - tv[who, V_RUNTIME], 1))
    set_key(tree, leaves, slot, ((now + stretch) << bits) | slot)


@part
def start(host: Any, slot: Any, now: Any) -> None:
    """`slot` takes a free CPU of its run queue."""
    th, queues, on = host.th, host.queues, host.on
    q = th[slot, T_QUEUE]
    queues[q, Q_FREE] -= 1
    for k in range(on.shape[1]):
        if on[q, k] < 0:
            on[q, k] = slot
            break
    th[slot, T_STATE] = ON
    th[slot, T_BEGAN] = now
    go_on(host, slot, now)


@part
def enqueue(host: Any, slot: Any) -> None:
    """`slot` waits for a CPU."""
    tree, leaves, th, queues = host.tree, host.leaves, host.th, host.queues
    q = th[slot, T_QUEUE]
    set_key(tree, leaves, slot, INF)
    th[slot, T_STATE] = WAITS
    th[slot, T_NEXT] = queues[q, Q_HEAD]
    queues[q, Q_HEAD] = slot


@part
def dequeue(host: Any, slot: Any) -> None:
    """`slot` waits no longer."""
    th, queues = host.th, host.queues
    q = th[slot, T_QUEUE]
    at = queues[q, Q_HEAD]
    if at == slot:
        queues[q, Q_HEAD] = th[slot, T_NEXT]
    else:
        while th[at, T_NEXT] != slot:
            at = th[at, T_NEXT]
        th[at, T_NEXT] = th[slot, T_NEXT]
    th[slot, T_STATE] = AWAY


@part
def earliest(host: Any, q: Any) -> Any:
    """Who waits in `q`, is eligible and has the earliest deadline; -1: nobody waits."""
    th, tv, queues = host.th, host.tv, host.queues
    _, time = virtual_time(host, q)
    best = np.int64(-1)
    least = np.int64(-1)
    at = queues[q, Q_HEAD]
    while at >= 0:
        who = th[at, T_WHO]
        if least < 0 or tv[who, V_RUNTIME] < tv[th[least, T_WHO], V_RUNTIME]:
            least = at
        eligible = tv[who, V_RUNTIME] <= time
        if eligible and (best < 0 or tv[who, V_DEADLINE] <= tv[th[best, T_WHO], V_DEADLINE]):
            best = at  # the list has the newest first: of equals the oldest is taken
        at = th[at, T_NEXT]
    return best if best >= 0 else least


@part
def leave(host: Any, slot: Any, now: Any) -> None:
    """`slot` is taken off its CPU, which stays free; its lag is noted."""
    th, tv, queues, on, slice_ns = host.th, host.tv, host.queues, host.on, host.slice_ns
    q = th[slot, T_QUEUE]
    charge(host, q, now)
    _, time = virtual_time(host, q)
    queues[q, Q_TIME] = time
    queues[q, Q_PICKED] = now
    who = th[slot, T_WHO]
    tv[who, V_SLEPT] = now
    tv[who, V_LAG] = min(max(time - tv[who, V_RUNTIME], -2 * slice_ns), 2 * slice_ns)
    for k in range(on.shape[1]):
        if on[q, k] == slot:
            on[q, k] = -1
    queues[q, Q_FREE] += 1
    th[slot, T_STATE] = AWAY


@part
def give_up(host: Any, slot: Any, now: Any) -> None:
    """`slot` sleeps: its CPU goes to the next thread."""
    th = host.th
    q = th[slot, T_QUEUE]
    leave(host, slot, now)
    host.queues[q, Q_RESCHED] = 0
    following = earliest(host, q)
    if following >= 0:
        dequeue(host, following)
        start(host, following, now)


@part
def pass_on(host: Any, slot: Any, other: Any) -> None:
    """The same thread goes on with its CPU, but as another slot."""
    th, on = host.th, host.on
    q = th[slot, T_QUEUE]
    for k in range(on.shape[1]):
        if on[q, k] == slot:
            on[q, k] = other
    th[other, T_STATE] = ON
    th[other, T_BEGAN] = th[slot, T_BEGAN]
    th[other, T_QUEUE] = q
    th[other, T_WHO] = th[slot, T_WHO]
    th[other, T_LEFT] = 0
    th[slot, T_STATE] = AWAY


@part
def place(host: Any, q: Any, who: Any, count: Any, before: Any) -> None:
    """Where a woken thread stands among the `count` others of run queue `q`; `before`: their V when last looked at."""
    tv, queues, slice_ns = host.tv, host.queues, host.slice_ns
    _, time = virtual_time(host, q)
    lag = tv[who, V_LAG]
    if not count:
        tv[who, V_RUNTIME] = queues[q, Q_TIME]
    elif lag >= 0:
        tv[who, V_RUNTIME] = time - lag * (count + 1) // count
    elif queues[q, Q_PICKED] > tv[who, V_SLEPT] and queues[q, Q_TIME] >= tv[who, V_RUNTIME]:
        tv[who, V_RUNTIME] = time  # it was taken from the run queue meanwhile, and is forgiven
    else:  # it still stands there; requeue_delayed_entity() looks at V before the running thread's time is counted
        tv[who, V_RUNTIME] = max(tv[who, V_RUNTIME], before)
    tv[who, V_DEADLINE] = tv[who, V_RUNTIME] + slice_ns


@part
def hand_over(host: Any, slot: Any, now: Any, who: Any, work: Any) -> None:
    """The thread of `slot`, which runs, wakes thread `who` of the same run queue, which has `work`, and then sleeps.

    `slot` goes on as that thread.
    """
    th, tv, queues, on, slice_ns = host.th, host.tv, host.queues, host.on, host.slice_ns
    q = th[slot, T_QUEUE]
    sleeper = th[slot, T_WHO]
    count, before = virtual_time(host, q)
    charge(host, q, now)
    place(host, q, who, count, before)
    _, time = virtual_time(host, q)
    time = (time * count + tv[who, V_RUNTIME]) // (count + 1)
    tv[sleeper, V_LAG] = min(max(time - tv[sleeper, V_RUNTIME], -2 * slice_ns), 2 * slice_ns)
    tv[sleeper, V_SLEPT] = now
    for k in range(on.shape[1]):
        if on[q, k] == slot:
            on[q, k] = -1
    queues[q, Q_FREE] += 1
    queues[q, Q_TIME] = time
    queues[q, Q_PICKED] = now
    queues[q, Q_RESCHED] = 0
    queues[q, Q_WORK] += work
    th[slot, T_WHO] = who
    th[slot, T_LEFT] = work
    th[slot, T_FIRM] = 1
    enqueue(host, slot)
    following = earliest(host, q)
    dequeue(host, following)
    start(host, following, now)


@part
def gives_way(host: Any, slot: Any, now: Any) -> Any:
    """Whether `slot`, which runs, leaves its CPU to another: somebody was woken before it, or its slice is over."""
    th, tv, queues, slice_ns = host.th, host.tv, host.queues, host.slice_ns
    q, who = th[slot, T_QUEUE], th[slot, T_WHO]
    queues[q, Q_RESCHED] = 0
    over = tv[who, V_RUNTIME] >= tv[who, V_DEADLINE]
    if over:
        tv[who, V_DEADLINE] = tv[who, V_RUNTIME] + slice_ns
    following = earliest(host, q)
    if following < 0:
        return False
    _, time = virtual_time(host, q)
    before = tv[th[following, T_WHO], V_DEADLINE] <= tv[who, V_DEADLINE]  # as pick_eevdf(): of equals the other
    if not (tv[who, V_RUNTIME] > time or (over and before)):
        return False
    leave(host, slot, now)
    enqueue(host, slot)
    dequeue(host, following)
    start(host, following, now)
    return True


@part
def want(host: Any, slot: Any, now: Any, work: Any, thinks: Any) -> Any:
    """`slot` has `work` to do on a CPU from now on; if it has none, its thread wakes. The key of its next event.

    `thinks`: that is no step of a fault, but what the accessor does in between.
    """
    th, tv, queues, on, preempt_ns = host.th, host.tv, host.queues, host.on, host.preempt_ns
    q = th[slot, T_QUEUE]
    queues[q, Q_WORK] += work
    count, before = virtual_time(host, q)
    charge(host, q, now)
    th[slot, T_LEFT] = work
    who = th[slot, T_WHO]
    th[slot, T_FIRM] = not thinks and work < FIRM_NS
    if th[slot, T_STATE] == ON:
        due = queues[q, Q_RESCHED] or tv[who, V_RUNTIME] >= tv[who, V_DEADLINE]
        if not (due and work > 0 and gives_way(host, slot, now)):
            go_on(host, slot, now)
        return host.tree[host.leaves + slot]
    place(host, q, who, count, before)
    if queues[q, Q_FREE] > 0:
        start(host, slot, now)
        return host.tree[host.leaves + slot]
    enqueue(host, slot)
    # A running thread that has had more than its share loses its CPU to one that is to be picked now.
    _, time = virtual_time(host, q)
    most = np.int64(-1)
    for k in range(on.shape[1]):
        other = on[q, k]
        if most < 0 or tv[th[other, T_WHO], V_RUNTIME] > tv[th[most, T_WHO], V_RUNTIME]:
            most = other
    if tv[th[most, T_WHO], V_RUNTIME] > time and earliest(host, q) == slot:
        # In the kernel, or between two steps of its own: it gives way when it goes on, if it does.
        if th[most, T_FIRM] or th[most, T_LEFT] <= 0:
            queues[q, Q_RESCHED] = 1
            return host.tree[host.leaves + slot]
        leave(host, most, now)
        enqueue(host, most)
        th[slot, T_LEFT] += preempt_ns
        queues[q, Q_WORK] += preempt_ns
        dequeue(host, slot)
        start(host, slot, now)
    return host.tree[host.leaves + slot]


@part
def stretch_over(host: Any, slot: Any, now: Any) -> Any:
    """The event of a slot on a CPU: whether its work is done. If only its slice is over, who is next is picked."""
    th = host.th
    charge(host, th[slot, T_QUEUE], now)
    if th[slot, T_LEFT] <= 0:
        return True
    if not gives_way(host, slot, now):
        go_on(host, slot, now)
    return False


@part
def stop(host: Any, until: Any) -> None:
    """The run ends at `until`: what was to be done on CPUs and has not been done is no work."""
    th, queues = host.th, host.queues
    for q in range(queues.shape[0]):
        charge(host, q, until)
    for slot in range(th.shape[0]):
        if th[slot, T_STATE] != AWAY and th[slot, T_LEFT] > 0:
            queues[th[slot, T_QUEUE], Q_WORK] -= th[slot, T_LEFT]
