"""Counts that stitchers note while they work, and which of them are final when a stretch ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from faultreplay.faulttrace.stitch.keys import I64, U64, Bools
from faultreplay.faulttrace.stitch.report import Repeat, StitchReport

_WORST: Final = 10
"""How many of the accesses that faulted most often are reported."""


@dataclass(frozen=True)
class _Note:
    """Amounts of one count, each with the event that it was noted at; `thread` None: they are final."""

    name: str
    key: str | int | None
    thread: I64 | None
    ts_ns: I64
    amount: I64


@dataclass(frozen=True)
class Repeats:
    """Accesses that faulted, one row each; `retries`: of `rounds`, those that were none of the VMM's doing."""

    thread: I64
    ts_ns: I64
    retries: I64
    vcpu: I64
    tid: I64
    ip: U64
    gpa: U64
    rounds: I64
    spurious: I64
    start_ns: I64
    duration_ns: I64
    ended: Bools

    def at(self, row: int) -> Repeat:
        """One of them."""
        return Repeat(
            vcpu=int(self.vcpu[row]),
            tid=int(self.tid[row]),
            ip=int(self.ip[row]),
            gpa=int(self.gpa[row]) & ~0xFFF,
            rounds=int(self.rounds[row]),
            spurious=int(self.spurious[row]),
            start_ns=int(self.start_ns[row]),
            duration_ns=int(self.duration_ns[row]),
            ended=bool(self.ended[row]),
        )


class Tally:
    """Counts noted of a trace; those of each stretch are added to the report when they are final."""

    def __init__(self) -> None:
        self.report = StitchReport()
        self._notes: list[_Note] = []
        self._repeats: list[Repeats] = []
        self._worst: list[tuple[int, int, int, Repeat]] = []

    def note(
        self, name: str, thread: I64 | None, ts_ns: I64, amount: I64 | Bools | None = None, key: str | int | None = None
    ) -> None:
        """Count under a field of `StitchReport` what each thread did at each time; `amount` of it, 1 where not given.

        `key` where the field counts by reason. With no `thread` it is final at once.
        """
        many = np.ones(len(ts_ns), np.int64) if amount is None else amount.astype(np.int64)
        self._notes.append(_Note(name, key, thread, ts_ns, many))

    def note_repeats(self, repeats: Repeats) -> None:
        """Accesses among which the worst of the trace may be."""
        self._repeats.append(repeats)

    def settle(self, until_ns: I64) -> None:
        """Add to the report what lies before each thread's `until_ns`, and forget the rest: it is noted again."""
        for note in self._notes:
            final = slice(None) if note.thread is None else note.ts_ns < until_ns[note.thread]
            total = int(note.amount[final].sum())
            if note.key is None:
                setattr(self.report, note.name, getattr(self.report, note.name) + total)
            elif total:
                counts = getattr(self.report, note.name)
                counts[note.key] = counts.get(note.key, 0) + total
        for noted in self._repeats:
            told = np.flatnonzero((noted.ts_ns < until_ns[noted.thread]) & (noted.retries > 0))
            self.report.repeated += len(told)
            self.report.retries += int(noted.retries[told].sum())
            told = told[np.lexsort((noted.start_ns[told], -noted.retries[told]))][:_WORST]
            self._worst += [
                (-int(noted.retries[row]), int(noted.start_ns[row]), int(noted.thread[row]), noted.at(row))
                for row in told.tolist()
            ]
        self._worst = sorted(self._worst, key=lambda one: one[:3])[:_WORST]
        self.report.worst_repeats = [one[3] for one in self._worst]
        self._notes, self._repeats = [], []
