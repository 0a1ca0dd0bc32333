"""The one compiled loop: it runs any program over any workload, in integer ns, in one total order of events.

An event is one int64: time << slot_bits | slot. Slots are, in this order, windows, the open-loop source, the background
stream, the accessors, and what goes on behind wakes; so events at one instant run in that order, and two engines that
keep to it agree to the row. A tournament tree over the slots gives the next event: each slot has at most one.

`spent` says where the time went: whoever lets a fault's clock grow before its wake adds as much to its operation's
row. The columns are for the compiler to tell apart (`Program.shares`).

A slot's own clock may run ahead of the event: delays add to it without any event. Only operations on what is shared (a
resource, a link, a wait queue, a tracked granule) must be executed at the event's time; a slot that reaches one too
early goes back into the tree.

How it is written: what every fault goes through stands in the loop. A function that takes arrays costs reference counts
at each call, two to ten times the time of a fault; an inlined one that takes several of them made the loop a tenth
slower. What two operations share is reached by a jump (`pc = ...`): every fault ends at ENDED. What is rare, or needs
host CPUs, is a function (`kernel_events`, `threads`, `cpus`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from faultreplay.replay.engine.cpus import give_up, new_host, pass_on, stop, stretch_over, want
from faultreplay.replay.engine.draws import NO_WORD, draw_bits, drawn, sixteen
from faultreplay.replay.engine.jit import inline, jit
from faultreplay.replay.engine.kernel_events import (
    Machine,
    arrive,
    count_ends,
    instance,
    open_window,
    push_on,
    refault,
    set_off,
    tell,
)
from faultreplay.replay.engine.layout import (
    A_KIND,
    A_LEFT,
    A_NEXT,
    A_REFAULTS,
    A_RESUME,
    A_STOP,
    A_TAIL,
    A_TOUCHED,
    CLOCK,
    DRAW,
    FIRST_TOUCH,
    INF,
    NEVER,
    NEXT,
    ON,
    PC,
    Q_FREE,
    Q_WORK,
    R_ACQUIRED,
    R_BEGIN,
    R_BUSY,
    R_BYTES,
    R_FREE,
    R_FREE_AT,
    R_HEAD,
    R_MAX_QUEUE,
    R_QUEUED,
    R_SERVERS,
    R_SLEEPERS,
    R_TAIL,
    R_WAIT,
    REWRITE,
    ROW,
    S_END,
    S_FAULTS,
    S_REFAULT_NS,
    S_REFAULTED,
    S_STALL,
    S_STOPPED,
    SINCE,
    SLOT_COLUMNS,
    SLOT_PUSH,
    SLOT_WINDOW,
    STATUS_MORE_SLOTS,
    STATUS_OK,
    STATUS_STOPPED,
    STATUS_STUCK,
    STATUS_TIME,
    T_LEFT,
    T_NAPPED,
    T_QUEUE,
    T_STATE,
    T_WALKED,
    T_WHO,
    TRACKED,
    TRY,
    WHO,
)
from faultreplay.replay.engine.opcodes import (
    ACQUIRE,
    ACQUIRE_IDLE,
    ACQUIRE_SINGLE,
    ARRIVE,
    COALESCE,
    COALESCE_SLEEPS,
    COALESCE_WAKE,
    CPU_DELAY,
    DELAY,
    DELAY_ASLEEP,
    DELAY_DRAWS,
    DELAY_FIRST,
    DELAY_NS,
    DELAY_TIMES,
    END,
    ENDED,
    ENTER,
    ENTER_EACH,
    ENTER_ONCE,
    HOLD,
    HOLD_ALONE,
    HOLD_CONTENDED,
    HOLD_EACH,
    HOLD_MOST,
    HOLD_OF,
    HOLD_WHAT,
    LEAVE,
    LEAVE_NOW,
    OF,
    PC_ARRIVE,
    PC_END,
    PC_ENDED,
    PC_NOTHING,
    PC_RESUME,
    PC_START,
    RECORDED,
    RECORDED_ASLEEP,
    RELEASE,
    RELEASE_ONE,
    RESUME,
    RETRY,
    RETRY_BELOW,
    RETRY_DRAW,
    RETRY_MOST,
    RETRY_TARGET,
    SECTION,
    SHARED,
    SLEEP,
    START,
    TAIL_AWAKE,
    TAIL_SIMPLE,
    TIMES_COST,
    TIMES_MOST,
    TIMES_OF,
    TIMES_SPARE,
    TIMES_WAITERS,
    TIMES_WHAT,
    TRANSFER,
    TRANSFER_BYTES,
    TRANSFER_NS,
    UNLESS,
    UNLESS_MASK,
    UNLESS_TARGET,
    WAKE,
    WAKE_COST,
    WAKE_EACH,
    WAKE_FROM,
    WAKE_ONCE,
    WAKE_QUEUE,
    WAKE_SECTION,
    WAKE_TAIL,
    WAKE_WALK,
    WAKE_WALKED,
    WALK,
    WALK_ALONE,
    WALK_COLD,
    WALK_CONTENDED,
    WALK_COST,
    WALK_LOCK,
    WALK_READERS,
)
from faultreplay.replay.engine.threads import come_back, wake_server, wake_up
from faultreplay.replay.engine.tournament import set_key


@inline
def histogram_bin(ns: Any) -> Any:
    """Bin of a stall: exact below 64 ns, then 32 bins for each doubling (3 %)."""
    if ns < 64:
        return ns
    exponent = math.frexp(float(ns))[1] - 6
    return exponent * 32 + (ns >> exponent)


@inline
def slower_by(inside: Any, section: Any, t: Any, each: Any, once: Any) -> Any:
    """What a thread pays for the others that are inside a section at `t`, ns; it has left it or was never there."""
    others = np.int64(0)
    for k in range(inside.shape[1]):
        others += inside[section, k] > t
    return each * others + once * np.int64(others > 0)


@inline
def counted_of(rs: Any, r: Any, what: Any, t: Any) -> Any:
    """Other sleepers on wait queue `r`, or idle servers of `r`: all, or all but the one that takes this fault."""
    if what == TIMES_WAITERS:
        return max(rs[r, R_SLEEPERS] - 1, 0)
    idle = rs[r, R_FREE]
    if rs[r, R_SERVERS] == 1 and rs[r, R_FREE_AT] > t:
        idle = 0
    return max(idle - 1, 0) if what == TIMES_SPARE else idle


@jit
def run_program(  # noqa: PLR0911, PLR0912, PLR0915, PLR0917
    ac: Any, rs: Any, code: Any, faults: Any, granules: Any, arrivals: Any, rules: Any, host_cpus: Any, out: Any
) -> Any:
    """Run one program to its end.

    Args:
        ac: int64[A, A_COLUMNS], accessors as the engine sets them up; what is reported is left there
        rs: int64[resource instances, R_COLUMNS], as well
        code, faults, granules, arrivals, rules, host_cpus, out: see `records`

    Returns:
        (STATUS_*, end of time, events)
    """
    ops, tables, path_pc, seed, sections = code
    think, asleep, cls, access, recorded, flags, granule, shard = faults
    present_at, stage2_epoch, joined, granule_pages = granules
    windows = arrivals.windows
    slots, first, slot_bits, until, stepwise, uniform, write_again, keep_rows = rules
    cpus, pinned, preempt_ns = host_cpus
    out_start, out_stall, out_latency, histogram, spent, out_windows, out_cpu_work = out

    accessors = ac.shape[0]
    open_loop = arrivals.order.size > 0
    slot_mask = np.int64((1 << slot_bits) - 1)
    time_limit = np.int64(1) << (62 - slot_bits)
    host = new_host(slots, slot_bits, cpus, pinned, preempt_ns, accessors + rs.shape[0])
    tree, leaves, th, queues = host.tree, host.leaves, host.th, host.queues
    run_queues = queues.shape[0]
    st = np.zeros((slots, SLOT_COLUMNS), np.int64)
    st[:, NEXT] = -1
    inside = np.zeros((sections, slots), np.int64)  # until when a slot's thread is inside a section
    rs[:, R_HEAD] = -1
    rs[:, R_TAIL] = -1
    rs[:, R_FREE] = rs[:, R_SERVERS]
    vcpus = (ac[:, A_KIND] == 0).sum()  # handlers are numbered behind them
    if vcpus == 0:
        vcpus = accessors

    first_dynamic = first + (0 if open_loop else accessors)
    free_slots = np.empty(slots, np.int64)  # a stack
    free_count = slots - first_dynamic
    free_slots[:free_count] = np.arange(slots - 1, first_dynamic - 1, -1)
    ready = np.empty(slots, np.int64)  # a stack of slots that go on at this instant
    have_windows = windows.shape[0] > 0
    window_next = push_next = source_next = 0
    w_begin = w_end = np.int64(-1)
    w_stops = w_blocks_all = w_blocks_writes = np.int64(0)  # bits of accessor kinds
    epoch = np.ones(1, np.int64)  # how often stage 2 was emptied, and 1
    touched_granules = np.int64(0)
    rows_total = think.size
    machine = Machine(host, st, ac, rs, stage2_epoch, epoch, spent, ready, first, cpus, open_loop, time_limit)
    ready_count = set_off(machine, arrivals)

    # a run without progress ends: so many events with no fault's end, or for each CPU a sixteenth of so many slices
    stride = np.int64(20_000) + 8 * slots * ops.shape[0]
    look_at = stride
    progress = np.int64(-1)
    looked = np.int64(0)
    retries = np.int64(0)
    events = 0
    now = last = np.int64(0)
    status = STATUS_OK

    while True:
        if ready_count > 0:
            ready_count -= 1
            slot = ready[ready_count]
        else:
            top = tree[1]
            if top == INF:
                break
            if events >= look_at:
                done = retries + push_next + source_next + window_next + count_ends(ac)
                slices = (now - looked) // host.slice_ns * max(cpus, 1) * 16
                if done == progress and (not cpus or slices < stride):
                    return STATUS_STUCK, now, events
                progress = done
                looked = now
                look_at = events + stride
            now = top >> slot_bits
            slot = top & slot_mask
            if now > until:
                status = STATUS_STOPPED
                break
            if now >= time_limit:
                return STATUS_TIME, now, events
            events += 1
            if slot < first:
                if slot == SLOT_WINDOW:
                    pages = touched_granules * granule_pages
                    opened = open_window(machine, windows, out_windows, window_next, now, pages)
                    w_end, w_stops, w_blocks_all, w_blocks_writes = opened
                    w_begin = now
                    if w_end >= time_limit:
                        return STATUS_TIME, now, events
                    window_next += 1
                    continue
                if slot == SLOT_PUSH:
                    push_next = push_on(machine, arrivals, present_at, push_next, now)
                    if push_next < 0:
                        return STATUS_TIME, now, events
                    continue
                if free_count == 0:
                    return STATUS_MORE_SLOTS, now, events
                free_count -= 1
                slot = free_slots[free_count]
                arrive(machine, arrivals, source_next, slot, now)
                source_next += 1

        last = max(last, now)
        if cpus and th[slot, T_STATE] == ON:
            # nothing left: another thread's event at this instant has counted the work already
            if th[slot, T_LEFT] > 0 and not stretch_over(host, slot, now):
                continue
            if st[slot, PC] == PC_ARRIVE:
                st[slot, SINCE] = now
            st[slot, CLOCK] = now

        # ---- run the slot until it needs an instant that has not come
        us = np.uintp(slot)  # unsigned: numba then leaves out its look at negative indices
        pc = st[us, PC]
        t = st[us, CLOCK]
        row = st[us, ROW]
        draw_row = st[us, DRAW]
        acc = st[us, WHO]
        ua = np.uintp(acc)
        word, bits = np.int64(NO_WORD), np.uint64(0)
        key = np.int64(INF)
        pending = np.int64(-1)
        while True:
            up = np.uintp(pc)
            op = ops[up, 0]
            if op >= SHARED and t > now:
                if cpus and th[us, T_STATE] == ON:
                    # what took time without leave to sleep is work
                    key = want(host, slot, now, t - now, 0)
                    break
                # what is shared must be touched at the event's own time; when nothing else comes before, that is now
                key = (t << slot_bits) | slot
                set_key(tree, leaves, slot, key)
                if tree[1] != key or ready_count > 0 or t > until or t >= time_limit or events >= look_at:
                    break
                now = t
                events += 1
                key = np.int64(INF)
            if op == DELAY or op == CPU_DELAY:  # noqa: SIM109, PLR1714
                work = ops[up, DELAY_NS]
                spent[up, 0] += 1
                for place in range(ops[up, DELAY_DRAWS]):
                    at = np.uintp(DELAY_FIRST + 2 * place)
                    took, word, bits = drawn(tables, ops[up, at], ops[up, at + 1], seed, draw_row, word, bits)
                    work += took
                    spent[up, np.uintp(place + 1)] += took
                pc += 1
                if not cpus:
                    t += work
                elif ops[up, DELAY_ASLEEP] and work >= ops[up, DELAY_ASLEEP]:
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    t += work
                elif work > 0:
                    key = want(host, slot, now, work, 0)
                    break
            elif op == HOLD:
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                begin = rs[r, R_FREE_AT]
                cost = np.int64(HOLD_ALONE)
                if begin > t:  # somebody has it
                    rs[r, R_WAIT] += begin - t
                    cost = np.int64(HOLD_CONTENDED)
                else:
                    begin = t
                held = ops[up, cost]
                if ops[up, cost + 1] >= 0:
                    more, word, bits = drawn(tables, ops[up, cost + 1], ops[up, cost + 2], seed, draw_row, word, bits)
                    held += more
                if ops[up, HOLD_WHAT]:
                    of = instance(ops[up, HOLD_OF], ops[up, HOLD_OF + 1], acc, shard, row)
                    count = min(counted_of(rs, of, ops[up, HOLD_WHAT], t), ops[up, HOLD_MOST])
                    held += ops[up, HOLD_EACH] * count
                rs[r, R_ACQUIRED] += 1
                rs[r, R_BUSY] += held
                spent[up, 0] += begin - t
                spent[up, 1] += held
                t = begin + held
                rs[r, R_FREE_AT] = t
                pc += 1
            elif op == ENTER:
                slower = slower_by(inside, ops[up, SECTION], t, ops[up, ENTER_EACH], ops[up, ENTER_ONCE])
                spent[up, 1] += slower
                t += slower
                inside[ops[up, SECTION], us] = INF
                pc += 1
            elif op == LEAVE or op == LEAVE_NOW:  # noqa: SIM109, PLR1714
                inside[ops[up, SECTION], us] = t
                pc += 1
            elif op == WALK:
                wake = np.uintp(pc + 1)
                if cpus and ops[wake, WAKE_SECTION]:
                    section = ops[wake, WAKE_SECTION] - 1
                    th[us, T_WALKED] = slower_by(inside, section, now, ops[wake, WAKE_EACH], ops[wake, WAKE_ONCE])
                    inside[section, us] = INF
                queue = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                rs[queue, R_SLEEPERS] -= 1
                others = rs[queue, R_SLEEPERS]
                held = ops[up, WALK_COLD] * min(others, ops[up, WALK_READERS] - 1)
                if others > 0:
                    each = ops[up, WALK_COST]
                    if ops[up, WALK_COST + 1] >= 0:
                        more, word, bits = drawn(
                            tables, ops[up, WALK_COST + 1], ops[up, WALK_COST + 2], seed, draw_row, word, bits
                        )
                        each += more
                    held += each * others
                begin = t
                if ops[up, WALK_LOCK] >= 0:
                    r = instance(ops[up, WALK_LOCK], ops[up, WALK_LOCK + 1], acc, shard, row)
                    if rs[r, R_FREE_AT] > t:
                        begin = rs[r, R_FREE_AT]
                        rs[r, R_WAIT] += begin - t
                        held += ops[up, WALK_CONTENDED]
                    else:
                        held += ops[up, WALK_ALONE]
                    rs[r, R_ACQUIRED] += 1
                    rs[r, R_BUSY] += held
                    rs[r, R_FREE_AT] = begin + held
                spent[up, 0] += begin - t
                spent[up, 1] += held
                t = begin + held
                pc += 1
            elif op == ACQUIRE:
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                rs[r, R_ACQUIRED] += 1
                if rs[r, R_FREE] == 0:  # waits in the queue
                    st[us, NEXT] = -1
                    if rs[r, R_HEAD] < 0:
                        rs[r, R_HEAD] = slot
                    else:
                        st[rs[r, R_TAIL], NEXT] = slot
                    rs[r, R_TAIL] = slot
                    rs[r, R_QUEUED] += 1
                    rs[r, R_MAX_QUEUE] = max(rs[r, R_MAX_QUEUE], rs[r, R_QUEUED] + (1 if rs[r, R_BEGIN] > t else 0))
                    rs[r, R_WAIT] -= t
                    break
                rs[r, R_FREE] -= 1
                if ops[up, ACQUIRE_SINGLE] and rs[r, R_FREE_AT] > t:  # when it will be free is known
                    rs[r, R_WAIT] += rs[r, R_FREE_AT] - t
                    rs[r, R_MAX_QUEUE] = max(rs[r, R_MAX_QUEUE], 1)
                    spent[up, 0] += rs[r, R_FREE_AT] - t
                    t = rs[r, R_FREE_AT]
                    rs[r, R_BEGIN] = t
                    rs[r, R_BUSY] -= t
                    pc += 1
                    continue
                rs[r, R_BUSY] -= t
                if cpus and ops[up, ACQUIRE_IDLE + 1] >= 0:
                    # a sleeping server wakes: on an idle CPU, or on that of the accessor, which now sleeps
                    q = (vcpus + r - ops[up, OF]) % run_queues
                    table = ops[up, ACQUIRE_IDLE + 1] + np.int64(queues[q, Q_FREE] == 0)
                    took, word, bits = drawn(tables, table, ops[up, ACQUIRE_IDLE + 2], seed, draw_row, word, bits)
                    spent[up, 1] += took
                    pc += 1
                    if wake_server(host, slot, now, q, accessors + r, took):
                        key = tree[leaves + slot]
                        break
                    continue
                took = ops[up, ACQUIRE_IDLE]
                if ops[up, ACQUIRE_IDLE + 1] >= 0:
                    more, word, bits = drawn(
                        tables, ops[up, ACQUIRE_IDLE + 1], ops[up, ACQUIRE_IDLE + 2], seed, draw_row, word, bits
                    )
                    took += more
                t += took
                spent[up, 1] += took
                pc += 1
            elif op == WAKE or op == WAKE_QUEUE:  # noqa: SIM109, PLR1714
                queue = ops[up, WAKE_FROM]
                if queue >= 0:
                    queue = instance(ops[up, WAKE_FROM], ops[up, WAKE_FROM + 1], acc, shard, row)
                slower = np.int64(0)
                if ops[up, WAKE_SECTION]:
                    if cpus and ops[up, WAKE_WALKED]:  # counted when the walk began
                        slower = th[us, T_WALKED]
                    else:
                        section = ops[up, WAKE_SECTION] - 1
                        slower = slower_by(inside, section, now, ops[up, WAKE_EACH], ops[up, WAKE_ONCE])
                if queue >= 0 and ops[up, WAKE_WALKED] == 0 and not (cpus and th[us, T_WALKED]):
                    rs[queue, R_SLEEPERS] -= 1
                    others = rs[queue, R_SLEEPERS]
                    if others > 0:
                        each = ops[up, WAKE_WALK]
                        if ops[up, WAKE_WALK + 1] >= 0:
                            more, word, bits = drawn(
                                tables, ops[up, WAKE_WALK + 1], ops[up, WAKE_WALK + 2], seed, draw_row, word, bits
                            )
                            each += more
                        each = min(each, time_limit)
                        t += each * others
                        spent[up, 0] += each * others
                    if cpus and t > now:  # the waker's own work, after which it wakes
                        th[us, T_WALKED] = 1
                        key = want(host, slot, now, t - now, 0)
                        break
                if cpus:
                    th[us, T_WALKED] = 0
                if row >= 0 and uniform < 0 and flags[row] & TRACKED:
                    # who brought the page tells those who joined; each wakes in its own time
                    g = granule[row]
                    if ac[ua, A_KIND] == 0:
                        stage2_epoch[g] = epoch[0]
                    joiner = np.int64(-1)
                    if present_at[g] == NEVER or present_at[g] == INF:
                        present_at[g] = t
                        joiner = joined[g]
                        joined[g] = -1
                    if joiner >= 0:
                        ready_count = tell(machine, code, faults, joiner, t, now, slower, ready_count)
                resumes = t + ops[up, WAKE_COST] + slower
                if ops[up, WAKE_COST + 1] >= 0:
                    # where CPUs are counted a sleeper's cost has two tables: on an idle CPU, and after another thread
                    table = ops[up, WAKE_COST + 1]
                    if cpus:
                        table += np.int64(ops[up, WAKE_TAIL] != TAIL_AWAKE and queues[acc % run_queues, Q_FREE] == 0)
                    took, word, bits = drawn(tables, table, ops[up, WAKE_COST + 2], seed, draw_row, word, bits)
                    resumes += took
                spent[up, 1] += resumes - t
                if ops[up, WAKE_SECTION]:
                    inside[ops[up, WAKE_SECTION] - 1, us] = resumes
                tail = ops[up, WAKE_TAIL]
                if tail == TAIL_SIMPLE and queue >= 0 and not open_loop and not cpus:
                    # others go on with delays and the release of one server whose end is known: no event of its own
                    pending = resumes
                    pc += 1
                    continue
                if tail == TAIL_AWAKE:  # all of it was its own work, and so is this
                    pc = PC_RESUME
                    if resumes > t and t == now:
                        key = want(host, slot, now, resumes - t, 0)
                        break
                    t = resumes
                    continue
                if tail:  # what follows is done by others while the accessor runs
                    if free_count == 0:
                        return STATUS_MORE_SLOTS, now, events
                    free_count -= 1
                    follower = free_slots[free_count]
                    st[follower, PC] = pc + 1
                    st[follower, CLOCK] = t
                    st[follower, ROW] = row
                    st[follower, DRAW] = draw_row
                    st[follower, SINCE] = st[us, SINCE]
                    st[follower, WHO] = acc
                    st[follower, TRY] = st[us, TRY]
                    ready[ready_count] = follower
                    ready_count += 1
                    if cpus and th[us, T_STATE] == ON:
                        pass_on(host, slot, follower)
                    elif cpus:
                        th[follower, T_QUEUE] = th[us, T_QUEUE]
                        th[follower, T_WHO] = th[us, T_WHO]
                t = resumes
                pc = PC_ENDED
                if cpus:
                    pc = PC_RESUME
                    if resumes > now:
                        key = wake_up(host, slot, now, acc, resumes - now)
                        break
            elif op == RESUME:  # only where CPUs are counted: woken, it runs when it has one
                if not come_back(host, slot, now, acc):
                    key = tree[leaves + slot]
                    break
                pc = PC_ENDED
            elif op == ENDED:
                stall = t - st[us, SINCE]
                last = max(last, t)
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
                    leaves_at = np.int64(0)
                    for section in range(sections):
                        leaves_at = max(leaves_at, inside[section, us])
                    if leaves_at > now:  # inside a section until then: the slot is not free before
                        pc = PC_END
                        key = (t << slot_bits) | slot
                        break
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
                word = np.int64(NO_WORD)
                if ac[ua, A_REFAULTS] > 0:
                    # touched before, mapped no more: the path of a refault, in its own time
                    draw_row = rows_total + (np.int64(acc) << 24) + ac[ua, S_REFAULTED] + (epoch[0] << 48)
                    pc = refault(ac, path_pc, acc)
                    row = np.int64(-1)
                    st[us, SINCE] = t
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
                if cpus and (left > 0 or th[us, T_STATE] != ON):  # nobody touches memory without a CPU
                    want(host, slot, now, left, 1)
                    if left > 0 or th[us, T_STATE] != ON or th[us, T_LEFT] > 0:
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
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                # one server that is at work: nothing can come between now and its known end; else wait for that instant
                if pending < 0 and op == RELEASE_ONE and rs[r, R_BEGIN] > now:
                    key = (t << slot_bits) | slot
                    break
                rs[r, R_BUSY] += t
                head = rs[r, R_HEAD]
                if head >= 0:
                    rs[r, R_HEAD] = st[head, NEXT]
                    rs[r, R_QUEUED] -= 1
                    rs[r, R_WAIT] += t
                    rs[r, R_BUSY] -= t
                    rs[r, R_BEGIN] = t
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
                    rs[r, R_FREE] += 1
                    rs[r, R_FREE_AT] = t
                pc += 1
            elif op == END:
                if pending >= 0:
                    t = pending
                    pending = np.int64(-1)
                    pc = PC_ENDED
                    continue
                if slot >= first_dynamic:
                    free_slots[free_count] = slot
                    free_count += 1
                last = max(last, t)
                break
            elif op == SLEEP:
                rs[instance(ops[up, OF], ops[up, OF + 1], acc, shard, row), R_SLEEPERS] += 1
                pc += 1
            elif op == COALESCE:
                if row < 0 or uniform >= 0 or not flags[row] & TRACKED:
                    pc += 1
                    continue
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                g = granule[row]
                at_ns = present_at[g]
                if at_ns == NEVER:
                    present_at[g] = INF
                    joined[g] = -1
                    pc += 1
                elif at_ns == INF:
                    st[us, NEXT] = joined[g]
                    joined[g] = slot
                    break
                elif cpus and at_ns > t:  # a stream brings it: sleeps until then
                    if th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    key = (at_ns << slot_bits) | slot
                    spent[up, 0] += at_ns - t
                    t = at_ns
                    break
                else:
                    # resolved meanwhile, or on its way with a known arrival: only the wake is left
                    spent[up, 0] += max(t, at_ns) - t
                    t = max(t, at_ns)
                    wake = np.uintp(ops[up, COALESCE_WAKE])
                    if ops[up, COALESCE_SLEEPS]:
                        rs[instance(ops[wake, WAKE_FROM], ops[wake, WAKE_FROM + 1], acc, shard, row), R_SLEEPERS] -= 1
                    took = ops[wake, WAKE_COST]
                    if ops[wake, WAKE_COST + 1] >= 0:
                        more, word, bits = drawn(
                            tables, ops[wake, WAKE_COST + 1], ops[wake, WAKE_COST + 2], seed, draw_row, word, bits
                        )
                        took += more
                    t += took
                    spent[wake, 1] += took
                    if ac[ua, A_KIND] == 0:
                        stage2_epoch[g] = epoch[0]
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
                        if kind == 0 and stage2_epoch[g] != epoch[0]:
                            stage2_epoch[g] = epoch[0]
                            pc = path_pc[path_pc.shape[0] - 2, kind]
            elif op == TRANSFER:
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                rs[r, R_ACQUIRED] += 1
                rs[r, R_BYTES] += ops[up, TRANSFER_BYTES]
                pc += 1
                if ops[up, TRANSFER_NS] == 0:
                    continue
                if cpus and th[us, T_STATE] == ON:
                    give_up(host, slot, now)
                begin = max(t, rs[r, R_FREE_AT])
                rs[r, R_WAIT] += begin - t
                rs[r, R_BUSY] += ops[up, TRANSFER_NS]
                spent[up, 0] += begin - t
                spent[up, 1] += ops[up, TRANSFER_NS]
                t = begin + ops[up, TRANSFER_NS]
                rs[r, R_FREE_AT] = t
            elif op == DELAY_TIMES:
                r = instance(ops[up, TIMES_OF], ops[up, TIMES_OF + 1], acc, shard, row)
                count = min(counted_of(rs, r, ops[up, TIMES_WHAT], t), ops[up, TIMES_MOST])
                each = ops[up, TIMES_COST]
                if ops[up, TIMES_COST + 1] >= 0:
                    more, word, bits = drawn(
                        tables, ops[up, TIMES_COST + 1], ops[up, TIMES_COST + 2], seed, draw_row, word, bits
                    )
                    each += more
                each = min(each, time_limit)
                spent[up, 1] += each * count
                pc += 1
                if cpus and each * count > 0:
                    key = want(host, slot, now, each * count, 0)
                    break
                t += each * count
            elif op == RECORDED:
                if row >= 0 and recorded.size and recorded[row] > 0:
                    if cpus and t > now:  # asleep until then
                        key = (t << slot_bits) | slot
                        if th[us, T_STATE] == ON:
                            key = want(host, slot, now, t - now, 0)
                        break
                    spent[up, 0] += recorded[row]
                    if cpus and recorded[row] < ops[up, RECORDED_ASLEEP]:
                        key = want(host, slot, now, recorded[row], 0)
                        pc += 1
                        break
                    if cpus and th[us, T_STATE] == ON:
                        give_up(host, slot, now)
                    t += recorded[row]
                pc += 1
            elif op == RETRY:
                pc += 1
                if st[us, TRY] < ops[up, RETRY_MOST]:
                    draw = ops[up, RETRY_DRAW]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row, word)
                    if sixteen(bits, draw) < ops[up, RETRY_BELOW]:
                        st[us, TRY] += 1
                        retries += 1
                        draw_row += np.int64(1) << 40
                        word = np.int64(NO_WORD)
                        pc = ops[up, RETRY_TARGET]
            elif op == UNLESS:
                mask = ops[up, UNLESS_MASK]
                holds = True
                if mask & 7:
                    holds = row >= 0 and ((mask >> np.int64(access[row])) & 1) != 0
                if holds and mask & 56:
                    holds = ((mask >> (3 + np.int64(ac[ua, A_KIND]))) & 1) != 0
                pc = pc + 1 if holds else ops[up, UNLESS_TARGET]
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
            return STATUS_TIME, t, events
        if tree[leaves + slot] != key:
            set_key(tree, leaves, slot, key)
    if status == STATUS_STOPPED and cpus:
        stop(host, until)
    out_cpu_work[0] = queues[:, Q_WORK].sum()
    return status, last, events
