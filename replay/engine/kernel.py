"""The one compiled loop: it runs any program over any workload, in integer ns, in one total order of events.

An event is one int64: time << slot_bits | slot. Slots are, in this order, windows, the open-loop source, the background
stream, the accessors, and asynchronous tails; so events at one instant run in that order, and two engines that keep
to it agree
to the row. A tournament tree over the slots gives the next event: each slot has at most one.

`spent` says where the time went: whoever lets a fault's clock grow before its wake adds as much to its operation's
row. The columns are for the compiler to tell apart (`Program.shares`).

A slot's own clock may run ahead of the event: delays add to it without any event. Only operations on what is shared (a
resource, a link, a wait queue, a tracked granule) must be executed at the event's time; a slot that reaches one too
early goes
back into the tree.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.engine.cpus import (
    AWAY,
    ON,
    Q_COLUMNS,
    Q_FREE,
    Q_HEAD,
    Q_WORK,
    T_COLUMNS,
    T_LEFT,
    T_NAPPED,
    T_QUEUE,
    T_STATE,
    T_WALKED,
    T_WHO,
    V_COLUMNS,
    charge,
    dequeue,
    give_up,
    hand_over,
    pass_on,
    stretch_over,
    want,
)
from faultreplay.replay.engine.jit import inline, jit
from faultreplay.replay.engine.tournament import INF, set_key
from faultreplay.replay.language.distributions import FINE_BASE, FINE_FROM

NEVER = -1  # granule: nobody has asked for it
REWRITE = 1 << 32  # in A_REFAULTS: a write to a page that was read, beside faults on emptied stage 2
_GOLD = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)
_U16, _UMASK = np.uint64(16), np.uint64(0xFFFF)

# globals that the compiled code folds in
(
    END, DELAY, DELAY_TIMES, ACQUIRE, RELEASE, RELEASE_ONE, TRANSFER, SLEEP, COALESCE, WAKE, WAKE_QUEUE,
    RECORDED, RETRY, UNLESS, COMPLETE, ARRIVE, START, SHARED, CPU_DELAY, RESUME,
    LEAVE, LEAVE_NOW, HOLD, ENTER, WALK,
) = (
    o.END, o.DELAY, o.DELAY_TIMES, o.ACQUIRE, o.RELEASE, o.RELEASE_ONE, o.TRANSFER, o.SLEEP, o.COALESCE,
    o.WAKE, o.WAKE_QUEUE, o.RECORDED, o.RETRY, o.UNLESS, o.COMPLETE, o.ARRIVE, o.START, o.SHARED, o.CPU_DELAY,
    o.RESUME, o.LEAVE, o.LEAVE_NOW, o.HOLD, o.ENTER, o.WALK,
)  # fmt: skip
PC_ARRIVE, PC_START, PC_NOTHING, PC_END, PC_RESUME = o.PC_ARRIVE, o.PC_START, o.PC_NOTHING, o.PC_END, o.PC_RESUME
TAIL_AWAKE = o.TAIL_AWAKE
OK, STOPPED, MORE_SLOTS = o.STATUS_OK, o.STATUS_STOPPED, o.STATUS_MORE_SLOTS
TIME_LIMIT, STUCK = o.STATUS_TIME, o.STATUS_STUCK
PER_VM, PER_ACCESSOR = o.PER_VM, o.PER_ACCESSOR
TIMES_WAITERS, TIMES_SPARE = o.TIMES_WAITERS, o.TIMES_SPARE
# columns of a slot, of a resource instance and of an accessor; the latter two have what is reported behind them
PC, CLOCK, ROW, DRAW, SINCE, NEXT, WHO, TRY = range(8)
FREE, FREE_AT, HEAD, TAIL, QUEUED, BEGIN, SLEEPERS, SERVERS = range(8)
R_BUSY, R_ACQUIRED, R_WAIT, R_MAX_QUEUE, R_BYTES = o.R_BUSY, o.R_ACQUIRED, o.R_WAIT, o.R_MAX_QUEUE, o.R_BYTES
A_KIND, A_FIRST, A_NEXT, A_STOP, A_LEFT, A_RESUME, A_TOUCHED, A_REFAULTS = range(8)
S_STALL, S_STOPPED, S_REFAULT_NS, S_REFAULTED, S_FAULTS, S_END = (
    o.S_STALL, o.S_STOPPED, o.S_REFAULT_NS, o.S_REFAULTED, o.S_FAULTS, o.S_END,
)  # fmt: skip
A_TAIL = o.A_TAIL
TRACKED, FIRST_TOUCH = o.TRACKED, o.FIRST_TOUCH
SLOT_WINDOW, SLOT_SOURCE, SLOT_PUSH = o.SLOT_WINDOW, o.SLOT_SOURCE, o.SLOT_PUSH


@inline
def draw_bits(seed: Any, row: Any, word: Any) -> Any:
    """64 bits that depend on (seed, row, word) alone: splitmix64 as a counter."""
    z = seed + (np.uint64(row) * np.uint64(16) + np.uint64(word)) * _GOLD
    z += np.uint64(z == 0) * _GOLD  # the mix leaves 0 as it is: seed 0's first fault would have the least of every cost
    z = (z ^ (z >> _U30)) * _MIX1
    z = (z ^ (z >> _U27)) * _MIX2
    return z ^ (z >> _U31)


def draw_bits_in_python(seed: Any, row: Any, word: Any) -> Any:
    """As `draw_bits`, without compiling: there numpy warns of each product that is cut to 64 bits, which is meant."""
    gold, mask = int(_GOLD), (1 << 64) - 1
    z = (int(seed) + (int(row) * 16 + int(word)) * gold) & mask
    z = gold if z == 0 else z
    z = ((z ^ (z >> 30)) * int(_MIX1)) & mask
    z = ((z ^ (z >> 27)) * int(_MIX2)) & mask
    return np.uint64(z ^ (z >> 31))


if numba.config.DISABLE_JIT:
    draw_bits = draw_bits_in_python


@inline
def sample(tables: Any, table: Any, bits: Any, draw: Any) -> Any:
    """One draw from a table of `Distribution.table_ns`, through 16 of the 64 bits."""
    u = np.int64((bits >> (np.uint64(draw & 3) * _U16)) & _UMASK)
    # steps of 1/256 up to 15/16, of 1/4096 above; written so that no branch is needed
    fine = np.int64(u >= FINE_FROM)
    shift = 8 - 4 * fine
    u -= FINE_FROM * fine
    index = (u >> shift) + FINE_BASE * fine
    rest = u & ((1 << shift) - 1)
    knots = tables[np.uintp(table)]
    at = np.uintp(index)
    low = knots[at]
    return low + (((knots[at + np.uintp(1)] - low) * (2 * rest + 1)) >> (shift + 1))


@inline
def instance(base: Any, per: Any, accessor: Any, shard: Any, row: Any) -> Any:
    """Which of a resource's instances this fault uses."""
    if per == PER_VM:
        return base
    if per == PER_ACCESSOR:
        return base + accessor
    return base + (np.int64(shard[row]) if row >= 0 else np.int64(0))


