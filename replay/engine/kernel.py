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
host CPUs, is a function (`kernel_events`, `kernel_joins`, `threads`, `cpus`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from faultreplay.replay.engine.cpus import give_up, stop, stretch_over, want
from faultreplay.replay.engine.draws import NO_WORD, drawn
from faultreplay.replay.engine.jit import inline, jit
from faultreplay.replay.engine.journal import note
from faultreplay.replay.engine.kernel_events import STOPPED, arrive, by_itself, waits_for
from faultreplay.replay.engine.kernel_joins import join, tell
from faultreplay.replay.engine.layout import (
    A_KIND,
    A_LEFT,
    A_NEXT,
    A_REFAULTS,
    A_RESUME,
    A_STOP,
    A_TAIL,
    A_TOUCHED,
    A_VM,
    CLOCK,
    DRAW,
    FIRST_TOUCH,
    INF,
    NEVER,
    NEXT,
    NOW_BEGIN,
    NOW_END,
    NOW_STOPS,
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
    SLOT_SOURCE,
    STATUS_MORE_SLOTS,
    STATUS_OK,
    STATUS_SLICES,
    STATUS_STOPPED,
    STATUS_STUCK,
    STATUS_TIME,
    T_LEFT,
    T_SLOWER,
    T_STATE,
    T_WHO,
    TRACKED,
    TRY,
    V_HOME,
    WHO,
)
from faultreplay.replay.engine.machine import (
    applies,
    counted,
    follow,
    histogram_bin,
    in_vain,
    instance,
    out_of_sections,
    park,
    progressed,
    refault,
    set_off,
    set_up,
)
from faultreplay.replay.engine.opcodes import (
    ACQUIRE,
    ACQUIRE_SINGLE,
    AROUND,
    ARRIVE,
    ASLEEP,
    COALESCE,
    COALESCE_SKIPS,
    COMPLETE,
    COST,
    COST_DRAW,
    COST_TABLE,
    CPU_DELAY,
    CPU_RECORDED,
    DELAY,
    DELAY_DRAWN,
    DELAY_MORE,
    DELAY_TIMES,
    END,
    ENDED,
    ENTER,
    ENTER_EACH,
    ENTER_LEAVES,
    ENTER_ONCE,
    ENTER_WAKES,
    HOLD,
    HOLD_CONTENDED,
    LEAVE,
    LEAVE_NOW,
    OF,
    PATH_PRESENT,
    PATH_WINDOW,
    PC_ARRIVE,
    PC_END,
    PC_ENDED,
    PC_NOTHING,
    PC_RESUME,
    PC_START,
    READ,
    READ_HIT,
    RECORDED,
    RELEASE,
    RELEASE_ONE,
    RESUME,
    RETRY,
    RETRY_MOST,
    RETRY_TARGET,
    SECTION,
    SHARED,
    SLEEP,
    START,
    TAIL_AWAKE,
    TAIL_SIMPLE,
    TIMES_HELD,
    TIMES_MOST,
    TIMES_WHAT,
    TRANSFER,
    TRANSFER_BYTES,
    UNLESS,
    UNLESS_MASK,
    UNLESS_TARGET,
    WAKE,
    WAKE_EACH,
    WAKE_ONCE,
    WAKE_QUEUE,
    WAKE_SECTION,
    WAKE_TAIL,
    WAKE_WALKED,
    WALK,
    WALK_ALONE,
    WALK_COLD,
    WALK_QUEUE,
    WALK_READERS,
)
from faultreplay.replay.engine.prefetch import PREFETCH_ROWS, prefetch
from faultreplay.replay.engine.storage import ASKED, JOINED, THERE, mark_found, place_around, read_pages
from faultreplay.replay.engine.threads import come_back, lend, rest, sets_out, wake_server, wake_up
from faultreplay.replay.engine.tournament import set_key


@inline
def slower_by(inside: Any, section: Any, t: Any, each: Any, once: Any) -> Any:
    """What a thread pays for the others that are inside a section at `t`, ns; it has left it or was never there."""
    others = np.int64(0)
    for k in range(inside.shape[1]):
        others += inside[np.uintp(section), np.uintp(k)] > t
    return each * others + once * np.int64(others > 0)


@jit
def run_program(  # noqa: PLR0911, PLR0912, PLR0915, PLR0917
    ac: Any, rs: Any, code: Any, faults: Any, granules: Any, arrivals: Any, rules: Any, out: Any, log: Any
) -> Any:
    """Run one program to its end.

    Args:
        ac: int64[A, A_COLUMNS], accessors as the engine sets them up; what is reported is left there
        rs: int64[resource instances, R_COLUMNS], as well
        code, faults, granules, arrivals, rules, out: see `records`
        log: int64[entries + 1, COLUMNS] of `journal`, or None

    Returns:
        (STATUS_*, end of time, events)
    """
    ops, tables, path_pc, seed, sections = code
    think, _, cls, access, recorded, flags, granule, shard = faults
    present_at, stage2_epoch, joined, granule_pages, files = granules
    slots, first, opened, slot_bits, until, stepwise, uniform, write_again, keep_rows, (cpus, _, _, events_most) = rules
    out_start, out_stall, out_latency, histogram, spent, out_windows, out_cpu_work = out

    machine = set_up(ac, rs, code, stage2_epoch, arrivals, rules, spent)
    host, st, inside, window, epoch = machine.host, machine.st, machine.inside, machine.window, machine.epoch
    tree, leaves, th, queues = host.tree, host.leaves, host.th, host.queues
    accessors, rows_total, run_queues, time_limit = ac.shape[0], think.size, queues.shape[0], machine.time_limit
    have_windows, slot_mask = arrivals.windows.shape[0] > 0, np.int64((1 << slot_bits) - 1)
    ready, ready_count = machine.ready, set_off(machine, arrivals)
    first_dynamic = first + accessors - opened
    free_slots = np.empty(slots, np.int64)  # a stack
    free_count = slots - first_dynamic
    free_slots[:free_count] = np.arange(slots - 1, first_dynamic - 1, -1)

    # a run without progress ends: so many events with no fault's end (see `progressed`)
    stride = look_at = np.int64(20_000) + 8 * slots * ops.shape[0]
    touched_granules = retries = now = last = np.int64(0)
    events, status = 0, STATUS_OK

    while True:
        if ready_count > 0:
            ready_count -= 1
            slot = ready[ready_count]
        else:
            top = tree[1]
            if top == INF:
                break
            if events >= look_at:
                if not progressed(machine, retries, now, stride):
                    return STATUS_STUCK, now, events
                if cpus and events > events_most:
                    return STATUS_SLICES, now, events
                look_at = events + stride
            if top >> slot_bits > until:
                status = STATUS_STOPPED
                break
            now = top >> slot_bits
            slot = top & slot_mask
            if now >= time_limit:
                return STATUS_TIME, now, events
            events += 1
            if slot < first:
                if slot != SLOT_SOURCE:
                    pages = touched_granules * granule_pages
                    if not by_itself(machine, arrivals, out_windows, present_at, slot, now, pages):
                        return STATUS_TIME, now, events
                    continue
                if free_count == 0:
                    return STATUS_MORE_SLOTS, now, events
                free_count -= 1
                slot = free_slots[free_count]
                arrive(machine, arrivals, slot, now)

        us, last = np.uintp(slot), max(last, now)  # unsigned: numba then leaves out its look at negative indices
        if cpus and th[us, T_STATE] == ON:
            # nothing left: another thread's event at this instant has counted the work already
            if th[us, T_LEFT] > 0 and not stretch_over(host, slot, now):
                continue
            if st[us, PC] == PC_ARRIVE:
                st[us, SINCE] = now
            st[us, CLOCK] = now

        # ---- run the slot until it needs an instant that has not come
        pc, t, row, draw_row, acc = st[us, PC], st[us, CLOCK], st[us, ROW], st[us, DRAW], st[us, WHO]
        ua, word, bits = np.uintp(acc), np.int64(NO_WORD), np.uint64(0)
        key, pending, longer = np.int64(INF), np.int64(-1), np.int64(0)  # longer: by what the next hold is
        while True:
            up = np.uintp(pc)
            op = ops[up, 0]
            if op >= SHARED and t > now:
                if cpus and th[us, T_STATE] == ON:
                    key = want(host, slot, now, t - now, 0)  # what took time without leave to sleep is work
                    break
                # what is shared must be touched at the event's own time; when nothing else comes before, that is now
                key = (t << slot_bits) | slot
                set_key(tree, leaves, slot, key)
                if tree[1] != key or ready_count > 0 or t > until or t >= time_limit or events >= look_at:
                    break
                now = t
                events += 1
                key = np.int64(INF)
            if log is not None:  # else there is nothing of it in the compiled loop
                note(log, spent, slot, pc, t, row, acc)
            took = ops[up, COST]
            if ops[up, COST_TABLE] >= 0:
                more, word, bits = drawn(tables, ops[up, COST_TABLE], ops[up, COST_DRAW], seed, draw_row, word, bits)
                took += more
            if op == WAKE or op == WAKE_QUEUE:  # noqa: SIM109, PLR1714
                slower = np.int64(0)
                if ops[up, WAKE_SECTION]:
                    if cpus and ops[up, WAKE_WALKED]:  # counted when the walk began
                        slower = th[us, T_SLOWER]
                    else:
                        section = ops[up, WAKE_SECTION] - 1 + sections * ac[ua, A_VM]
                        slower = slower_by(inside, section, now, ops[up, WAKE_EACH], ops[up, WAKE_ONCE])
                if row >= 0 and uniform < 0 and flags[row] & TRACKED:
                    # who brought the page tells those who joined; each wakes in its own time
                    g = granule[row]
                    if ac[ua, A_KIND] == 0:
                        stage2_epoch[g] = epoch[0]
                    if present_at[g] == NEVER or present_at[g] == INF:
                        present_at[g] = t
                        joiner = joined[g]
                        joined[g] = -1
                        if joiner >= 0:
                            ready_count = tell(machine, code, faults, joiner, t, now, slower, ready_count)
                slept = cpus and ops[up, COST_TABLE] >= 0 and ops[up, WAKE_TAIL] != TAIL_AWAKE
                if slept and queues[host.tv[acc, V_HOME], Q_FREE] == 0:  # then its cost has a second table
                    table, draw = ops[up, COST_TABLE] + 1, ops[up, COST_DRAW]
                    took, word, bits = drawn(tables, table, draw, seed, draw_row, word, bits)
                resumes = t + took + slower
                spent[up, 1] += resumes - t
                if ops[up, WAKE_SECTION]:
                    inside[np.uintp(ops[up, WAKE_SECTION] - 1 + sections * ac[ua, A_VM]), us] = resumes
                tail = ops[up, WAKE_TAIL]
                if tail == TAIL_SIMPLE and ops[up, WAKE_WALKED] and acc >= opened and not cpus:
                    # others go on with delays and the release of one server whose end is known: no event of its own
                    pending = resumes
                    pc += 1
                    continue
                if tail == TAIL_AWAKE:  # all of it was its own work, and so is this
                    pc = np.int64(PC_RESUME)
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
                    park(st, np.uintp(follower), pc + 1, t, row, draw_row)
                    follow(st, np.uintp(follower), us)
                    ready[ready_count] = follower
                    ready_count += 1
                    if cpus:
                        lend(host, slot, follower)
                t = resumes
                if cpus:
                    pc = np.int64(PC_RESUME)
                    if resumes > now:
                        key = wake_up(host, slot, now, acc, resumes - now)
                        break
                    continue
                op = np.int64(ENDED)
            elif op == RESUME:  # only where CPUs are counted: woken, it runs when it has one
                if not come_back(host, slot, now, acc):
                    key = tree[leaves + slot]
                    break
                op = np.int64(ENDED)
            elif op == END:
                if pending < 0:
                    if slot >= first_dynamic:
                        free_slots[free_count] = slot
                        free_count += 1
                    last = max(last, t)
                    break
                t = pending
                pending = np.int64(-1)
                op = np.int64(ENDED)
            if op == ENDED:
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
                if acc < opened:
                    if sections and out_of_sections(inside, us) > now:  # until then the slot is not free
                        pc = np.int64(PC_END)
                        key = (t << slot_bits) | slot
                        break
                    free_slots[free_count] = slot
                    free_count += 1
                    break
                pc = np.int64(PC_START)
                op = np.int64(START)
            if op == START:
                if t >= time_limit:
                    break
                if cpus and t > now:
                    key = (t << slot_bits) | slot
                    break
                if window[NOW_END] > t >= window[NOW_BEGIN] and (window[NOW_STOPS] >> ac[ua, A_KIND]) & 1:
                    ac[ua, S_STOPPED] += window[NOW_END] - t
                    t = window[NOW_END]
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
                    row = np.int64(
                        -1
                    )  # to the end of the recording: a window may stop it there, or make it fault again
                draw_row = row
                if cpus:
                    t, pc, key = sets_out(machine, faults, slot, row, t)
                    if key >= 0:
                        break
                    key = np.int64(INF)
                    continue
                prefetch(think, row + PREFETCH_ROWS)
                prefetch(out_start, row + PREFETCH_ROWS)
                prefetch(out_stall, row + PREFETCH_ROWS)
                left = think[row] if row >= 0 else ac[ua, A_TAIL]
                if have_windows and ac[ua, A_LEFT] >= 0:
                    left, ac[ua, A_LEFT] = ac[ua, A_LEFT], np.int64(-1)
                t += left
                st[us, SINCE] = t
                if row < 0 or stepwise or (uniform < 0 and flags[row] & TRACKED):
                    pc = np.int64(PC_ARRIVE)
                else:
                    ac[ua, A_NEXT] = row + 1
                    pc = path_pc[uniform if uniform >= 0 else np.int64(cls[row]), ac[ua, A_KIND]]
                continue
            work = np.int64(0)  # what it does before the next operation
            if op == WALK:
                queue = instance(ops[up, WALK_QUEUE], ops[up, WALK_QUEUE + 1], acc, shard, row)
                rs[queue, R_SLEEPERS] -= 1
                others = rs[queue, R_SLEEPERS]
                longer = ops[up, WALK_COLD] * min(others, ops[up, WALK_READERS] - 1) + min(took, time_limit) * others
                took = ops[up, WALK_ALONE]
                if ops[up, OF] < 0:  # under no lock
                    spent[up, 1] += longer
                    work, longer = longer, np.int64(0)
                else:
                    op = np.int64(HOLD)
            if op == DELAY or op == CPU_DELAY:  # noqa: SIM109, PLR1714
                work = took
                spent[up, 0] += 1
                spent[up, 1] += took - ops[up, COST]
                for place in range(ops[up, DELAY_MORE]):
                    at = np.uintp(DELAY_DRAWN + 2 * place)
                    more, word, bits = drawn(tables, ops[up, at], ops[up, at + 1], seed, draw_row, word, bits)
                    work += more
                    spent[up, np.uintp(place + 2)] += more
            elif op == HOLD or op == TRANSFER:  # noqa: SIM109, PLR1714
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                rs[r, R_ACQUIRED] += 1
                if op == TRANSFER:
                    rs[r, R_BYTES] += ops[up, TRANSFER_BYTES]
                    if took == 0:
                        pc += 1
                        continue
                    if cpus:
                        rest(host, slot, now)
                begin = rs[r, R_FREE_AT]
                if begin > t:  # somebody has it
                    rs[r, R_WAIT] += begin - t
                    spent[up, 0] += begin - t
                    took = ops[up, HOLD_CONTENDED]
                    if ops[up, HOLD_CONTENDED + 1] >= 0:
                        table, draw = ops[up, HOLD_CONTENDED + 1], ops[up, HOLD_CONTENDED + 2]
                        more, word, bits = drawn(tables, table, draw, seed, draw_row, word, bits)
                        took += more
                else:
                    begin = t
                took, longer = took + longer, np.int64(0)
                rs[r, R_BUSY] += took
                spent[up, 1] += took
                rs[r, R_FREE_AT] = begin + took
                work = np.int64(op == HOLD) * (begin + took - t)  # its thread spins; one that transfers sleeps
                t = begin + took - work
            elif op == ENTER:
                section = ops[up, SECTION] + sections * ac[ua, A_VM]
                slower = slower_by(inside, section, t, ops[up, ENTER_EACH], ops[up, ENTER_ONCE])
                if ops[up, ENTER_WAKES]:  # what its wake is slower by
                    th[us, T_SLOWER] = slower
                else:
                    spent[up, 0] += 1
                    spent[up, 1] += slower
                    spent[up, 2] += took - ops[up, COST]
                    work = slower + took
                inside[np.uintp(section), us] = t + work if ops[up, ENTER_LEAVES] else np.int64(INF)
            elif op == LEAVE or op == LEAVE_NOW:  # noqa: SIM109, PLR1714
                inside[np.uintp(ops[up, SECTION] + sections * ac[ua, A_VM]), us] = t
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
                if cpus and ops[up, COST_TABLE] >= 0:
                    # a sleeping server wakes: on an idle CPU, or on that of the accessor, which now sleeps
                    q = (machine.vcpus + r - ops[up, OF]) % run_queues
                    table = ops[up, COST_TABLE] + np.int64(queues[q, Q_FREE] == 0)
                    took, word, bits = drawn(tables, table, ops[up, COST_DRAW], seed, draw_row, word, bits)
                    spent[up, 1] += took
                    pc += 1
                    if wake_server(host, slot, now, q, accessors + r, took):
                        key = tree[leaves + slot]
                        break
                    continue
                work = took
                spent[up, 1] += took
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
                        lend(host, slot, head)
                else:
                    rs[r, R_FREE] += 1
                    rs[r, R_FREE_AT] = t
            elif op == SLEEP:
                rs[instance(ops[up, OF], ops[up, OF + 1], acc, shard, row), R_SLEEPERS] += 1
            elif op == COALESCE:
                if row >= 0 and uniform < 0 and flags[row] & TRACKED:
                    if t > now:
                        key = (t << slot_bits) | slot
                        break
                    g = granule[row]
                    if present_at[g] != NEVER:
                        if ops[up, COALESCE_SKIPS]:
                            pc = np.int64(PC_ENDED)
                            continue
                        mark_found(files.found, row, JOINED if present_at[g] > t else THERE)
                        st[us, PC] = pc
                        st[us, DRAW] = draw_row
                        t, awake, key = join(machine, code, faults, granules, slot, row, t)
                        if not awake:
                            break
                        pc = np.int64(PC_NOTHING)
                        continue
                    mark_found(files.found, row, ASKED)
                    present_at[g] = INF
                    joined[g] = -1
            elif op == ARRIVE:
                if row < 0:  # the end of the recording
                    ac[ua, S_END] = t - ac[ua, A_TAIL]
                    break
                kind = ac[ua, A_KIND]
                c = np.int64(cls[row])
                is_window_class = c == PATH_WINDOW
                if window[NOW_END] > t >= window[NOW_BEGIN]:
                    waits = waits_for(window, kind, access[row], acc < opened)
                    if waits == STOPPED:  # the accessor does not run; its access comes after
                        t = window[NOW_END]
                        st[us, SINCE] = t
                        continue
                    if waits:
                        if cpus:
                            rest(host, slot, now)
                        spent[up, 0] += window[NOW_END] - t
                        t = window[NOW_END]
                        if not is_window_class:
                            continue  # looks again when the window is over
                        is_window_class = False
                if acc >= opened:
                    ac[ua, A_NEXT] = row + 1
                pc = np.int64(PC_NOTHING) if is_window_class else path_pc[c, kind]  # none where its window is not there
                if flags[row] & TRACKED:
                    g = granule[row]
                    if present_at[g] != NEVER and present_at[g] <= t:
                        pc = np.int64(PC_NOTHING)
                        mark_found(files.found, row, THERE)
                        if kind == 0 and stage2_epoch[g] != epoch[0]:
                            stage2_epoch[g] = epoch[0]
                            pc = path_pc[PATH_PRESENT, kind]
                continue
            elif op == READ:
                if row >= 0:
                    r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                    work, waited = read_pages(rs, files, ops[up], r, row, t, took)
                    spent[up, 0] += waited
                    spent[up, 1] += work - waited
                if work == 0:
                    pc = ops[up, READ_HIT]
                    continue
            elif op == AROUND:
                if row >= 0:
                    work = place_around(files, present_at, ops[up], row, t, took)
                    spent[up, 1] += work
            elif op == DELAY_TIMES:
                r = instance(ops[up, OF], ops[up, OF + 1], acc, shard, row)
                count = counted(rs, r, ops[up, TIMES_WHAT], t)
                work = min(took, time_limit) * min(count, ops[up, TIMES_MOST])
                if ops[up, TIMES_HELD]:  # the lock that comes next is held longer
                    longer = work
                    work = np.int64(0)
                else:
                    spent[up, 1] += work
            elif op == RECORDED or op == CPU_RECORDED:  # noqa: SIM109, PLR1714
                if row >= 0 and recorded.size:
                    work = np.int64(max(recorded[row], 0))
                    spent[up, 0] += work
            elif op == RETRY:
                if st[us, TRY] < ops[up, RETRY_MOST] and in_vain(ops, up, seed, draw_row):
                    st[us, TRY] += 1
                    retries += 1
                    draw_row += np.int64(1) << 40
                    word = np.int64(NO_WORD)
                    pc = ops[up, RETRY_TARGET]
                    continue
            elif op == UNLESS:
                if not applies(ops[up, UNLESS_MASK], row, access, ac[ua, A_KIND]):
                    pc = ops[up, UNLESS_TARGET]
                    continue
            elif op == COMPLETE and row >= 0 and out_latency.size:
                out_latency[row] = t - st[us, SINCE]
            pc += 1
            if not cpus:
                t += work
            elif ops[up, ASLEEP] and work >= ops[up, ASLEEP]:
                rest(host, slot, now)
                t += work
            elif work > 0:
                key = want(host, slot, now, work, 0)
                break
        park(st, us, pc, t, row, draw_row)
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
