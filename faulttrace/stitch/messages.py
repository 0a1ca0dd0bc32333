"""Userfaultfd messages, and which thread waits for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faultreplay.faulttrace.schema import UFFD_EVENT_PAGEFAULT, Kind
from faultreplay.faulttrace.stitch.asked import space_of
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, Ids, rank_within, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.tally import Tally


@dataclass
class Messages:
    """Page-fault messages in the order of reading, with the thread that waits (-1: not found)."""

    read_ns: I64
    handler: I64
    handler_tid: I64
    space: I64
    page: U64
    flags: I64
    named_tid: I64
    """The thread id in the message, 0 without UFFD_FEATURE_THREAD_ID; in the waiter's own PID namespace."""
    thread: I64
    at: I64
    """Rows of the events."""
    nameless: Bools
    """No thread id in it, or one that was not recorded."""
    settled: Bools
    """Where the thread was not found: it will not be."""
    placements_coming: Bools
    """Ioctls on its page end after this stretch."""

    def pick(self, rows: I64) -> Messages:
        """The messages of these rows."""
        return Messages(**{name: values[rows] for name, values in self.__dict__.items()})


def read_messages(context: Context, tally: Tally) -> tuple[Messages, I64]:
    """All page-fault messages; and for each placement the number of its userfaultfd (`Messages.space`)."""
    rows = context.events.of(Kind.UFFD_MSG)
    is_fault = rows.ip == np.uint64(UFFD_EVENT_PAGEFAULT)
    chosen = np.flatnonzero(is_fault)
    # Only page-fault messages whose fault is not final are read a second time.
    tally.note("messages_other", None, rows.ts_ns, ~is_fault)
    thread = np.where(rows.value[chosen] > 0, context.events.threads.of(rows.value[chosen]), -1)
    found_before = rows.shown[chosen]
    owner = np.where((thread >= 0) & ~found_before, take(context.tgid_of, thread, 0), rows.tgid[chosen])
    placements = context.placements
    # One number for each userfaultfd: its reader's process and descriptor.
    tgid = np.concatenate([rows.tgid[chosen], placements.tgid])
    fd = np.concatenate([rows.fd[chosen], placements.fd])
    pair = space_of(tgid, fd)
    number = Ids(pair).of(pair)
    page = context.memory.page(owner, rows.addr[chosen])
    messages = Messages(
        read_ns=rows.ts_ns[chosen],
        handler=rows.thread[chosen],
        handler_tid=rows.tid[chosen],
        space=number[: len(chosen)],
        page=page,
        flags=rows.code[chosen].astype(np.int64),
        named_tid=rows.value[chosen],
        thread=thread,
        at=rows.at[chosen],
        nameless=found_before | (thread < 0),
        settled=np.ones(len(chosen), bool),
        placements_coming=_placements_coming(context, page),
    )
    spaces = number[len(chosen) :]
    _find_threads(context, messages, spaces)
    note_messages(tally, "messages", messages)
    note_messages(tally, "messages_without_thread", messages, messages.nameless)
    return messages, spaces


def _placements_coming(context: Context, page: U64) -> Bools:
    if context.last or context.asked is None:
        return np.zeros(len(page), bool)
    return context.asked.last_placed_ns(page) > context.events.until_ns


def note_messages(
    tally: Tally, name: str, messages: Messages, chosen: Bools | None = None, key: str | None = None
) -> None:
    """Count `chosen` messages: each with what its thread did when it was read, or when its thread will not be found."""
    chosen = np.ones(len(messages.read_ns), bool) if chosen is None else chosen
    known = messages.thread >= 0
    tally.note(name, messages.thread[known], messages.read_ns[known], chosen[known], key)
    tally.note(name, None, messages.read_ns[~known], (chosen & messages.settled)[~known], key)


def _find_threads(context: Context, messages: Messages, spaces: I64) -> None:
    """Find the waiter of messages without one (no UFFD_FEATURE_THREAD_ID): by page, then by who was woken."""
    nameless = np.flatnonzero(messages.thread < 0)
    if not len(nameless):
        return
    placements, faults = context.placements, context.page_faults
    page, read_ns = messages.page[nameless], messages.read_ns[nameless]
    placed_by = placements.first_covering(placements.wakes, spaces, messages.space[nameless], page, read_ns)

    # The kernel returns messages in the order in which they were queued. So, between two placements of a page, the
    # n-th message is the n-th page fault on it.
    pages = Ids(page)
    candidates = np.flatnonzero((pages.of(faults.page) >= 0) & context.untold(faults.rows.thread, faults.rows.ts_ns))
    anywhere = np.zeros(len(spaces), np.int64)
    generation = placements.first_covering(
        placements.wakes,
        anywhere,
        np.zeros(len(candidates), np.int64),
        faults.page[candidates],
        faults.rows.ts_ns[candidates],
    )
    # A thread that went on and on before the page came did not wait for it.
    over_ns = context.horizon.after(faults.rows.thread[candidates], faults.rows.ts_ns[candidates])
    waits = over_ns >= take(placements.end_ns, generation, NEVER)
    candidates, generation = candidates[waits], generation[waits]
    fault_ns = faults.rows.ts_ns[candidates]
    closed = (placed_by >= 0) | context.last
    slots = len(placements) + 1
    nth = _same_rank(
        (pages.of(page) * slots + placed_by + 1)[closed],
        read_ns[closed],
        pages.of(faults.page[candidates]) * slots + generation + 1,
        fault_ns,
    )
    nth = np.where(take(fault_ns, nth, NEVER) <= read_ns[closed], nth, -1)
    messages.thread[nameless[closed]] = take(faults.rows.thread[candidates], nth, -1)

    left = np.flatnonzero((messages.thread[nameless] < 0) & (placed_by >= 0))
    wakes = context.wakes
    asleep = np.flatnonzero(wakes.sleep >= 0)
    out_ns = take(context.sleeps.out_ns, wakes.sleep[asleep], 0)
    nth = _same_rank(placed_by[left], read_ns[left], wakes.placement[asleep], out_ns)
    messages.thread[nameless[left]] = take(wakes.thread[asleep], nth, -1)

    messages.settled[nameless] = closed
    # Who waits is not known: it may be any thread.
    waiting = read_ns[~closed & messages.placements_coming[nameless]]
    if len(waiting):
        everyone = np.arange(len(context.events.threads))
        context.open.note(everyone, np.full(len(everyone), waiting.min()))


def _same_rank(group: I64, order_by: I64, other_group: I64, other_order: I64) -> I64:
    """For the n-th row in its group, the row of the n-th of the others in the same group (-1: there are fewer)."""
    if not len(group) or not len(other_group):
        return np.full(len(group), -1, np.int64)
    deepest = max(len(group), len(other_group)) + 1
    groups = Ids(np.concatenate([group, other_group]))
    key = groups.of(group) * deepest + rank_within(group, order_by)
    other_key = groups.of(other_group) * deepest + rank_within(other_group, other_order)
    keys = Ids(other_key)
    row_of = np.zeros(len(keys), np.int64)
    row_of[keys.of(other_key)] = np.arange(len(other_key))
    return take(row_of, keys.of(key), -1)
