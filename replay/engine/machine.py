"""The state of a run, how it begins, and small questions that the loop asks seldom."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from faultreplay.replay.engine.cpus import Host, new_host
from faultreplay.replay.engine.draws import draw_bits, sixteen
from faultreplay.replay.engine.jit import inline, part
from faultreplay.replay.engine.layout import (
    A_HOME,
    A_KIND,
    A_REFAULTS,
    A_VM,
    CLOCK,
    DRAW,
    NEXT,
    NOW_COLUMNS,
    PC,
    R_FREE,
    R_FREE_AT,
    R_HEAD,
    R_SERVERS,
    R_SLEEPERS,
    R_TAIL,
    REWRITE,
    ROW,
    S_FAULTS,
    S_REFAULTED,
    SINCE,
    SLOT_COLUMNS,
    SLOT_PUSH,
    SLOT_SOURCE,
    SLOT_WINDOW,
    SPECIAL_SLOTS,
    T_QUEUE,
    T_WHO,
    TRY,
    V_HOME,
    W_START,
    WHO,
)
from faultreplay.replay.engine.opcodes import (
    PATH_REFAULT,
    PATH_REWRITE,
    PC_START,
    PER_ACCESSOR,
    PER_VM,
    RETRY_BELOW,
    RETRY_DRAW,
    TIMES_SPARE,
    TIMES_WAITERS,
)
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
    inside: Any
    """[sections of each VM, slots]: until when a slot's thread is inside a section"""
    window: Any
    """[NOW_COLUMNS]: the window that is open, or was the last"""
    turn: Any
    """[SPECIAL_SLOTS]: which window, row of the open loop or granule of the stream is next"""
    stage2_epoch: Any
    """[G]: see `records.Granules`"""
    epoch: Any
    """[1]: how often stage 2 was emptied, and 1"""
    spent: Any
    """[operations, SPENT_COLUMNS]"""
    ready: Any
    """[slots]: a stack of those that go on at this instant"""
    seen: Any
    """[2]: how much had been done when `progressed` last looked, and when that was"""
    first: Any
    """slot of the first accessor"""
    vcpus: Any
    """how many accessors are vCPUs; all where none is; the servers' threads are numbered behind them"""
    cpus: Any
    open_loop: Any
    opened: Any
    """see `records.Rules`"""
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
def set_up(  # noqa: PLR0917
    ac: Any, rs: Any, code: Any, stage2_epoch: Any, arrivals: Any, rules: Any, spent: Any
) -> Any:
    """A `Machine` on which nothing has happened yet."""
    slots, cpus, accessors = rules.slots, rules.host.cpus, ac.shape[0]
    threads = accessors + rs.shape[0]
    host = new_host(slots, rules.slot_bits, cpus, rules.host.pinned, rules.host.preempt_ns, threads)
    st = np.zeros((slots, SLOT_COLUMNS), np.int64)
    st[:, NEXT] = -1
    rs[:, R_HEAD] = -1
    rs[:, R_TAIL] = -1
    rs[:, R_FREE] = rs[:, R_SERVERS]
    vcpus = (ac[:, A_KIND] == 0).sum()
    for a in range(accessors if cpus else 0):
        host.tv[a, V_HOME] = ac[a, A_HOME] % host.queues.shape[0]
    seen = np.zeros(2, np.int64)
    seen[0] = -1
    return Machine(
        host,
        st,
        ac,
        rs,
        np.zeros((code.sections * (ac[:, A_VM].max() + 1 if accessors else 1), slots), np.int64),
        np.full(NOW_COLUMNS, np.int64(-1)),
        np.zeros(SPECIAL_SLOTS, np.int64),
        stage2_epoch,
        np.ones(1, np.int64),
        spent,
        np.empty(slots, np.int64),
        seen,
        rules.first,
        vcpus if vcpus else accessors,
        cpus,
        arrivals.order.size > 0,
        rules.opened,
        np.int64(1) << (62 - rules.slot_bits),
    )


