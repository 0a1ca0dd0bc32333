"""Stage-2 faults grouped into accesses: one that faults again and again with nothing mapped between has rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.stage2 import Stage2
from faultreplay.faulttrace.stitch.trips import Trips

_PAGE_BITS: Final = np.uint64(12)
RETRY_NS: Final = 1_000_000
"""A retried access faults at once; what ran longer in guest mode got past it, and came back to it."""


@dataclass(frozen=True)
class Accesses:
    """Faults grouped into accesses: rows of all faults, of the first and the last of each access, how many it has."""

    faults: Stage2
    trips: Trips
    rows: I64
    first: I64
    last: I64
    rounds: I64

    @classmethod
    def of(cls, faults: Stage2, trips: Trips, rows: I64, again: Bools) -> Accesses:
        """Of `rows` (by thread, in order); `again`: whether each is the same access as the one before it."""
        begins = np.flatnonzero(~again)
        ends = np.append(begins[1:], len(rows)) - 1
        return cls(faults, trips, rows, rows[begins], rows[ends], ends - begins + 1)

    def count(self, flags: Bools) -> I64:
        """How many of each access's faults are flagged (per fault, in the order of `rows`)."""
        begins = np.cumsum(self.rounds) - self.rounds
        return np.add.reduceat(flags.astype(np.int64), begins)


def is_retry(context: Context, faults: Stage2, trips: Trips, rows: I64) -> Bools:
    """Whether each of `rows` (by thread, in order) is the same access as the one before it, which did not get past."""
    guest = context.guest
    now, before = rows[1:], rows[:-1]
    ip = trips.ip
    page = faults.gpa >> _PAGE_BITS
    same = (faults.thread[now] == faults.thread[before]) & (ip[now] == ip[before]) & (ip[now] != 0)
    same_page = (page[now] == page[before]) & faults.known[now] & faults.known[before]
    # The fault right after the VMM's work is the same access's, also where a page is not known.
    same &= same_page | (trips.handed_over[before] & ~(faults.known[now] & faults.known[before]))
    # The guest went on elsewhere: an emulated instruction is behind it, though nothing was mapped.
    went_on_at = take(guest.entries.ip, trips.entry_row[before], 0)
    same &= (went_on_at == 0) | (went_on_at == ip[before])
    handed_over = trips.handed_over[before]
    since_pos = np.where(handed_over, trips.left_pos[before] + 1, faults.pos[before])
    left = trips.departures.index.first_from(faults.thread[before], since_pos)
    same &= take(trips.departures.pos, left, NEVER) > faults.pos[now]
    mapped = trips.mapped_from(faults.thread[before], faults.pos[before])
    same &= mapped > faults.pos[now]
    # Where new mappings are not recorded, the guest must not have been seen elsewhere either.
    tells = np.isin(
        faults.thread[now], context.events.whole.having(Kind.KVM_MMU_SET_SPTE, Kind.KVM_MMU_FAST_PAGE_FAULT)
    )
    run = same_place(context)
    there, here = trips.exit_row[before], trips.exit_row[now]
    stayed = (there >= 0) & (here >= 0) & (take(run, there, -1) == take(run, here, -2))
    same &= tells | stayed | handed_over
    entered_ns = np.where(trips.entry_row[before] >= 0, trips.entry_ns[before], faults.ts_ns[before])
    # The first exit after the VMM's work is the access again, however long the host kept the guest from running; an
    # interrupt's exit at the same instruction may come before it.
    at_once = handed_over & (here >= 0) & (stayed | (trips.next_exit_pos[before] == trips.open_pos[now]))
    same &= at_once | (trips.start_ns[now] - entered_ns < RETRY_NS)
    return np.append(np.zeros(1, bool), same)


def same_place(context: Context) -> I64:
    """Per exit a number that stays the same while a thread exits at one instruction."""
    exits = context.guest.exits
    order = np.lexsort((exits.pos, exits.thread))
    moved = np.ones(len(order), bool)
    thread, ip = exits.thread[order], exits.ip[order]
    moved[1:] = (thread[1:] != thread[:-1]) | (ip[1:] != ip[:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(moved)
    return number
