"""Userfaultfd messages, and which thread waits for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faultreplay.faulttrace.schema import UFFD_EVENT_PAGEFAULT, Kind
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Ids, rank_within, take
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

    def pick(self, rows: I64) -> Messages:
        """The messages of these rows."""
        return Messages(**{name: values[rows] for name, values in self.__dict__.items()})


def read_messages(context: Context, tally: Tally) -> tuple[Messages, I64]:
    """All page-fault messages; and for each placement the number of its userfaultfd (`Messages.space`)."""
    rows = context.events.of(Kind.UFFD_MSG)
    is_fault = rows.ip == np.uint64(UFFD_EVENT_PAGEFAULT)
    chosen = np.flatnonzero(is_fault)
    new = rows.ts_ns >= context.told_messages_ns
    tally.note("messages", None, rows.ts_ns, new & is_fault)
    tally.note("messages_other", None, rows.ts_ns, new & ~is_fault)
    thread = np.where(rows.value[chosen] > 0, context.events.threads.of(rows.value[chosen]), -1)
    owner = np.where(thread >= 0, take(context.tgid_of, thread, 0), rows.tgid[chosen])
    placements = context.placements
    # One number for each userfaultfd: its reader's process and descriptor.
    tgid = np.concatenate([rows.tgid[chosen], placements.tgid])
    fd = np.concatenate([rows.fd[chosen], placements.fd])
    pair = tgid << 32 | (fd & 0xFFFFFFFF)
    number = Ids(pair).of(pair)
    messages = Messages(
        read_ns=rows.ts_ns[chosen],
        handler=rows.thread[chosen],
        handler_tid=rows.tid[chosen],
        space=number[: len(chosen)],
        page=context.memory.page(owner, rows.addr[chosen]),
        flags=rows.code[chosen].astype(np.int64),
        named_tid=rows.value[chosen],
        thread=thread,
    )
    spaces = number[len(chosen) :]
    _find_threads(context, messages, spaces, tally)
    return messages, spaces


def _find_threads(context: Context, messages: Messages, spaces: I64, tally: Tally) -> None:
    """Find the waiter of messages without one (no UFFD_FEATURE_THREAD_ID): by page, then by who was woken."""
    nameless = np.flatnonzero(messages.thread < 0)
    nameless_ns = messages.read_ns[nameless]
    tally.note("messages_without_thread", None, nameless_ns, nameless_ns >= context.told_messages_ns)
    if not len(nameless):
        return
    placements, faults = context.placements, context.page_faults
    page, read_ns = messages.page[nameless], messages.read_ns[nameless]
    placed_by = placements.first_covering(placements.wakes, spaces, messages.space[nameless], page, read_ns)

    # The kernel hands messages out first come, first served. So, between two placements of a page, the n-th message
    # is the n-th page fault on it.
    pages = Ids(page)
    candidates = np.flatnonzero(pages.of(faults.page) >= 0)
    anywhere = np.zeros(len(spaces), np.int64)
    generation = placements.first_covering(
        placements.wakes,
        anywhere,
        np.zeros(len(candidates), np.int64),
        faults.page[candidates],
        faults.rows.ts_ns[candidates],
    )
    slots = len(placements) + 1
    fault_ns = faults.rows.ts_ns[candidates]
    nth = _same_rank(
        pages.of(page) * slots + placed_by + 1,
        read_ns,
        pages.of(faults.page[candidates]) * slots + generation + 1,
        fault_ns,
    )
    nth = np.where(take(fault_ns, nth, NEVER) <= read_ns, nth, -1)
    messages.thread[nameless] = take(faults.rows.thread[candidates], nth, -1)

    left = np.flatnonzero((messages.thread[nameless] < 0) & (placed_by >= 0))
    wakes = context.wakes
    asleep = np.flatnonzero(wakes.sleep >= 0)
    out_ns = take(context.sleeps.out_ns, wakes.sleep[asleep], 0)
    nth = _same_rank(placed_by[left], read_ns[left], wakes.placement[asleep], out_ns)
    messages.thread[nameless[left]] = take(wakes.thread[asleep], nth, -1)


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