@inline
def histogram_bin(ns: Any) -> Any:
    """Bin of a stall: exact below 64 ns, then 32 bins for each doubling (3 %)."""
    if ns < 64:
        return ns
    exponent = math.frexp(float(ns))[1] - 6
    return exponent * 32 + (ns >> exponent)


@inline
def threads_inside(inside: Any, section: Any, t: Any) -> Any:
    """How many threads are inside a section at `t`; who asks has left it or was never there."""
    count = np.int64(0)
    for k in range(inside.shape[1]):
        count += inside[section, k] > t
    return count


@inline
def counted_of(rs: Any, r: Any, what: Any, t: Any) -> Any:
    """Other sleepers on wait queue `r`, or idle servers of `r`: all, or all but the one that takes this fault."""
    if what == TIMES_WAITERS:
        return max(rs[r, SLEEPERS] - 1, 0)
    idle = rs[r, FREE]
    if rs[r, SERVERS] == 1 and rs[r, FREE_AT] > t:
        idle = 0
    return max(idle - 1, 0) if what == TIMES_SPARE else idle


@jit
def run_program(  # noqa: PLR0911, PLR0912, PLR0915, PLR0917
    ops: Any, tables: Any, path_pc: Any, seed: Any,
    ac: Any, think: Any, asleep: Any, cls: Any, access: Any, recorded: Any,
    flags: Any, granule: Any, shard: Any, uniform: Any,
    present_at: Any, stage2_epoch: Any, joined: Any,
    source_order: Any, source_time: Any,
    rs: Any, windows: Any, window_out: Any, granule_pages: Any,
    push_order: Any, push: Any,
    slots: Any, first: Any, slot_bits: Any, until: Any, stepwise: Any,
    cpus: Any, pinned: Any, slice_ns: Any, preempt_ns: Any, write_again: Any, sections: Any,
    out_start: Any, out_stall: Any, out_latency: Any, histogram: Any, keep_rows: Any, spent: Any,
) -> Any:  # fmt: skip
    """Run one program to its end. What the arrays are: `engine.simulate`. Returns (status, end of time, events)."""
    accessors = ac.shape[0]
    open_loop = source_order.size > 0
    leaves = 1
    while leaves < slots:
        leaves *= 2
    tree = np.full(2 * leaves, INF, np.int64)
    # pinned: a run queue for each CPU, thread n in number n modulo CPUs; else one queue for all
    run_queues = max(cpus if pinned else 1, 1)
    vcpus = np.int64(0)  # handlers are numbered behind them
    for a in range(accessors):
        vcpus += ac[a, A_KIND] == 0
    if vcpus == 0:
        vcpus = accessors
    th = np.zeros((slots if cpus else 1, T_COLUMNS), np.int64)
    threads = np.zeros((accessors + rs.shape[0] if cpus else 1, V_COLUMNS), np.int64)
    queues = np.zeros((run_queues, Q_COLUMNS), np.int64)
    queues[:, Q_FREE] = 1 if pinned else cpus
    queues[:, Q_HEAD] = -1
    on = np.full((run_queues, 1 if pinned else max(cpus, 1)), -1, np.int64)
    host = (tree, leaves, slot_bits, th, threads, queues, on, slice_ns, preempt_ns)
    slot_mask = np.int64((1 << slot_bits) - 1)
    time_limit = np.int64(1) << (62 - slot_bits)

    st = np.zeros((slots, 8), np.int64)
    st[:, NEXT] = -1

    # section -> slot -> until when its thread is inside
    inside = np.zeros((sections, slots), np.int64)

    free_slots = np.empty(slots, np.int64)
    free_count = 0
    first_dynamic = first + (0 if open_loop else accessors)
    for slot in range(slots - 1, first_dynamic - 1, -1):
        free_slots[free_count] = slot
        free_count += 1
    ready = np.empty(slots, np.int64)
    ready_count = 0

    rs[:, HEAD] = -1
    rs[:, TAIL] = -1
    for r in range(rs.shape[0]):
        rs[r, FREE] = rs[r, SERVERS]

    window_count = windows.shape[0]
    have_windows = window_count > 0
    window_next = 0
    w_begin = np.int64(-1)
    w_end = np.int64(-1)
    w_stops = np.int64(0)
    w_blocks_all = np.int64(0)
    w_blocks_writes = np.int64(0)
    epoch = np.int64(1)
    touched_granules = np.int64(0)
    rows_total = think.size
    push_next = 0
    source_next = 0
    events = 0
    last = np.int64(0)
    status = OK

    if have_windows:
        set_key(tree, leaves, SLOT_WINDOW, (windows[0, 0] << slot_bits) | SLOT_WINDOW)
    if push_order.size:
        set_key(tree, leaves, SLOT_PUSH, SLOT_PUSH)
    if open_loop:
        set_key(tree, leaves, SLOT_SOURCE, (source_time[source_order[0]] << slot_bits) | SLOT_SOURCE)
    else:
        for a in range(accessors - 1, -1, -1):
            slot = first + a
            st[slot, WHO] = a
            st[slot, PC] = PC_START
            if cpus:
                th[slot, T_QUEUE] = a % run_queues
                th[slot, T_WHO] = a
            ready[ready_count] = slot
            ready_count += 1
    now = np.int64(0)

    # a run without progress ends: so many events with no fault's end, or for each CPU a sixteenth of so many slices
    stride = np.int64(20_000) + 8 * slots * ops.shape[0]
    look_at = stride
    progress = np.int64(-1)
    looked = np.int64(0)
    retries = np.int64(0)

    while True:
        if ready_count > 0:
            ready_count -= 1
            slot = ready[ready_count]
        else:
            top = tree[1]
            if top == INF:
                break
            if events >= look_at:
                done = retries + push_next + source_next + window_next
                for a in range(accessors):
                    done += ac[a, S_FAULTS] + ac[a, S_REFAULTED]
                slices = (now - looked) // slice_ns * max(cpus, 1) * 16
                if done == progress and (not cpus or slices < stride):
                    return STUCK, now, events, queues[:, Q_WORK].sum()
                progress = done
                looked = now
                look_at = events + stride
            now = top >> slot_bits
            slot = top & slot_mask
            if now > until:
                status = STOPPED
                break
            if now >= time_limit:
                return TIME_LIMIT, now, events, queues[:, Q_WORK].sum()
            events += 1

            if slot < first:
                if slot == SLOT_WINDOW:
                    w = window_next
                    window_next += 1
                    pages = touched_granules * granule_pages
                    w_begin = now
                    w_end = (
                        now + windows[w, 1] + windows[w, 2] + windows[w, 4]
                        + (windows[w, 3] * pages + windows[w, 5] * pages) // 1000
                    )  # fmt: skip
                    w_stops = windows[w, 7]
                    w_blocks_all = windows[w, 8]
                    w_blocks_writes = windows[w, 9]
                    window_out[w, 0] = w_begin
                    window_out[w, 1] = w_end
                    hold_end = w_end + windows[w, 6]
                    if hold_end >= time_limit:
                        return TIME_LIMIT, now, events, queues[:, Q_WORK].sum()
                    if windows[w, 10]:
                        epoch += 1
                    if not open_loop:
                        for a in range(accessors):
                            if windows[w, 10] and windows[w, 11] and ac[a, A_KIND] == 0:
                                ac[a, A_REFAULTS] = ac[a, A_TOUCHED]
                            main = first + a
                            waiting = st[main, PC] == PC_ARRIVE and tree[leaves + main] != INF
                            stopped = (w_stops >> ac[a, A_KIND]) & 1
                            if not stopped or (ac[a, A_RESUME] >= hold_end and ac[a, A_REFAULTS] == 0):
                                continue
                            if cpus and st[main, PC] == PC_ARRIVE and th[main, T_STATE] != AWAY:
                                # what it has left to think is taken off its CPU, or out of the queue for one
                                if th[main, T_STATE] == ON:
                                    give_up(host, main, now)
                                    set_key(tree, leaves, main, INF)
                                else:
                                    dequeue(host, main)
                                left = th[main, T_LEFT]
                                th[main, T_LEFT] = 0
                                queues[th[main, T_QUEUE], Q_WORK] -= left
                                st[main, CLOCK] = now + left
                                waiting = True
                            if waiting:
                                resumed = ac[a, A_RESUME]
                                went_on = max(resumed, now)
                                ac[a, A_LEFT] = max(st[main, CLOCK] - went_on, 0)
                                again = max(resumed, hold_end)
                                ac[a, S_STOPPED] += again - went_on
                                st[main, PC] = PC_START
                                st[main, CLOCK] = again
                                ac[a, A_RESUME] = again
                                set_key(tree, leaves, main, (again << slot_bits) | main)
                    w_end = hold_end if w_stops else w_end
                    if window_next < window_count:
                        key = (max(windows[window_next, 0], w_end) << slot_bits) | SLOT_WINDOW
                        set_key(tree, leaves, SLOT_WINDOW, key)
                    else:
                        set_key(tree, leaves, SLOT_WINDOW, INF)
                    continue
                if slot == SLOT_PUSH:
                    # push: link instance, ns on the link, latency and placing ns, backlog ns, bytes
                    link = push[0]
                    while push_next < push_order.size:
                        if max(rs[link, FREE_AT] - now, 0) > push[3]:
                            break
                        g = push_order[push_next]
                        push_next += 1
                        if g >= 0 and present_at[g] != NEVER:
                            continue
                        rs[link, FREE_AT] = max(rs[link, FREE_AT], now) + push[1]
                        rs[link, R_BUSY] += push[1]
                        rs[link, R_BYTES] += push[4]
                        if g >= 0:
                            present_at[g] = rs[link, FREE_AT] + push[2]
                    if push_next < push_order.size:
                        at = max(rs[link, FREE_AT] - push[3], now + 1)
                        if at >= time_limit:
                            return TIME_LIMIT, now, events, queues[:, Q_WORK].sum()
                        set_key(tree, leaves, SLOT_PUSH, (at << slot_bits) | SLOT_PUSH)
                    else:
                        set_key(tree, leaves, SLOT_PUSH, INF)
                    continue
                # the open-loop source: one fault at its recorded time
                row = source_order[source_next]
                source_next += 1
                if source_next < source_order.size:
                    at = source_time[source_order[source_next]]
                    set_key(tree, leaves, SLOT_SOURCE, (at << slot_bits) | SLOT_SOURCE)
                else:
                    set_key(tree, leaves, SLOT_SOURCE, INF)
                if free_count == 0:
                    return MORE_SLOTS, now, events, queues[:, Q_WORK].sum()
                free_count -= 1
                slot = free_slots[free_count]
                low, high = 0, accessors
                while high - low > 1:
                    middle = (low + high) // 2
                    if ac[middle, A_FIRST] <= row:
                        low = middle
                    else:
                        high = middle
                st[slot, WHO] = low
                if cpus:
                    th[slot, T_QUEUE] = low % run_queues
                    th[slot, T_WHO] = low
                st[slot, ROW] = row
                st[slot, DRAW] = row
                st[slot, SINCE] = now
                st[slot, CLOCK] = now
                st[slot, TRY] = 0
                st[slot, PC] = PC_ARRIVE

        last = max(last, now)
        if cpus and th[slot, T_STATE] == ON:
            # nothing left: another thread's event at this instant has counted the work already
            if th[slot, T_LEFT] > 0 and not stretch_over(host, slot, now):
                continue
            if st[slot, PC] == PC_ARRIVE:
                st[slot, SINCE] = now
            st[slot, CLOCK] = now
        # ---- run the slot until it needs an instant that has not come
        # unsigned: numba then leaves out its look at negative indices
        us = np.uintp(slot)
        pc = st[us, PC]
        t = st[us, CLOCK]
        row = st[us, ROW]
        bits = np.uint64(0)
        word = np.int64(-1)
        draw_row = st[us, DRAW]
        acc = st[us, WHO]
        ua = np.uintp(acc)
        key = np.int64(INF)
        pending = np.int64(-1)
        while True:
            up = np.uintp(pc)
            op = ops[up, 0]
            if cpus and op >= SHARED and t > now and th[us, T_STATE] == ON:
                # what took time without leave to sleep is work
                want(host, slot, now, t - now, 0)
                key = tree[leaves + slot]
                break
            if op >= SHARED and t > now:
                # what is shared must be touched at the event's own time; when nothing else comes before, that is now
                key = (t << slot_bits) | slot
                set_key(tree, leaves, slot, key)
                if tree[1] != key or ready_count > 0 or t > until or t >= time_limit:
                    break
                now = t
                events += 1
                key = np.int64(INF)
            if op == DELAY:
                t += ops[up, 1]
                spent[up, 0] += 1
                for place in range(ops[up, 2]):
                    draw = ops[up, 4 + 2 * place]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                    took = sample(tables, ops[up, 3 + 2 * place], bits, draw)
                    t += took
                    spent[up, np.uintp(place + 1)] += took
                pc += 1
            elif op == HOLD:
                r = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                begin = rs[r, FREE_AT]
                cost = np.int64(3)
                if begin > t:  # somebody has it: what it costs then
                    rs[r, R_WAIT] += begin - t
                    cost = np.int64(6)
                else:
                    begin = t
                held = ops[up, cost]
                if ops[up, cost + 1] >= 0:
                    draw = ops[up, cost + 2]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                    held += sample(tables, ops[up, cost + 1], bits, draw)
                if ops[up, 9]:
                    counted = instance(ops[up, 10], ops[up, 11], acc, shard, row)
                    held += ops[up, 13] * min(counted_of(rs, counted, ops[up, 9], t), ops[up, 12])
                rs[r, R_ACQUIRED] += 1
                rs[r, R_BUSY] += held
                spent[up, 0] += begin - t
                spent[up, 1] += held
                t = begin + held
                rs[r, FREE_AT] = t
                pc += 1
            elif op == ENTER:
                others = threads_inside(inside, ops[up, 1], t)
                if others > 0:
                    slower = ops[up, 2] * others + ops[up, 3]
                    spent[up, 1] += slower
                    t += slower
                inside[ops[up, 1], us] = INF
                pc += 1
            elif op == LEAVE or op == LEAVE_NOW:  # noqa: SIM109, PLR1714
                inside[ops[up, 1], us] = t
                pc += 1
            elif op == WALK:
                if cpus and ops[np.uintp(pc + 1), 11]:
                    following = np.uintp(pc + 1)
                    others = threads_inside(inside, ops[following, 11] - 1, now)
                    th[us, T_WALKED] = ops[following, 12] * others + ops[following, 13] * np.int64(others > 0)
                    inside[ops[following, 11] - 1, us] = INF
                queue = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                rs[queue, SLEEPERS] -= 1
                others = rs[queue, SLEEPERS]
                held = ops[up, 10] * min(others, ops[up, 11] - 1)
                if others > 0:
                    held += ops[up, 7] * others
                    if ops[up, 8] >= 0:
                        draw = ops[up, 9]
                        if (draw >> 2) != word:
                            word = draw >> 2
                            bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                        held += sample(tables, ops[up, 8], bits, draw) * others
                if ops[up, 3] >= 0:
                    r = instance(ops[up, 3], ops[up, 4], acc, shard, row)
                    begin = rs[r, FREE_AT]
                    if begin > t:
                        rs[r, R_WAIT] += begin - t
                        held += ops[up, 6]
                    else:
                        begin = t
                        held += ops[up, 5]
                    rs[r, R_ACQUIRED] += 1
                    rs[r, R_BUSY] += held
                    spent[up, 0] += begin - t
                    t = begin + held
                    rs[r, FREE_AT] = t
                else:
                    t += held
                spent[up, 1] += held
                pc += 1
            elif op == ACQUIRE:
                r = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                rs[r, R_ACQUIRED] += 1
                waited = False
                if ops[up, 6]:  # one server: when it will be free is known, or somebody holds it
                    if rs[r, FREE] == 0:
                        waited = True
                    else:
                        rs[r, FREE] = 0
                        if rs[r, FREE_AT] > t:
                            rs[r, R_WAIT] += rs[r, FREE_AT] - t
                            rs[r, R_MAX_QUEUE] = max(rs[r, R_MAX_QUEUE], 1)
                            spent[up, 0] += rs[r, FREE_AT] - t
                            t = rs[r, FREE_AT]
                            rs[r, BEGIN] = t
                            rs[r, R_BUSY] -= t
                            pc += 1
                            continue
                elif rs[r, FREE] == 0:
                    waited = True
                else:
                    rs[r, FREE] -= 1
                if waited:
                    st[us, NEXT] = -1
                    if rs[r, HEAD] < 0:
                        rs[r, HEAD] = slot
                    else:
                        st[rs[r, TAIL], NEXT] = slot
                    rs[r, TAIL] = slot
                    rs[r, QUEUED] += 1
                    rs[r, R_MAX_QUEUE] = max(rs[r, R_MAX_QUEUE], rs[r, QUEUED] + (1 if rs[r, BEGIN] > t else 0))
                    rs[r, R_WAIT] -= t
                    break
                rs[r, R_BUSY] -= t
                if cpus and ops[up, 4] >= 0:
                    # A sleeping server wakes: on an idle CPU, or on that of the accessor, which now sleeps.
                    q = (vcpus + r - ops[up, 1]) % run_queues
                    busy = np.int64(queues[q, Q_FREE] == 0)
                    draw = ops[up, 5]
                    bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), draw >> 2)
                    word = np.int64(-1)
                    latency = sample(tables, ops[up, 4] + busy, bits, draw)
                    spent[up, 1] += latency
                    pc += 1
                    if th[us, T_STATE] == ON and th[us, T_QUEUE] == q:
                        hand_over(host, slot, now, accessors + r, latency)
                        key = tree[leaves + slot]
                        break
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    th[us, T_QUEUE] = q
                    th[us, T_WHO] = accessors + r
                    if latency > 0:
                        want(host, slot, now, latency, 0)
                        key = tree[leaves + slot]
                        break
                    continue
                took = ops[up, 3]
                if ops[up, 4] >= 0:
                    draw = ops[up, 5]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                    took += sample(tables, ops[up, 4], bits, draw)
                t += took
                spent[up, 1] += took
                pc += 1
            elif op == WAKE or op == WAKE_QUEUE:  # noqa: SIM109, PLR1714
                queue = ops[up, 4]
                if queue >= 0:
                    queue = instance(queue, ops[up, 5], acc, shard, row)
                slower = np.int64(0)
                if ops[up, 11]:
                    if cpus and ops[up, 10]:  # counted when the walk began
                        slower = th[us, T_WALKED]
                    else:
                        others = threads_inside(inside, ops[up, 11] - 1, now)
                        if others > 0:
                            slower = ops[up, 12] * others + ops[up, 13]
                if queue >= 0 and ops[up, 10] == 0 and not (cpus and th[us, T_WALKED]):
                    rs[queue, SLEEPERS] -= 1
                    others = rs[queue, SLEEPERS]
                    if others > 0:
                        each = ops[up, 6]
                        if ops[up, 7] >= 0:
                            draw = ops[up, 8]
                            if (draw >> 2) != word:
                                word = draw >> 2
                                bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                            each += sample(tables, ops[up, 7], bits, draw)
                        each = min(each, time_limit)
                        t += each * others
                        spent[up, 0] += each * others
                    if cpus and t > now:  # the waker's own work, after which it wakes
                        th[us, T_WALKED] = 1
                        want(host, slot, now, t - now, 0)
                        key = tree[leaves + slot]
                        break
                if cpus:
                    th[us, T_WALKED] = 0
                if row >= 0 and uniform < 0 and flags[row] & TRACKED:
                    # who brought the page tells those who joined; each wakes in its own time
                    g = granule[row]
                    if ac[ua, A_KIND] == 0:
                        stage2_epoch[g] = epoch
                    joiner = np.int64(-1)
                    if present_at[g] == NEVER or present_at[g] == INF:
                        present_at[g] = t
                        joiner = joined[g]
                        joined[g] = -1
                    while joiner >= 0:
                        following = st[joiner, NEXT]
                        # its own wake, from where it sleeps: another class or kind of accessor has another path
                        own = np.uintp(ops[np.uintp(st[joiner, PC]), 1])
                        if ops[np.uintp(st[joiner, PC]), 2]:
                            rs[
                                instance(ops[own, 4], ops[own, 5], st[joiner, WHO], shard, st[joiner, ROW]), SLEEPERS
                            ] -= 1
                        if ac[st[joiner, WHO], A_KIND] == 0:
                            stage2_epoch[g] = epoch
                        if cpus:
                            draw = ops[own, 3]
                            latency = ops[own, 1] + (slower if ops[own, 11] else 0)
                            if ops[own, 2] >= 0:
                                pair = np.int64(ops[own, 9] != TAIL_AWAKE and queues[th[joiner, T_QUEUE], Q_FREE] == 0)
                                bits = draw_bits(seed, st[joiner, DRAW], draw >> 2)
                                word = np.int64(-1)
                                latency += sample(tables, ops[own, 2] + pair, bits, draw)
                            spent[st[joiner, PC], 0] += now - st[joiner, CLOCK]
                            spent[own, 1] += latency
                            st[joiner, PC] = PC_RESUME
                            th[joiner, T_QUEUE] = st[joiner, WHO] % run_queues  # it may have slept as another thread
                            th[joiner, T_WHO] = st[joiner, WHO]
                            want(host, joiner, now, latency, 0)
                            joiner = following
                            continue
                        wake = ops[own, 1] + (slower if ops[own, 11] else 0)
                        if ops[own, 2] >= 0:
                            draw = ops[own, 3]
                            wake += sample(tables, ops[own, 2], draw_bits(seed, st[joiner, DRAW], draw >> 2), draw)
                        resumes = max(t, st[joiner, CLOCK]) + wake
                        spent[st[joiner, PC], 0] += resumes - wake - st[joiner, CLOCK]
                        spent[own, 1] += wake
                        stall = resumes - st[joiner, SINCE]
                        if keep_rows:
                            out_start[st[joiner, ROW]] = st[joiner, SINCE]
                            out_stall[st[joiner, ROW]] = stall
                        else:
                            histogram[cls[st[joiner, ROW]], histogram_bin(stall)] += 1
                        ac[st[joiner, WHO], S_STALL] += stall
                        ac[st[joiner, WHO], S_FAULTS] += 1
                        last = max(last, resumes)
                        if open_loop:
                            free_slots[free_count] = joiner
                            free_count += 1
                        else:
                            st[joiner, PC] = PC_START
                            st[joiner, CLOCK] = resumes
                            ready[ready_count] = joiner
                            ready_count += 1
                        joiner = following
                resumes = t + ops[up, 1] + slower
                if ops[up, 2] >= 0:
                    draw = ops[up, 3]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), word)
                    # where CPUs are counted a sleeper's cost has two tables: on an idle CPU, and after another thread
                    pair = np.int64(cpus > 0 and ops[up, 9] != TAIL_AWAKE and queues[acc % run_queues, Q_FREE] == 0)
                    resumes += sample(tables, ops[up, 2] + pair, bits, draw)
                spent[up, 1] += resumes - t
                if ops[up, 11]:
                    inside[ops[up, 11] - 1, us] = resumes
                if cpus:
                    if ops[up, 9] == TAIL_AWAKE:  # all of it was its own work, and so is this
                        if resumes > t and t == now:
                            want(host, slot, now, resumes - t, 0)
                            key = tree[leaves + slot]
                            pc = PC_RESUME
                            break
                    elif ops[up, 9]:
                        if free_count == 0:
                            return MORE_SLOTS, now, events, queues[:, Q_WORK].sum()
                        free_count -= 1
                        tail = free_slots[free_count]
                        st[tail, PC] = pc + 1
                        st[tail, CLOCK] = t
                        st[tail, ROW] = row
                        st[tail, DRAW] = draw_row
                        st[tail, SINCE] = st[us, SINCE]
                        st[tail, WHO] = acc
                        st[tail, TRY] = st[us, TRY]
                        ready[ready_count] = tail
                        ready_count += 1
                        if th[us, T_STATE] == ON:
                            pass_on(host, slot, tail)
                        else:
                            th[tail, T_QUEUE] = th[us, T_QUEUE]
                            th[tail, T_WHO] = th[us, T_WHO]
                    pc = PC_RESUME
                    if ops[up, 9] != TAIL_AWAKE and resumes > now:
                        if th[us, T_STATE] == ON:  # whoever woke it is done, and leaves the CPU to who waits
                            give_up(host, slot, now)
                        th[us, T_QUEUE] = acc % run_queues
                        th[us, T_WHO] = acc
                        want(host, slot, now, resumes - now, 0)
                        key = tree[leaves + slot]
                        break
                    t = resumes
                    continue
                stall = resumes - st[us, SINCE]
                if row < 0:
                    ac[ua, S_REFAULT_NS] += stall
                    ac[ua, S_REFAULTED] += 1
                else:
                    if keep_rows:
                        out_start[row] = st[us, SINCE]
                        out_stall[row] = stall
                    else:
                        histogram[cls[row], histogram_bin(stall)] += 1
                    ac[ua, S_STALL] += stall
                    ac[ua, S_FAULTS] += 1
                    if write_again and access[row] == 0:
                        ac[ua, A_REFAULTS] += REWRITE
                    if have_windows:
                        touched_granules += 1
                        if flags[row] & FIRST_TOUCH:
                            ac[ua, A_TOUCHED] += 1
                last = max(last, resumes)
                if ops[up, 9] == 1 and queue >= 0 and not open_loop:
                    # others go on with delays and the release of one server whose end is known: no event of its own
                    pending = resumes
                    pc += 1
                    continue
                if ops[up, 9]:  # what follows is done by others while the accessor runs
                    if free_count == 0:
                        return MORE_SLOTS, now, events, queues[:, Q_WORK].sum()
                    free_count -= 1
                    tail = free_slots[free_count]
                    st[tail, PC] = pc + 1
                    st[tail, CLOCK] = t
                    st[tail, ROW] = row
                    st[tail, DRAW] = draw_row
                    st[tail, SINCE] = st[us, SINCE]
                    st[tail, WHO] = acc
                    st[tail, TRY] = st[us, TRY]
                    ready[ready_count] = tail
                    ready_count += 1
                if open_loop:
                    if ops[up, 11]:  # inside a section until then: the slot is not free before
                        pc = PC_END
                        t = resumes
                        key = (t << slot_bits) | slot
                        break
                    free_slots[free_count] = slot
                    free_count += 1
                    break
                t = resumes
                pc = PC_START
            elif op == RESUME:  # only where CPUs are counted: woken, it runs when it has one
                if th[us, T_WHO] != acc:  # a server's thread brought it here, on that thread's CPU
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    th[us, T_QUEUE] = acc % run_queues
                    th[us, T_WHO] = acc
                if th[us, T_STATE] != ON:
                    want(host, slot, now, 0, 0)
                    if th[us, T_STATE] != ON or th[us, T_LEFT] > 0:  # it took another's CPU: it pays for that first
                        key = tree[leaves + slot]
                        break
                # as at WAKE without CPUs; one inlined function for both made every replay take twice as long
                stall = t - st[us, SINCE]
                if row < 0:
                    ac[ua, S_REFAULT_NS] += stall
                    ac[ua, S_REFAULTED] += 1
                else:
                    if keep_rows:
                        out_start[row] = st[us, SINCE]
                        out_stall[row] = stall
                    else:
                        histogram[cls[row], histogram_bin(stall)] += 1
                    ac[ua, S_STALL] += stall
                    ac[ua, S_FAULTS] += 1
                    if write_again and access[row] == 0:
                        ac[ua, A_REFAULTS] += REWRITE
                    if have_windows:
                        touched_granules += 1
                        if flags[row] & FIRST_TOUCH:
                            ac[ua, A_TOUCHED] += 1
                if open_loop:
                    last = max(last, t)
                    free_slots[free_count] = slot
                    free_count += 1
                    break
                pc = PC_START
            elif op == START:
                if t >= time_limit:
                    break
                if cpus and t > now:
                    key = (t << slot_bits) | slot
                    break
                if w_stops and t < w_end and t >= w_begin and (w_stops >> ac[ua, A_KIND]) & 1:
                    ac[ua, S_STOPPED] += w_end - t
                    t = w_end
                    if cpus:  # it wants no CPU before
                        key = (t << slot_bits) | slot
                        break
                ac[ua, A_RESUME] = t
                st[us, TRY] = 0
                word = np.int64(-1)
                if ac[ua, A_REFAULTS] > 0:
                    # touched before, mapped no more: the path of a refault, in its own time
                    draw_row = rows_total + (np.int64(acc) << 24) + ac[ua, S_REFAULTED] + (epoch << 48)
                    again = path_pc.shape[0] - 1
                    if ac[ua, A_REFAULTS] >= REWRITE:
                        ac[ua, A_REFAULTS] -= REWRITE
                        again -= 2
                    else:
                        ac[ua, A_REFAULTS] -= 1
                    row = np.int64(-1)
                    st[us, SINCE] = t
                    pc = path_pc[again, ac[ua, A_KIND]]
                    continue
                row = ac[ua, A_NEXT]
                if row >= ac[ua, A_STOP]:
                    if not have_windows:
                        ac[ua, S_END] = t
                        break
                    # it goes on to the end of the recording: a window may stop it there, or make it fault again
                    row = np.int64(-1)
                    left = ac[ua, A_TAIL]
                else:
                    left = think[row]
                if asleep.size and row >= 0 and asleep[row] > 0 and ac[ua, A_LEFT] < 0 and th[us, T_NAPPED] != row + 1:
                    th[us, T_NAPPED] = row + 1
                    t += asleep[row]
                    key = (t << slot_bits) | slot
                    break
                if ac[ua, A_LEFT] >= 0:
                    left = ac[ua, A_LEFT]
                    ac[ua, A_LEFT] = -1
                draw_row = row
                if cpus and row < 0:  # nor what it runs then
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    t += left
                    key = (t << slot_bits) | slot
                    st[us, SINCE] = t
                    pc = PC_ARRIVE
                    break
                if cpus and left == 0 and th[us, T_STATE] != ON:  # nobody touches memory without a CPU
                    want(host, slot, now, 0, 1)
                    if th[us, T_STATE] != ON or th[us, T_LEFT] > 0:
                        key = tree[leaves + slot]
                        pc = PC_ARRIVE
                        break
                if cpus and left > 0:
                    want(host, slot, now, left, 1)
                    key = tree[leaves + slot]
                    pc = PC_ARRIVE
                    break
                t += left
                st[us, SINCE] = t
                if row < 0:
                    st[us, ROW] = row
                    pc = PC_ARRIVE
                elif stepwise or (uniform < 0 and flags[row] & TRACKED):
                    pc = PC_ARRIVE
                else:
                    ac[ua, A_NEXT] = row + 1
                    pc = path_pc[uniform if uniform >= 0 else np.int64(cls[row]), ac[ua, A_KIND]]
            elif op == RELEASE or op == RELEASE_ONE:  # noqa: SIM109, PLR1714
                r = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                # one server that is at work: nothing can come between now and its known end; else wait for that instant
                if pending < 0 and op == RELEASE_ONE and rs[r, BEGIN] > now:
                    key = (t << slot_bits) | slot
                    break
                rs[r, R_BUSY] += t
                head = rs[r, HEAD]
                if head >= 0:
                    rs[r, HEAD] = st[head, NEXT]
                    rs[r, QUEUED] -= 1
                    rs[r, R_WAIT] += t
                    rs[r, R_BUSY] -= t
                    rs[r, BEGIN] = t
                    spent[st[head, PC], 0] += t - st[head, CLOCK]
                    st[head, CLOCK] = t
                    st[head, PC] += 1
                    ready[ready_count] = head
                    ready_count += 1
                    # a server's own thread, with nothing else to do, goes on with the next
                    if cpus and th[us, T_WHO] >= accessors and ops[np.uintp(pc + 1), 0] == END:
                        if th[us, T_STATE] == ON:
                            pass_on(host, slot, head)
                        else:
                            th[head, T_QUEUE] = th[us, T_QUEUE]
                            th[head, T_WHO] = th[us, T_WHO]
                else:
                    rs[r, FREE] += 1
                    rs[r, FREE_AT] = t
                pc += 1
            elif op == END:
                if pending >= 0:
                    t = pending
                    pending = np.int64(-1)
                    pc = PC_START
                    continue
                if slot >= first_dynamic:
                    free_slots[free_count] = slot
                    free_count += 1
                last = max(last, t)
                break
            elif op == SLEEP:
                queue = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                rs[queue, SLEEPERS] += 1
                pc += 1
            elif op == COALESCE:
                if row < 0 or uniform >= 0 or not flags[row] & TRACKED:
                    pc += 1
                    continue
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                g = granule[row]
                at = present_at[g]
                if at == NEVER:
                    present_at[g] = INF
                    joined[g] = -1
                    pc += 1
                elif at == INF:
                    st[us, NEXT] = joined[g]
                    joined[g] = slot
                    break
                elif cpus and at > t:  # a stream brings it: sleeps until then
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    key = (at << slot_bits) | slot
                    spent[up, 0] += at - t
                    t = at
                    break
                else:
                    # resolved meanwhile, or on its way with a known arrival: only the wake is left
                    spent[up, 0] += max(t, at) - t
                    t = max(t, at)
                    wake_pc = ops[up, 1]
                    queue = ops[wake_pc, 4]
                    if ops[up, 2]:
                        queue = instance(queue, ops[wake_pc, 5], acc, shard, row)
                        rs[queue, SLEEPERS] -= 1
                    took = ops[wake_pc, 1]
                    if ops[wake_pc, 2] >= 0:
                        draw = ops[wake_pc, 3]
                        took += sample(tables, ops[wake_pc, 2], draw_bits(seed, draw_row, draw >> 2), draw)
                    t += took
                    spent[wake_pc, 1] += took
                    if ac[ua, A_KIND] == 0:
                        stage2_epoch[g] = epoch
                    pc = PC_NOTHING
            elif op == ARRIVE:
                kind = ac[ua, A_KIND]
                if row < 0:  # the end of the recording
                    ac[ua, S_END] = t - ac[ua, A_TAIL]
                    break
                c = np.int64(cls[row])
                is_window_class = c == path_pc.shape[0] - 4
                if w_end > t >= w_begin:
                    blocked = (w_blocks_all >> kind) & 1
                    if access[row] == 1:
                        blocked |= (w_blocks_writes >> kind) & 1
                    if open_loop and (w_stops >> kind) & 1:
                        st[us, SINCE] = w_end  # the accessor does not run; its access comes after
                        t = w_end
                        continue
                    if blocked:
                        if cpus and th[us, T_STATE] == ON:
                            give_up(host, slot, now)
                        spent[up, 0] += w_end - t
                        t = w_end
                        if not is_window_class:
                            continue  # looks again when the window is over
                        is_window_class = False
                if not open_loop:
                    ac[ua, A_NEXT] = row + 1
                pc = path_pc[c, kind]
                if is_window_class:
                    pc = PC_NOTHING  # it was recorded because of a window that is not there now
                if flags[row] & TRACKED:
                    g = granule[row]
                    if present_at[g] != NEVER and present_at[g] <= t:
                        pc = PC_NOTHING
                        if kind == 0 and stage2_epoch[g] != epoch:
                            stage2_epoch[g] = epoch
                            pc = path_pc[path_pc.shape[0] - 2, kind]
            elif op == TRANSFER:
                r = instance(ops[up, 1], ops[up, 2], acc, shard, row)
                rs[r, R_ACQUIRED] += 1
                rs[r, R_BYTES] += ops[up, 4]
                if ops[up, 3] == 0:
                    pc += 1
                    continue
                if cpus and th[us, T_STATE] == ON:
                    give_up(host, slot, now)
                begin = max(t, rs[r, FREE_AT])
                rs[r, R_WAIT] += begin - t
                rs[r, R_BUSY] += ops[up, 3]
                spent[up, 0] += begin - t
                spent[up, 1] += ops[up, 3]
                t = begin + ops[up, 3]
                rs[r, FREE_AT] = t
                pc += 1
            elif op == DELAY_TIMES:
                r = instance(ops[up, 5], ops[up, 6], acc, shard, row)
                count = min(counted_of(rs, r, ops[up, 4], t), ops[up, 7])
                each = ops[up, 1]
                if ops[up, 2] >= 0:
                    draw = ops[up, 3]
                    each += sample(tables, ops[up, 2], draw_bits(seed, draw_row + (st[us, TRY] << 40), draw >> 2), draw)
                each = min(each, time_limit)
                spent[up, 1] += each * count
                pc += 1
                if cpus and each * count > 0:
                    want(host, slot, now, each * count, 0)
                    key = tree[leaves + slot]
                    break
                t += each * count
            elif op == CPU_DELAY:
                work = ops[up, 1]
                spent[up, 0] += 1
                for place in range(ops[up, 2]):
                    draw = ops[up, 4 + 2 * place]
                    bits = draw_bits(seed, draw_row + (st[us, TRY] << 40), draw >> 2)
                    took = sample(tables, ops[up, 3 + 2 * place], bits, draw)
                    work += took
                    spent[up, np.uintp(place + 1)] += took
                word = np.int64(-1)
                pc += 1
                if ops[up, 9] and work >= ops[up, 9]:
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    t += work
                elif work > 0:
                    want(host, slot, now, work, 0)
                    key = tree[leaves + slot]
                    break
            elif op == RECORDED:
                if row >= 0 and recorded.size and recorded[row] > 0:
                    if cpus and t > now:  # asleep until then
                        if th[us, T_STATE] == ON:
                            want(host, slot, now, t - now, 0)
                            key = tree[leaves + slot]
                        else:
                            key = (t << slot_bits) | slot
                        break
                    spent[up, 0] += recorded[row]
                    if cpus and recorded[row] < ops[up, 1]:
                        want(host, slot, now, recorded[row], 0)
                        key = tree[leaves + slot]
                        pc += 1
                        break
                    if cpus and th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    t += recorded[row]
                pc += 1
            elif op == RETRY:
                draw = ops[up, 4]
                chance = draw_bits(seed, draw_row + (st[us, TRY] << 40), draw >> 2) >> (np.uint64(draw & 3) * _U16)
                if st[us, TRY] < ops[up, 3] and np.int64(chance & _UMASK) < ops[up, 1]:
                    st[us, TRY] += 1
                    retries += 1
                    word = np.int64(-1)
                    pc = ops[up, 2]
                else:
                    pc += 1
            elif op == UNLESS:
                mask = ops[up, 1]
                holds = True
                if mask & 7:
                    holds = row >= 0 and ((mask >> np.int64(access[row])) & 1) != 0
                if holds and mask & 56:
                    holds = ((mask >> (3 + np.int64(ac[ua, A_KIND]))) & 1) != 0
                pc = pc + 1 if holds else ops[up, 2]
            else:  # COMPLETE
                if row >= 0 and out_latency.size:
                    out_latency[row] = t - st[us, SINCE]
                pc += 1
        st[us, PC] = pc
        st[us, CLOCK] = t
        st[us, ROW] = row
        st[us, DRAW] = draw_row
        if cpus and th[us, T_STATE] == ON and th[us, T_LEFT] <= 0:  # it waits for something else than time
            give_up(host, slot, now)
        if t >= time_limit:
            return TIME_LIMIT, t, events, queues[:, Q_WORK].sum()
        if tree[leaves + slot] != key:
            set_key(tree, leaves, slot, key)
    if status == STOPPED and cpus:
        # what was to be done on CPUs and has not been done is no work
        for q in range(run_queues):
            charge(host, q, until)
        for slot in range(slots):
            if th[slot, T_STATE] != AWAY and th[slot, T_LEFT] > 0:
                queues[th[slot, T_QUEUE], Q_WORK] -= th[slot, T_LEFT]
    return status, last, events, queues[:, Q_WORK].sum()
