"""When a thread was off the CPU, who woke it, and when it was inside KVM_RUN."""

from __future__ import annotations

from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, take

_ONE_SWITCH_NS: Final = 10_000
"""Out of one thread and in of the next are two events of one switch, so close together."""


class Sleeps:
    """Off-CPU intervals of all threads. A preempted thread (prev_state 0) is off the CPU but does not sleep."""

    def __init__(self, events: Events) -> None:
        rows = events.of(Kind.SCHED_OUT, Kind.SCHED_IN)
        order = np.lexsort((rows.ts_ns, rows.thread))  # stable: ties keep the order of the trace
        thread, ts_ns = rows.thread[order], rows.ts_ns[order]
        is_out = rows.kind[order] == Kind.SCHED_OUT
        out = np.flatnonzero(is_out)
        following = np.minimum(out + 1, len(order) - 1)
        # The next event of the same thread must be its switch-in; else that one was lost.
        paired = (following > out) & (thread[following] == thread[out]) & ~is_out[following]
        self.thread: I64 = thread[out]
        self.out_ns: I64 = ts_ns[out]
        self.in_ns: I64 = np.where(paired, ts_ns[following], NEVER)
        self.state: I64 = rows.code[order][out].astype(np.int64)
        self.voluntary: Bools = self.state != 0
        self.ran_before: I64 = np.where(paired, rows.value[order][following], -1).astype(np.int64)
        self.index = Index(events.axis, self.thread, self.out_ns)
        before = self.index.last_until(events.threads.of(self.ran_before), np.where(paired, self.in_ns, 0))
        together = np.abs(self.in_ns - take(self.out_ns, before, NEVER)) <= _ONE_SWITCH_NS
        self.preempts: Bools = (before >= 0) & together & (take(self.state, before, 1) == 0)
        spent = np.where(paired, self.in_ns - self.out_ns, 0)
        self._before: I64 = np.concatenate(([0], np.cumsum(spent)))[:-1]
        self._preempted_before: I64 = np.concatenate(([0], np.cumsum(np.where(self.voluntary, 0, spent))))[:-1]
        asleep = np.flatnonzero(self.voluntary)
        self._asleep = asleep
        self._asleep_index = Index(events.axis, self.thread[asleep], self.out_ns[asleep])

    def __len__(self) -> int:
        return len(self.out_ns)

    def covering(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """The sleep of `thread` that began by `until_ns` and was not over at `from_ns` (-1: none)."""
        row = take(self._asleep, self._asleep_index.last_until(thread, until_ns), -1)
        return np.where((row >= 0) & (take(self.in_ns, row, -1) >= from_ns), row, -1)

    def first_from(self, thread: I64, ts_ns: I64) -> I64:
        """The first sleep of `thread` that began at or after `ts_ns`."""
        return take(self._asleep, self._asleep_index.first_from(thread, ts_ns), -1)

    def last_until(self, thread: I64, ts_ns: I64) -> I64:
        """The last sleep of `thread` that began at or before `ts_ns`."""
        return take(self._asleep, self._asleep_index.last_until(thread, ts_ns), -1)

    def off_cpu_ns(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """Time off the CPU, asleep or preempted, within [from_ns, until_ns)."""
        return self._off_until(thread, until_ns, self._before) - self._off_until(thread, from_ns, self._before)

    def preempted_ns(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """Time off the CPU within [from_ns, until_ns) without having gone to sleep."""
        before = self._preempted_before
        return self._off_until(thread, until_ns, before) - self._off_until(thread, from_ns, before)

    def on_cpu_since(self, thread: I64, from_ns: I64, until_ns: I64) -> tuple[I64, I64, Bools]:
        """(time, who had the CPU before, whether that one was preempted) of each thread's last return from a sleep.

        Within [from_ns, until_ns]; (NEVER, -1, False): it was not asleep then. 0 in the second: the CPU was idle.
        """
        row = self.last_until(thread, until_ns)
        in_ns = take(self.in_ns, row, NEVER)
        seen = (in_ns >= from_ns) & (in_ns <= until_ns)
        before = np.where(seen, take(self.ran_before, row, -1), -1)
        return np.where(seen, in_ns, NEVER), before, seen & take(self.preempts, row, False)

    def _off_until(self, thread: I64, ts_ns: I64, before: I64) -> I64:
        row = self.index.last_until(thread, ts_ns)
        # Sleeps lie sorted by thread: a running total over all of them serves differences within one thread,
        # and from the thread's first interval on where there is none yet.
        none = row < 0
        first = self.index.first_from(thread, np.zeros(len(thread), np.int64))
        total = take(before, np.where(none, first, row), 0)
        current = np.minimum(ts_ns, take(self.in_ns, row, 0)) - take(self.out_ns, row, 0)
        lost = take(self.in_ns, row, 0) == NEVER
        other = take(self.voluntary, row, False) if before is self._preempted_before else False
        return total + np.where(none | lost | other, 0, current)


class Runs:
    """Which thread is inside KVM_RUN at a time.

    Where the calls were not recorded and the guest has no exits of its own (shadow paging), returns to userspace are
    those of kvm_userspace_exit, and the next page-table walk is the first that shows the guest again.
    """

    def __init__(self, events: Events) -> None:
        enter, left = events.of(Kind.KVM_RUN_ENTER), events.of(Kind.KVM_RUN_EXIT)
        self.told_threads: I64 = np.union1d(enter.thread, left.thread)
        """Threads whose calls were recorded."""
        walks, departures = events.of(Kind.KVM_MMU_WALK), events.of(Kind.KVM_USERSPACE_EXIT)
        with_exits = np.unique(events.of(Kind.KVM_EXIT).thread)
        departures = departures.pick(~np.isin(departures.thread, np.union1d(self.told_threads, with_exits)))
        self.untimed_threads: I64 = np.unique(departures.thread)
        """Threads of which only kvm_userspace_exit tells that they left: when they came back is not known."""
        by_place = Index.by_place(walks)
        back = by_place.first_from(departures.thread, departures.pos)
        first = by_place.first_from(self.untimed_threads, np.zeros(len(self.untimed_threads), np.int64))
        shown = np.unique(np.concatenate([back, first]))
        self.enter = enter.merged(walks.pick(shown[shown >= 0]))
        self.exit = left.merged(departures)
        self._enter = Index(events.axis, self.enter.thread, self.enter.ts_ns)
        self._exit = Index(events.axis, self.exit.thread, self.exit.ts_ns)
        self.threads: I64 = np.union1d(self.enter.thread, self.exit.thread)

    def inside(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether each thread is in KVM_RUN at each time."""
        last_in = take(self.enter.ts_ns, self._enter.last_until(thread, ts_ns), -1)
        last_out = take(self.exit.ts_ns, self._exit.last_until(thread, ts_ns), -1)
        after = self._exit.first_from(thread, ts_ns)
        # A run that was under way when recording began has only its exit, which knows how long it took.
        spanned = (after >= 0) & (take(self.exit.ts_ns - self.exit.dur_ns, after, NEVER) <= ts_ns)
        entered: Bools = last_in > last_out
        return entered | spanned

    def last_enter_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread last called KVM_RUN; 0 if that was before the recording."""
        return take(self.enter.ts_ns, self._enter.last_until(thread, ts_ns), 0)

    def next_enter_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread next calls KVM_RUN; NEVER if it does not."""
        return take(self.enter.ts_ns, self._enter.first_from(thread, ts_ns), NEVER)

    def next_exit_ns(self, thread: I64, ts_ns: I64) -> I64:
        """When each thread next returns from KVM_RUN; NEVER if it does not."""
        return take(self.exit.ts_ns, self._exit.first_from(thread, ts_ns), NEVER)
