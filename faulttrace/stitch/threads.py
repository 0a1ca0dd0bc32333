"""When a thread was off the CPU, who woke it, and when it was inside KVM_RUN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, last_and_since, take

_ONE_SWITCH_NS: Final = 10_000
"""Out of one thread and in of the next are two events of one switch, so close together."""
_COLUMNS: Final = (
    *("thread", "out_ns", "in_ns", "over_ns", "state"),
    *("ran_before", "preempts", "off_before", "preempted_before"),
)


@dataclass(frozen=True)
class KeptSleeps:
    """Off-CPU intervals that a stretch leaves to the next, and per thread all time off the CPU so far."""

    columns: dict[str, npt.NDArray[Any]]
    off_ns: I64
    preempted_ns: I64


class Sleeps:
    """Off-CPU intervals of all threads. A preempted thread (prev_state 0) is off the CPU but does not sleep."""

    def __init__(self, events: Events, before: KeptSleeps | None = None) -> None:
        count = len(events.threads)
        nothing = np.zeros(count, np.int64)
        self._off_ns, self._preempted_ns = (
            (nothing, nothing) if before is None else (before.off_ns, before.preempted_ns)
        )
        columns = self._paired(events)
        if before is not None:
            columns = {name: np.concatenate([before.columns[name], values]) for name, values in columns.items()}
        self._columns = columns
        self.thread: I64 = columns["thread"]
        self.out_ns: I64 = columns["out_ns"]
        self.in_ns: I64 = columns["in_ns"]
        """When it came back; NEVER: it is still off the CPU, or its switch-in was lost."""
        self.over_ns: I64 = columns["over_ns"]
        """By when it was back: its switch-in, or the next switch-out where that was lost; NEVER: neither was seen."""
        self.state: I64 = columns["state"]
        self.ran_before: I64 = columns["ran_before"]
        self.voluntary: Bools = self.state != 0
        self.index = Index(events.axis, self.thread, self.out_ns)
        asleep = np.flatnonzero(self.voluntary)
        self._asleep = asleep
        self._asleep_index = Index(events.axis, self.thread[asleep], self.out_ns[asleep])
        self.preempts: Bools = columns["preempts"]
        self._find_preempted(events, len(self.thread) - self._new)

    def __len__(self) -> int:
        return len(self.out_ns)

    def _paired(self, events: Events) -> dict[str, npt.NDArray[Any]]:
        rows = events.of(Kind.SCHED_OUT, Kind.SCHED_IN)
        order = np.argsort(rows.thread, kind="stable")  # within a thread in the order of the trace
        thread, ts_ns = rows.thread[order], rows.ts_ns[order]
        is_out = rows.kind[order] == Kind.SCHED_OUT
        out = np.flatnonzero(is_out)
        self._new = len(out)
        following = np.minimum(out + 1, len(order) - 1)
        # The next event of the same thread must be its switch-in; else that one was lost.
        paired = (following > out) & (thread[following] == thread[out]) & ~is_out[following]
        who = thread[out]
        in_ns = np.where(paired, ts_ns[following], NEVER)
        again = (following > out) & (thread[following] == thread[out])
        state = rows.code[order][out].astype(np.int64)
        spent = np.where(paired, in_ns - ts_ns[out], 0)
        unwilling = np.where(state != 0, 0, spent)
        last = np.ones(len(order), bool)
        last[:-1] = thread[1:] != thread[:-1]
        self._open_at: I64 = rows.at[order[last & is_out]]
        """Rows of the events of threads that are off the CPU when the stretch ends."""
        self._open: Bools = last[out]
        self.out_since_ns: I64 = np.full(len(self._off_ns), NEVER, np.int64)
        """Per thread since when it is off the CPU at the end of the stretch; NEVER: it is not."""
        self.out_since_ns[who[self._open]] = ts_ns[out[self._open]]
        return {
            "thread": who,
            "out_ns": ts_ns[out],
            "in_ns": in_ns,
            "over_ns": np.where(again, ts_ns[following], NEVER),
            "state": state,
            "ran_before": np.where(paired, rows.value[order][following], -1).astype(np.int64),
            "preempts": np.zeros(len(out), bool),
            "off_before": self._off_ns[who] + _total_before(who, spent),
            "preempted_before": self._preempted_ns[who] + _total_before(who, unwilling),
        }

    def _find_preempted(self, events: Events, first_new: int) -> None:
        """Which of the new intervals ended in a CPU that another thread was preempted from."""
        new = slice(first_new, None)
        in_ns = self.in_ns[new]
        paired = in_ns < NEVER
        before = self.index.last_until(events.threads.of(self.ran_before[new]), np.where(paired, in_ns, 0))
        together = np.abs(in_ns - take(self.out_ns, before, NEVER)) <= _ONE_SWITCH_NS
        self.preempts[new] = (before >= 0) & together & (take(self.state, before, 1) == 0)

    def keep(self, since_ns: I64, also: list[tuple[I64, I64]]) -> tuple[KeptSleeps, I64]:
        """What the next stretch needs: per thread what is since `since_ns` and the last before; and rows of events.

        Args:
            since_ns: per thread.
            also: (thread, time): the interval that began last at or before each of these stays as well.
        """
        first_new = len(self.thread) - self._new
        over = np.ones(len(self.thread), bool)
        over[first_new:] = ~self._open
        stays = np.zeros(len(self.thread), bool)
        stays[last_and_since(self.thread, self.out_ns, since_ns)] = True
        stays[self._asleep[last_and_since(self.thread[self._asleep], self.out_ns[self._asleep], since_ns)]] = True
        for thread, ts_ns in also:
            for row in (self.index.last_until(thread, ts_ns), self.last_until(thread, ts_ns)):
                stays[row[row >= 0]] = True
        stays &= over
        off_ns, preempted_ns = self._off_ns.copy(), self._preempted_ns.copy()
        new = np.flatnonzero(over[first_new:] & (self.in_ns[first_new:] < NEVER)) + first_new
        spent = self.in_ns[new] - self.out_ns[new]
        np.add.at(off_ns, self.thread[new], spent)
        np.add.at(preempted_ns, self.thread[new], np.where(self.voluntary[new], 0, spent))
        kept = {name: self._columns[name][stays] for name in _COLUMNS}
        return KeptSleeps(kept, off_ns, preempted_ns), self._open_at

    def covering(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """The sleep of `thread` that began by `until_ns` and was not over at `from_ns` (-1: none)."""
        row = take(self._asleep, self._asleep_index.last_until(thread, until_ns), -1)
        return np.where((row >= 0) & (take(self.over_ns, row, -1) >= from_ns), row, -1)

    def first_from(self, thread: I64, ts_ns: I64) -> I64:
        """The first sleep of `thread` that began at or after `ts_ns`."""
        return take(self._asleep, self._asleep_index.first_from(thread, ts_ns), -1)

    def last_until(self, thread: I64, ts_ns: I64) -> I64:
        """The last sleep of `thread` that began at or before `ts_ns`."""
        return take(self._asleep, self._asleep_index.last_until(thread, ts_ns), -1)

    def count(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """How many sleeps of each thread began within [from_ns, until_ns]."""
        return self._asleep_index.count(thread, from_ns, until_ns)

    def preempted_ns(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """Time off the CPU within [from_ns, until_ns) without having gone to sleep."""
        return self.preempted_until_ns(thread, until_ns) - self.preempted_until_ns(thread, from_ns)

    def on_cpu_since(self, thread: I64, from_ns: I64, until_ns: I64) -> tuple[I64, I64, Bools]:
        """(time, who had the CPU before, whether that one was preempted) of each thread's last return from a sleep.

        Within [from_ns, until_ns]; (NEVER, -1, False): it was not asleep then. 0 in the second: the CPU was idle.
        """
        row = self.last_until(thread, until_ns)
        in_ns = take(self.in_ns, row, NEVER)
        seen = (in_ns >= from_ns) & (in_ns <= until_ns)
        before = np.where(seen, take(self.ran_before, row, -1), -1)
        return np.where(seen, in_ns, NEVER), before, seen & take(self.preempts, row, False)

    def off_until_ns(self, thread: I64, ts_ns: I64) -> I64:
        """All time of each thread off the CPU before each time, since the recording began."""
        row = self.index.last_until(thread, ts_ns)
        return take(self._columns["off_before"], row, 0) + self._current_ns(row, ts_ns)

    def preempted_until_ns(self, thread: I64, ts_ns: I64) -> I64:
        """The part of it in which the thread had not gone to sleep."""
        row = self.index.last_until(thread, ts_ns)
        current = np.where(take(self.voluntary, row, False), 0, self._current_ns(row, ts_ns))
        return take(self._columns["preempted_before"], row, 0) + current

    def _current_ns(self, row: I64, ts_ns: I64) -> I64:
        """Of an interval, the part before each time; 0 where its end was lost."""
        in_ns = take(self.in_ns, row, NEVER)
        return np.where(in_ns == NEVER, 0, np.minimum(ts_ns, in_ns) - take(self.out_ns, row, 0))


def _total_before(thread: I64, amount: I64) -> I64:
    """Per row (rows of a thread lie together) the sum of the same thread's rows before it."""
    if not len(thread):
        return np.zeros(0, np.int64)
    before = np.cumsum(amount) - amount
    first = np.ones(len(thread), bool)
    first[1:] = thread[1:] != thread[:-1]
    begins = np.flatnonzero(first)
    sizes = np.diff(np.append(begins, len(thread)))
    return before - np.repeat(before[begins], sizes)


