"""The one compiled loop: it runs any program over any workload, in integer ns, in one total order of events.

An event is one int64: time << slot_bits | slot. Slots are, in this order, windows, the open-loop source, the background
stream, the accessors, and asynchronous tails; so events at one instant run in that order, and two engines that keep
to it agree
to the row. A tournament tree over the slots gives the next event: each slot has at most one.

A slot's own clock may run ahead of the event: delays add to it without any event. Only operations on what is shared (a
resource, a link, a wait queue, a tracked granule) must be executed at the event's time; a slot that reaches one too
early goes
back into the tree.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from replay import opcodes as o
from replay.jit import inline, jit

INF = 1 << 62
NEVER = -1  # granule: nobody has asked for it
_GOLD = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)
_U16, _UMASK = np.uint64(16), np.uint64(0xFFFF)

# globals that the compiled code folds in
(END, DELAY, DELAY_TIMES, ACQUIRE, RELEASE, TRANSFER, SLEEP, COALESCE, WAKE, RECORDED, RETRY, UNLESS, COMPLETE,
ARRIVE, START) = (
    o.END, o.DELAY, o.DELAY_TIMES, o.ACQUIRE, o.RELEASE, o.TRANSFER, o.SLEEP, o.COALESCE, o.WAKE, o.RECORDED, o.RETRY,
    o.UNLESS, o.COMPLETE, o.ARRIVE, o.START,
)  # fmt: skip
PC_ARRIVE, PC_START, PC_NOTHING = o.PC_ARRIVE, o.PC_START, o.PC_NOTHING
PER_VM, PER_ACCESSOR = o.PER_VM, o.PER_ACCESSOR
TIMES_WAITERS = o.TIMES_WAITERS
TRACKED, FIRST_TOUCH = o.TRACKED, o.FIRST_TOUCH
SLOT_WINDOW, SLOT_SOURCE, SLOT_PUSH, FIRST_SLOT = o.SLOT_WINDOW, o.SLOT_SOURCE, o.SLOT_PUSH, o.FIRST_SLOT


@inline
def draw_bits(seed: Any, row: Any, word: Any) -> Any:
    """64 bits that depend on (seed, row, word) alone: splitmix64 as a counter."""
    z = seed + (np.uint64(row) * np.uint64(16) + np.uint64(word)) * _GOLD
    z = (z ^ (z >> _U30)) * _MIX1
    z = (z ^ (z >> _U27)) * _MIX2
    return z ^ (z >> _U31)


@inline
def sample(tables: Any, table: Any, bits: Any, draw: Any) -> Any:
    """One draw from a table of `Distribution.table_ns`, through 16 of the 64 bits."""
    u = np.int64((bits >> (np.uint64(draw & 3) * _U16)) & _UMASK)
    index = u >> 8
    rest = u & 255
    if index == 255:
        return tables[table, 257 + rest]
    low = tables[table, index]
    return low + (((tables[table, index + 1] - low) * (2 * rest + 1)) >> 9)


@inline
def set_key(tree: Any, leaves: Any, slot: Any, key: Any) -> None:
    """Put `key` in the leaf of `slot` and mend the path to the root."""
    i = leaves + slot
    tree[i] = key
    while i > 1:
        key = min(key, tree[i ^ 1])
        i >>= 1
        tree[i] = key


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


@jit
def run_program(  # noqa: PLR0912, PLR0915, PLR0917
    ops: Any, tables: Any, path_pc: Any, seed: Any,
    acc_start: Any, acc_kind: Any, think: Any, cls: Any, access: Any, recorded: Any,
    flags: Any, granule: Any, shard: Any, uniform: Any,
    present_at: Any, stage2_epoch: Any, joined: Any,
    source_order: Any, source_time: Any,
    servers: Any, windows: Any, window_out: Any, granule_pages: Any,
    push_order: Any, push: Any,
    slots: Any, slot_bits: Any, until: Any, stepwise: Any,
    out_start: Any, out_stall: Any, out_latency: Any, histogram: Any, keep_rows: Any, sums: Any, resource_out: Any,
) -> Any:  # fmt: skip
    """Run one program to its end. See `replay.engine.simulate` for what the arrays are; returns (status, end of
    time, events)."""
    accessors = acc_start.size - 1
    open_loop = source_order.size > 0
    leaves = 1
    while leaves < slots:
        leaves *= 2
    tree = np.full(2 * leaves, INF, np.int64)
    slot_mask = np.int64((1 << slot_bits) - 1)
    time_limit = np.int64(1) << (62 - slot_bits)

    s_pc = np.zeros(slots, np.int64)
    s_t = np.zeros(slots, np.int64)
    s_row = np.zeros(slots, np.int64)
    s_draw = np.zeros(slots, np.int64)  # what randomness hangs on: the row, or a number beyond them all for a refault
    s_start = np.zeros(slots, np.int64)
    s_next = np.full(slots, -1, np.int64)
    s_acc = np.zeros(slots, np.int64)
    s_try = np.zeros(slots, np.int64)

    free_slots = np.empty(slots, np.int64)
    free_count = 0
    first_dynamic = FIRST_SLOT + (0 if open_loop else accessors)
    for slot in range(slots - 1, first_dynamic - 1, -1):
        free_slots[free_count] = slot
        free_count += 1
    ready = np.empty(slots, np.int64)
    ready_count = 0

    instances = servers.size
    r_free = servers.copy()
    r_free_at = np.zeros(instances, np.int64)
    r_head = np.full(instances, -1, np.int64)
    r_tail = np.full(instances, -1, np.int64)
    r_queued = np.zeros(instances, np.int64)
    r_begin = np.zeros(instances, np.int64)  # one server: when its holder began, which may be still to come
    r_sleepers = np.zeros(instances, np.int64)

    a_next = np.empty(accessors, np.int64)
    a_left = np.full(accessors, -1, np.int64)  # think time left when a window interrupted it; -1: all of it
    a_resume = np.zeros(accessors, np.int64)
    a_touched = np.zeros(accessors, np.int64)
    a_refaults = np.zeros(accessors, np.int64)

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

    if have_windows:
        set_key(tree, leaves, SLOT_WINDOW, (windows[0, 0] << slot_bits) | SLOT_WINDOW)
    if push_order.size:
        set_key(tree, leaves, SLOT_PUSH, SLOT_PUSH)
    if open_loop:
        set_key(tree, leaves, SLOT_SOURCE, (source_time[source_order[0]] << slot_bits) | SLOT_SOURCE)
    else:
        for a in range(accessors - 1, -1, -1):
            a_next[a] = acc_start[a]
            slot = FIRST_SLOT + a
            s_acc[slot] = a
            s_pc[slot] = PC_START
            ready[ready_count] = slot
            ready_count += 1
    now = np.int64(0)

    while True:
        if ready_count > 0:
            ready_count -= 1
            slot = ready[ready_count]
        else:
            top = tree[1]
            if top == INF:
                break
            now = top >> slot_bits
            slot = top & slot_mask
            if now > until:
                break
            if now >= time_limit:
                return 2, now, events
            events += 1

            if slot < FIRST_SLOT:
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
                    if windows[w, 10]:
                        epoch += 1
                    if not open_loop:
                        for a in range(accessors):
                            if windows[w, 10] and windows[w, 11] and acc_kind[a] == 0:
                                a_refaults[a] = a_touched[a]
                            main = FIRST_SLOT + a
                            waiting = s_pc[main] == PC_ARRIVE and tree[leaves + main] != INF
                            if waiting and (w_stops >> acc_kind[a]) & 1:
                                resumed = a_resume[a]
                                if resumed < hold_end or a_refaults[a] > 0:
                                    went_on = max(resumed, now)
                                    a_left[a] = max(s_t[main] - went_on, 0)
                                    again = max(resumed, hold_end)
                                    sums[a, 1] += again - went_on
                                    s_pc[main] = PC_START
                                    s_t[main] = again
                                    a_resume[a] = again
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
                        if max(r_free_at[link] - now, 0) > push[3]:
                            break
                        g = push_order[push_next]
                        push_next += 1
                        if g >= 0 and present_at[g] != NEVER:
                            continue
                        r_free_at[link] = max(r_free_at[link], now) + push[1]
                        resource_out[link, 0] += push[1]
                        resource_out[link, 4] += push[4]
                        if g >= 0:
                            present_at[g] = r_free_at[link] + push[2]
                    if push_next < push_order.size:
                        at = max(r_free_at[link] - push[3], now + 1)
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
                    return 1, now, events
                free_count -= 1
                slot = free_slots[free_count]
                low, high = 0, accessors
                while high - low > 1:
                    middle = (low + high) // 2
                    if acc_start[middle] <= row:
                        low = middle
                    else:
                        high = middle
                s_acc[slot] = low
                s_row[slot] = row
                s_draw[slot] = row
                s_start[slot] = now
                s_t[slot] = now
                s_try[slot] = 0
                s_pc[slot] = PC_ARRIVE

        # ---- run the slot until it needs an instant that has not come
        pc = s_pc[slot]
        t = s_t[slot]
        row = s_row[slot]
        bits = np.uint64(0)
        word = np.int64(-1)
        draw_row = s_draw[slot]
        acc = s_acc[slot]
        key = np.int64(INF)
        while True:
            op = ops[pc, 0]
            if op == DELAY:
                t += ops[pc, 1]
                if ops[pc, 2] >= 0:
                    draw = ops[pc, 3]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (s_try[slot] << 40), word)
                    t += sample(tables, ops[pc, 2], bits, draw)
                pc += 1
            elif op == ACQUIRE:
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                r = instance(ops[pc, 1], ops[pc, 2], acc, shard, row)
                resource_out[r, 1] += 1
                waited = False
                if ops[pc, 6]:  # one server: when it will be free is known, or somebody holds it
                    if r_free[r] == 0:
                        waited = True
                    else:
                        r_free[r] = 0
                        if r_free_at[r] > t:
                            resource_out[r, 2] += r_free_at[r] - t
                            resource_out[r, 3] = max(resource_out[r, 3], 1)
                            t = r_free_at[r]
                            r_begin[r] = t
                            resource_out[r, 0] -= t
                            pc += 1
                            continue
                elif r_free[r] == 0:
                    waited = True
                else:
                    r_free[r] -= 1
                if waited:
                    s_next[slot] = -1
                    if r_head[r] < 0:
                        r_head[r] = slot
                    else:
                        s_next[r_tail[r]] = slot
                    r_tail[r] = slot
                    r_queued[r] += 1
                    resource_out[r, 3] = max(resource_out[r, 3], r_queued[r] + (1 if r_begin[r] > t else 0))
                    resource_out[r, 2] -= t
                    break
                resource_out[r, 0] -= t
                t += ops[pc, 3]
                if ops[pc, 4] >= 0:
                    draw = ops[pc, 5]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (s_try[slot] << 40), word)
                    t += sample(tables, ops[pc, 4], bits, draw)
                pc += 1
            elif op == WAKE:
                queue = ops[pc, 4]
                if queue >= 0:
                    if t > now:
                        key = (t << slot_bits) | slot
                        break
                    queue = instance(queue, ops[pc, 5], acc, shard, row)
                    r_sleepers[queue] -= 1
                    others = r_sleepers[queue]
                    if others > 0:
                        each = ops[pc, 6]
                        if ops[pc, 7] >= 0:
                            draw = ops[pc, 8]
                            if (draw >> 2) != word:
                                word = draw >> 2
                                bits = draw_bits(seed, draw_row + (s_try[slot] << 40), word)
                            each += sample(tables, ops[pc, 7], bits, draw)
                        t += each * others
                if row >= 0 and uniform < 0 and flags[row] & TRACKED:
                    # who brought the page tells those who joined; each wakes in its own time
                    g = granule[row]
                    if acc_kind[acc] == 0:
                        stage2_epoch[g] = epoch
                    joiner = np.int64(-1)
                    if present_at[g] == NEVER or present_at[g] == INF:
                        present_at[g] = t
                        joiner = joined[g]
                        joined[g] = -1
                    while joiner >= 0:
                        following = s_next[joiner]
                        if queue >= 0:
                            r_sleepers[queue] -= 1
                        wake = ops[pc, 1]
                        if ops[pc, 2] >= 0:
                            draw = ops[pc, 3]
                            wake += sample(tables, ops[pc, 2], draw_bits(seed, s_draw[joiner], draw >> 2), draw)
                        resumes = max(t, s_t[joiner]) + wake
                        stall = resumes - s_start[joiner]
                        if keep_rows:
                            out_start[s_row[joiner]] = s_start[joiner]
                            out_stall[s_row[joiner]] = stall
                        else:
                            histogram[cls[s_row[joiner]], histogram_bin(stall)] += 1
                        sums[s_acc[joiner], 0] += stall
                        sums[s_acc[joiner], 4] += 1
                        last = max(last, resumes)
                        if open_loop:
                            free_slots[free_count] = joiner
                            free_count += 1
                        else:
                            s_pc[joiner] = PC_START
                            s_t[joiner] = resumes
                            ready[ready_count] = joiner
                            ready_count += 1
                        joiner = following
                resumes = t + ops[pc, 1]
                if ops[pc, 2] >= 0:
                    draw = ops[pc, 3]
                    if (draw >> 2) != word:
                        word = draw >> 2
                        bits = draw_bits(seed, draw_row + (s_try[slot] << 40), word)
                    resumes += sample(tables, ops[pc, 2], bits, draw)
                stall = resumes - s_start[slot]
                if row < 0:
                    sums[acc, 2] += stall
                    sums[acc, 3] += 1
                else:
                    if keep_rows:
                        out_start[row] = s_start[slot]
                        out_stall[row] = stall
                    else:
                        histogram[cls[row], histogram_bin(stall)] += 1
                    sums[acc, 0] += stall
                    sums[acc, 4] += 1
                    if have_windows:
                        touched_granules += 1
                        if flags[row] & FIRST_TOUCH:
                            a_touched[acc] += 1
                last = max(last, resumes)
                if ops[pc, 9]:  # what follows is done by others while the accessor runs
                    if free_count == 0:
                        return 1, now, events
                    free_count -= 1
                    tail = free_slots[free_count]
                    s_pc[tail] = pc + 1
                    s_t[tail] = t
                    s_row[tail] = row
                    s_draw[tail] = draw_row
                    s_start[tail] = s_start[slot]
                    s_acc[tail] = acc
                    s_try[tail] = s_try[slot]
                    ready[ready_count] = tail
                    ready_count += 1
                if open_loop:
                    free_slots[free_count] = slot
                    free_count += 1
                    break
                t = resumes
                pc = PC_START
            elif op == START:
                if w_stops and t < w_end and t >= w_begin and (w_stops >> acc_kind[acc]) & 1:
                    sums[acc, 1] += w_end - t
                    t = w_end
                a_resume[acc] = t
                s_try[slot] = 0
                word = np.int64(-1)
                if a_refaults[acc] > 0:
                    # touched before, mapped no more: the path of a refault, in its own time
                    draw_row = rows_total + (np.int64(acc) << 24) + a_refaults[acc] + (epoch << 48)
                    a_refaults[acc] -= 1
                    row = np.int64(-1)
                    s_start[slot] = t
                    pc = path_pc[path_pc.shape[0] - 1, acc_kind[acc]]
                    continue
                row = a_next[acc]
                if row >= acc_start[acc + 1]:
                    sums[acc, 5] = t
                    break
                if a_left[acc] >= 0:
                    t += a_left[acc]
                    a_left[acc] = -1
                else:
                    t += think[row]
                draw_row = row
                s_start[slot] = t
                if stepwise or (uniform < 0 and flags[row] & TRACKED):
                    pc = PC_ARRIVE
                    if t > now:
                        key = (t << slot_bits) | slot
                        break
                else:
                    a_next[acc] = row + 1
                    pc = path_pc[uniform if uniform >= 0 else np.int64(cls[row]), acc_kind[acc]]
            elif op == RELEASE:
                r = instance(ops[pc, 1], ops[pc, 2], acc, shard, row)
                # one server that is at work: nothing can come between now and its known end; else wait for that instant
                if t > now and (not ops[pc, 3] or r_begin[r] > now):
                    key = (t << slot_bits) | slot
                    break
                resource_out[r, 0] += t
                head = r_head[r]
                if head >= 0:
                    r_head[r] = s_next[head]
                    r_queued[r] -= 1
                    resource_out[r, 2] += t
                    resource_out[r, 0] -= t
                    r_begin[r] = t
                    s_t[head] = t
                    s_pc[head] += 1
                    ready[ready_count] = head
                    ready_count += 1
                else:
                    r_free[r] += 1
                    r_free_at[r] = t
                pc += 1
            elif op == END:
                s_pc[slot] = END
                if slot >= first_dynamic:
                    free_slots[free_count] = slot
                    free_count += 1
                last = max(last, t)
                break
            elif op == SLEEP:
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                queue = instance(ops[pc, 1], ops[pc, 2], acc, shard, row)
                r_sleepers[queue] += 1
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
                    s_next[slot] = joined[g]
                    joined[g] = slot
                    break
                else:
                    # resolved meanwhile, or on its way with a known arrival: only the wake is left
                    t = max(t, at)
                    wake_pc = ops[pc, 1]
                    queue = ops[wake_pc, 4]
                    if queue >= 0:
                        queue = instance(queue, ops[wake_pc, 5], acc, shard, row)
                        r_sleepers[queue] -= 1
                    t += ops[wake_pc, 1]
                    if ops[wake_pc, 2] >= 0:
                        draw = ops[wake_pc, 3]
                        t += sample(tables, ops[wake_pc, 2], draw_bits(seed, draw_row, draw >> 2), draw)
                    if acc_kind[acc] == 0:
                        stage2_epoch[g] = epoch
                    pc = PC_NOTHING
            elif op == ARRIVE:
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                kind = acc_kind[acc]
                c = np.int64(cls[row])
                is_window_class = c == path_pc.shape[0] - 3
                if w_end > t >= w_begin:
                    blocked = (w_blocks_all >> kind) & 1
                    if access[row] == 1:
                        blocked |= (w_blocks_writes >> kind) & 1
                    if open_loop and (w_stops >> kind) & 1:
                        s_start[slot] = w_end  # the accessor does not run; its access comes after
                        t = w_end
                        continue
                    if blocked:
                        t = w_end
                        if not is_window_class:
                            continue  # looks again when the window is over
                        is_window_class = False
                if not open_loop:
                    a_next[acc] = row + 1
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
                if t > now and ops[pc, 3] > 0:
                    key = (t << slot_bits) | slot
                    break
                r = instance(ops[pc, 1], ops[pc, 2], acc, shard, row)
                resource_out[r, 1] += 1
                resource_out[r, 4] += ops[pc, 4]
                if ops[pc, 3] == 0:
                    pc += 1
                    continue
                begin = max(t, r_free_at[r])
                resource_out[r, 2] += begin - t
                resource_out[r, 0] += ops[pc, 3]
                t = begin + ops[pc, 3]
                r_free_at[r] = t
                pc += 1
            elif op == DELAY_TIMES:
                if t > now:
                    key = (t << slot_bits) | slot
                    break
                r = instance(ops[pc, 5], ops[pc, 6], acc, shard, row)
                if ops[pc, 4] == TIMES_WAITERS:
                    count = max(r_sleepers[r] - 1, 0)
                else:
                    count = r_free[r]
                    if servers[r] == 1 and r_free_at[r] > t:
                        count = 0
                each = ops[pc, 1]
                if ops[pc, 2] >= 0:
                    draw = ops[pc, 3]
                    each += sample(tables, ops[pc, 2], draw_bits(seed, draw_row + (s_try[slot] << 40), draw >> 2), draw)
                t += each * count
                pc += 1
            elif op == RECORDED:
                if row >= 0 and recorded.size and recorded[row] > 0:
                    t += recorded[row]
                pc += 1
            elif op == RETRY:
                draw = ops[pc, 4]
                chance = draw_bits(seed, draw_row + (s_try[slot] << 40), draw >> 2) >> (np.uint64(draw & 3) * _U16)
                if s_try[slot] < ops[pc, 3] and np.int64(chance & _UMASK) < ops[pc, 1]:
                    s_try[slot] += 1
                    word = np.int64(-1)
                    pc = ops[pc, 2]
                else:
                    pc += 1
            elif op == UNLESS:
                mask = ops[pc, 1]
                holds = True
                if mask & 7:
                    holds = row >= 0 and ((mask >> np.int64(access[row])) & 1) != 0
                if holds and mask & 56:
                    holds = ((mask >> (3 + np.int64(acc_kind[acc]))) & 1) != 0
                pc = pc + 1 if holds else ops[pc, 2]
            else:  # COMPLETE
                if row >= 0 and out_latency.size:
                    out_latency[row] = t - s_start[slot]
                pc += 1
        s_pc[slot] = pc
        s_t[slot] = t
        s_row[slot] = row
        s_draw[slot] = draw_row
        if tree[leaves + slot] != key:
            set_key(tree, leaves, slot, key)
    return 0, max(last, now), events
