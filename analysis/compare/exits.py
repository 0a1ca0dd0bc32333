"""Guest exits by reason, as `perf kvm stat` counts them: how many, how long, in the kernel and in userspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from faultreplay.analysis.compare.inspection import Spread, spread
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.exits import exit_name
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.memory import Memory
from faultreplay.faulttrace.stitch.shed import ShedSpans
from faultreplay.faulttrace.stitch.trips import Departures

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

_USED: Final = (Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_USERSPACE_EXIT, Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT)


@dataclass(frozen=True)
class ExitGroup:
    """Exits of one reason.

    Attributes:
        vcpu: whose, as `vcpu 0` or `thread 4145`; `all`: of all vCPUs together.
        tid: its thread; 0 where there are several.
        reason: name of the exit reason.
        exits: how many.
        time: from kvm_exit to kvm_entry, of those that ended.
        share: part of the time of all exits of `vcpu`, 0 to 1.
        to_userspace: how many went on to userspace.
        userspace_ns: part of the time: from KVM's return to userspace until KVM_RUN was called again, or until the
            entry where the call was not recorded.
        unended: exits whose entry is not in the trace; their time is not counted.
    """

    vcpu: str
    tid: int
    reason: str
    exits: int
    time: Spread
    share: float
    to_userspace: int
    userspace_ns: int
    unended: int

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        known = self.time.n > 0
        return {
            "vcpu": self.vcpu,
            "tid": self.tid,
            "reason": self.reason,
            "exits": self.exits,
            "total_ns": self.time.total_ns if known else None,
            "share_percent": 100 * self.share if known else None,
            "p50_ns": self.time.p50_ns if known else None,
            "p99_ns": self.time.p99_ns if known else None,
            "max_ns": self.time.max_ns if known else None,
            "kernel_ns": self.time.total_ns - self.userspace_ns if known else None,
            "userspace_ns": self.userspace_ns if known else None,
            "to_userspace": self.to_userspace,
            "unended": self.unended,
        }


@dataclass(frozen=True)
class ExitStatistics:
    """All exits of a trace by reason: of all vCPUs, then of each where there are several; the longest first.

    `runs_told`: calls of KVM_RUN were recorded, so re-entry is no time in userspace.
    """

    groups: tuple[ExitGroup, ...]
    runs_told: bool
    doubled: int


def exit_statistics(trace: Trace) -> ExitStatistics:
    """Count the exits of a trace.

    Raises:
        IncompleteData: it has none.
    """
    events = Events(trace.events(kinds=list(_USED)))
    flavour = trace.meta.host.kvm_flavour
    memory = Memory(trace.meta, [events.of(Kind.KVM_SET_MEMSLOT)])
    context = Context(events, memory, ShedSpans(trace.meta.extra), flavour)
    exits = context.guest.exits
    if not len(exits):
        raise IncompleteData(f"{trace.path}: no kvm_exit in it: record kvm:kvm_exit, kvm_entry and kvm_userspace_exit")
    times = _Times(context)
    reasons = np.array(
        [exit_name(flavour, *pair) for pair in zip(exits.code.tolist(), exits.addr.tolist(), strict=True)]
    )
    people = np.unique(exits.thread)
    only = int(events.threads.values[people[0]]) if len(people) == 1 else 0
    groups = list(_groups(("all", only), np.ones(len(exits), bool), reasons, times))
    if len(people) > 1:
        names = _names(trace, context, people)
        for thread in sorted(people.tolist(), key=lambda one: names[one]):
            groups += _groups(names[thread][1:], exits.thread == thread, reasons, times)
    return ExitStatistics(tuple(groups), bool(len(context.runs.enter)), len(context.guest.doubled))


class _Times:
    """Per exit: time until the entry (-1: not seen), part of it in userspace, and whether it went there."""

    def __init__(self, context: Context) -> None:
        exits, entries = context.guest.exits, context.guest.entries
        thread, pos = exits.thread, exits.pos
        following = take(exits.pos, Index.by_place(exits).first_from(thread, pos + 1), NEVER)
        entry = Index.by_place(entries).first_from(thread, pos)
        entry = np.where(take(entries.pos, entry, NEVER) < following, entry, -1)
        entered = np.minimum(take(entries.pos, entry, NEVER), following)
        self.spent_ns: I64 = np.where(entry >= 0, take(entries.ts_ns, entry, 0) - exits.ts_ns, -1)
        departures = Departures(context)
        left = departures.index.first_from(thread, pos)
        self.left: Bools = take(departures.pos, left, NEVER) < entered
        calls = context.runs.enter
        call = Index.by_place(calls).first_from(thread, take(departures.pos, left, 0))
        called = self.left & (take(calls.pos, call, NEVER) < entered)
        back_ns = np.where(called, take(calls.ts_ns, call, 0), take(entries.ts_ns, entry, 0))
        away = self.left & (entry >= 0)
        self.away_ns: I64 = np.where(away, back_ns - take(departures.ts_ns, left, 0), 0)


def _groups(who: tuple[str, int], mine: Bools, reasons: Any, times: _Times) -> Iterator[ExitGroup]:
    all_ns = int(times.spent_ns[mine].clip(0).sum())
    found = []
    for reason in np.unique(reasons[mine]).tolist():
        chosen = mine & (reasons == reason)
        ended = chosen & (times.spent_ns >= 0)
        time = spread(times.spent_ns[ended])
        found.append(
            ExitGroup(
                *who, reason, int(chosen.sum()), time, time.total_ns / all_ns if all_ns else 0.0,
                int((chosen & times.left).sum()), int(times.away_ns[ended].sum()), int((chosen & ~ended).sum()),
            )
        )  # fmt: skip
    yield from sorted(found, key=lambda group: (-group.time.total_ns, -group.exits, group.reason))


def _names(trace: Trace, context: Context, people: I64) -> dict[int, tuple[int, str, int]]:
    """Thread -> (number of its vCPU or a greater one, name, thread id); with its process where two have one number."""
    told = {t.tid: t.vcpu for target in trace.meta.targets for t in target.threads if t.role == "vcpu"}
    tids = context.events.threads.values[people].tolist()
    numbers = [
        told[tid] if told.get(tid, -1) >= 0 else number
        for tid, number in zip(tids, context.events.vcpu_of(people).tolist(), strict=True)
    ]
    found = {}
    for thread, tid, number in zip(people.tolist(), tids, numbers, strict=True):
        shared = numbers.count(number) > 1
        name = f"vcpu {number} of {int(context.tgid_of[thread])}" if shared else f"vcpu {number}"
        found[thread] = (number, name, tid) if number >= 0 else (1 << 31, f"thread {tid}", tid)
    return found