class Runs:
    """Which thread is inside KVM_RUN at a time.

    Where the calls were not recorded and the guest has no exits of its own (shadow paging), returns to userspace are
    those of kvm_userspace_exit, and the next page-table walk is the first that shows the guest again.
    """

    def __init__(self, events: Events) -> None:
        enter, left = events.of(Kind.KVM_RUN_ENTER), events.of(Kind.KVM_RUN_EXIT)
        self.told_threads: I64 = events.whole.told_runs
        """Threads whose calls were recorded."""
        walks, departures = events.of(Kind.KVM_MMU_WALK), events.of(Kind.KVM_USERSPACE_EXIT)
        self.untimed_threads: I64 = events.whole.untimed
        """Threads of which only kvm_userspace_exit tells that they left: when they came back is not known."""
        departures = departures.pick(np.isin(departures.thread, self.untimed_threads))
        # A call of such a thread is a walk that was shown to stand for it, in an earlier stretch.
        calls = walks.merged(enter.pick(np.isin(enter.thread, self.untimed_threads)))
        back = Index.by_place(calls).first_from(departures.thread, departures.pos)
        shown = np.isin(walks.thread, self.untimed_threads) & (
            walks.shown | (walks.pos == take(events.whole.fact("first_pos", Kind.KVM_MMU_WALK), walks.thread, -1))
        )
        shown |= np.isin(walks.at, calls.at[back[back >= 0]])
        self.shown = walks.pick(shown)
        """Walks that stand for a call of KVM_RUN."""
        self._coming: Bools = events.more(Kind.KVM_RUN_EXIT, Kind.KVM_USERSPACE_EXIT)
        self.enter = enter.merged(self.shown)
        self.exit = left.merged(departures)
        self._enter = Index(events.axis, self.enter.thread, self.enter.ts_ns)
        self._exit = Index(events.axis, self.exit.thread, self.exit.ts_ns)

    def inside(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether each thread is in KVM_RUN at each time."""
        last_in = take(self.enter.ts_ns, self._enter.last_until(thread, ts_ns), -1)
        last_out = take(self.exit.ts_ns, self._exit.last_until(thread, ts_ns), -1)
        after = self._exit.first_from(thread, ts_ns)
        # A run that was under way when recording began has only its exit, which knows how long it took.
        spanned = (after >= 0) & (take(self.exit.ts_ns - self.exit.dur_ns, after, NEVER) <= ts_ns)
        entered: Bools = last_in > last_out
        return entered | spanned

    def unsure(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether an event to come may show that each thread was in KVM_RUN at each time: a way out of it."""
        after = self._exit.first_from(thread, ts_ns)
        found: Bools = ~self.inside(thread, ts_ns) & (after < 0) & take(self._coming, thread, False)
        return found

    def last_enter_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread last called KVM_RUN; 0 if that was before the recording."""
        return take(self.enter.ts_ns, self._enter.last_until(thread, ts_ns), 0)

    def next_enter_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread next calls KVM_RUN; NEVER if it does not."""
        return take(self.enter.ts_ns, self._enter.first_from(thread, ts_ns), NEVER)

    def next_exit_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread next returns from KVM_RUN; NEVER if it does not."""
        return take(self.exit.ts_ns, self._exit.first_from(thread, ts_ns), NEVER)