@part
def set_off(machine: Any, arrivals: Any) -> Any:
    """The first events: of each special slot, and of accessors in a closed loop; how many slots are ready."""
    host, st, first = machine.host, machine.st, machine.first
    tree, leaves, bits = host.tree, host.leaves, host.bits
    if arrivals.windows.shape[0]:
        set_key(tree, leaves, SLOT_WINDOW, (arrivals.windows[0, W_START] << bits) | SLOT_WINDOW)
    if arrivals.pushed.size:
        set_key(tree, leaves, SLOT_PUSH, SLOT_PUSH)
    if machine.open_loop:
        set_key(tree, leaves, SLOT_SOURCE, (arrivals.time[arrivals.order[0]] << bits) | SLOT_SOURCE)
    accessors, opened = machine.ac.shape[0], machine.opened
    for a in range(opened, accessors):
        slot = first + a - opened
        st[slot, WHO] = a
        st[slot, PC] = PC_START
        if machine.cpus:
            host.th[slot, T_QUEUE] = host.tv[a, V_HOME]
            host.th[slot, T_WHO] = a
        machine.ready[accessors - 1 - a] = slot
    return accessors - opened


@part
def progressed(machine: Any, retries: Any, now: Any, stride: Any) -> Any:
    """Whether anything has ended since it last looked; with CPUs a sixteenth of `stride` slices each must be over."""
    done = retries + machine.turn.sum()
    for a in range(machine.ac.shape[0]):
        done += machine.ac[a, S_FAULTS] + machine.ac[a, S_REFAULTED]
    slices = (now - machine.seen[1]) // machine.host.slice_ns * max(machine.cpus, 1) * 16
    if done == machine.seen[0] and (not machine.cpus or slices < stride):
        return False
    machine.seen[0] = done
    machine.seen[1] = now
    return True


@part
def refault(ac: Any, path_pc: Any, a: Any) -> Any:
    """Accessor `a` takes one of the faults again that it has to: where its path begins."""
    path = PATH_REFAULT
    if ac[a, A_REFAULTS] >= REWRITE:
        ac[a, A_REFAULTS] -= REWRITE
        path = PATH_REWRITE
    else:
        ac[a, A_REFAULTS] -= 1
    return path_pc[path, ac[a, A_KIND]]


@inline
def counted(rs: Any, r: Any, what: Any, t: Any) -> Any:
    """Other sleepers on wait queue `r`, or idle servers of `r`: all, or all but the one that takes this fault."""
    if what == TIMES_WAITERS:
        return max(rs[r, R_SLEEPERS] - 1, 0)
    idle = rs[r, R_FREE]
    if rs[r, R_SERVERS] == 1 and rs[r, R_FREE_AT] > t:
        idle = 0
    return max(idle - 1, 0) if what == TIMES_SPARE else idle


@part
def out_of_sections(inside: Any, slot: Any) -> Any:
    """When the thread of `slot` has left all sections."""
    return inside[:, slot].max()


@inline
def histogram_bin(ns: Any) -> Any:
    """Bin of a stall: exact below 64 ns, then 32 bins for each doubling (3 %)."""
    if ns < 64:
        return ns
    exponent = math.frexp(float(ns))[1] - 6
    return exponent * 32 + (ns >> exponent)


@inline
def park(st: Any, slot: Any, pc: Any, t: Any, row: Any, draw_row: Any) -> None:  # noqa: PLR0917
    """A slot goes on later from here."""
    st[slot, PC] = pc
    st[slot, CLOCK] = t
    st[slot, ROW] = row
    st[slot, DRAW] = draw_row


@inline
def follow(st: Any, slot: Any, of: Any) -> None:
    """A slot goes on with what is left of a fault that `of` began."""
    st[slot, SINCE] = st[of, SINCE]
    st[slot, WHO] = st[of, WHO]
    st[slot, TRY] = st[of, TRY]


@inline
def applies(mask: Any, row: Any, access: Any, kind: Any) -> Any:
    """Whether the conditions of UNLESS_MASK hold for a fault, which has no access where it is a refault."""
    holds = mask & 7 == 0 or (row >= 0 and (mask >> np.int64(access[row])) & 1 != 0)
    return holds and (mask & 56 == 0 or (mask >> (3 + kind)) & 1 != 0)


@part
def in_vain(ops: Any, pc: Any, seed: Any, draw_row: Any) -> Any:
    """Whether the retry at `pc` is taken."""
    draw = ops[pc, RETRY_DRAW]
    return sixteen(draw_bits(seed, draw_row, draw >> 2), draw) < ops[pc, RETRY_BELOW]
