"""Host CPUs once more: paths as Python generators over fair run queues. Slow, plain, and apart from the compiled code.

A path is a generator that yields what its thread does next: ``run`` and ``think`` on a CPU, ``sleep``, ``get`` and
``give`` a server, ``wake`` the accessor, ``join`` a fault of another and ``tell`` those that joined. The scheduler is
EEVDF as `docs/limitations.md` states it. Only closed loops.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

SLICE = 2_800_000
FIRM = 5_000
TAILS = 1 << 30
"""numbers of tails begin here, behind all accessors"""
Steps = Generator[tuple[Any, ...], None, None]


@dataclass(eq=False)
class Thread:
    """A thread of the host: what the scheduler knows of it."""

    queue: Queue
    ran: int = 0
    lag: int = 0
    deadline: int = 0
    slept: int = 0
    serves: bool = False
    """a handler's, which goes on with the next message by itself"""


@dataclass(eq=False)
class Flow:
    """A chain of steps that some thread carries out at any time."""

    steps: Steps
    thread: Thread
    number: int
    """of two at one instant the lower one comes first"""
    left: int = 0
    firm: bool = False
    since: int = 0
    timer: int = 0
    """the newest timer; older ones are void"""


@dataclass(eq=False)
class Queue:
    """One run queue and its CPUs."""

    cpus: int
    on: list[Flow | None] = field(default_factory=list)
    """who runs on each CPU"""
    waiting: list[Flow] = field(default_factory=list)
    """the newest last"""
    picked_v: int = 0
    picked_at: int = 0
    resched: bool = False

    def __post_init__(self) -> None:
        self.on = [None] * self.cpus

    @property
    def running(self) -> list[Flow]:
        """Who has a CPU."""
        return [flow for flow in self.on if flow]

    def swap(self, flow: Flow | None, other: Flow | None) -> None:
        """`other` has the CPU that `flow` had."""
        self.on[self.on.index(flow)] = other

    def members(self) -> list[Flow]:
        return self.running + self.waiting

    def v(self) -> int:
        """Mean runtime of all who run or want to."""
        runtimes = [flow.thread.ran for flow in self.members()]
        return sum(runtimes) // max(len(runtimes), 1)

    def next(self) -> Flow | None:
        """Of those that wait: the eligible one with the earliest deadline, else the one that ran least."""
        if not self.waiting:
            return None
        limit = self.v()
        fit = [flow for flow in self.waiting if flow.thread.ran <= limit]
        if fit:
            return min(fit, key=lambda flow: flow.thread.deadline)
        return min(reversed(self.waiting), key=lambda flow: flow.thread.ran)


class Host:
    """Run queues, pools of servers and a calendar."""

    def __init__(self, queues: list[Queue], preempt_ns: int = 0) -> None:
        self.queues, self.preempt = queues, preempt_ns
        self.now = 0
        self.order = 0
        self.calendar: list[tuple[int, int, int, Flow]] = []
        self.worked = 0
        self.free: dict[Any, int] = {}
        self.lines: dict[Any, list[Flow]] = {}
        self.numbers = itertools.count(TAILS)
        self.freed: list[int] = []
        """numbers of tails that are over, the newest last"""

    # ---- calendar
    def at(self, flow: Flow, time: int) -> None:
        self.order += 1
        flow.timer = self.order
        heapq.heappush(self.calendar, (time, flow.number, self.order, flow))

    def run(self) -> None:
        while self.calendar:
            time, _, timer, flow = heapq.heappop(self.calendar)
            if flow.timer != timer:
                continue
            assert time >= self.now
            self.now = time
            queue = flow.thread.queue
            if flow in queue.running:
                self.charge(queue)
                if flow.left > 0:
                    if not self.yields(flow):
                        self.stretch(flow)
                    continue
            self.go(flow)

    # ---- scheduler
    def charge(self, queue: Queue) -> None:
        for flow in queue.running:
            ran = self.now - flow.since
            flow.left -= ran
            flow.thread.ran += ran
            flow.since = self.now

    def stretch(self, flow: Flow) -> None:
        length = flow.left
        if not flow.firm:
            length = min(length, max(flow.thread.deadline - flow.thread.ran, 1))
        self.at(flow, self.now + length)

    def start(self, flow: Flow) -> None:
        queue = flow.thread.queue
        queue.swap(None, flow)
        flow.since = self.now
        self.stretch(flow)

    def leave(self, flow: Flow) -> None:
        queue, thread = flow.thread.queue, flow.thread
        self.charge(queue)
        v = queue.v()
        queue.picked_v, queue.picked_at = v, self.now
        thread.slept = self.now
        thread.lag = min(max(v - thread.ran, -2 * SLICE), 2 * SLICE)
        queue.swap(flow, None)
        flow.timer = 0

    def block(self, flow: Flow) -> None:
        """`flow` sleeps: its CPU goes to whoever is next."""
        queue = flow.thread.queue
        self.leave(flow)
        queue.resched = False
        if other := queue.next():
            queue.waiting.remove(other)
            self.start(other)

    def yields(self, flow: Flow) -> bool:
        queue, thread = flow.thread.queue, flow.thread
        queue.resched = False
        over = thread.ran >= thread.deadline
        if over:
            thread.deadline = thread.ran + SLICE
        other = queue.next()
        if other is None:
            return False
        if not (thread.ran > queue.v() or (over and other.thread.deadline <= thread.deadline)):
            return False
        self.leave(flow)
        queue.waiting.append(flow)
        queue.waiting.remove(other)
        self.start(other)
        return True

    def place(self, thread: Thread, others: int, before: int) -> None:
        queue = thread.queue
        if not others:
            thread.ran = queue.picked_v
        elif thread.lag >= 0:
            thread.ran = queue.v() - thread.lag * (others + 1) // others
        elif queue.picked_at > thread.slept and queue.picked_v >= thread.ran:
            thread.ran = queue.v()
        else:
            thread.ran = max(thread.ran, before)
        thread.deadline = thread.ran + SLICE

    def work(self, flow: Flow, ns: int, thinks: bool = False) -> None:
        """`flow` runs for `ns`, and continues then; it wakes if it does not run."""
        queue = flow.thread.queue
        self.worked += ns
        others, before = len(queue.members()), queue.v()
        self.charge(queue)
        flow.left, flow.firm = ns, not thinks and ns < FIRM
        if flow in queue.running:
            due = queue.resched or flow.thread.ran >= flow.thread.deadline
            if not (due and self.yields(flow)):
                self.stretch(flow)
            return
        self.place(flow.thread, others, before)
        if len(queue.running) < queue.cpus:
            self.start(flow)
            return
        queue.waiting.append(flow)
        v = queue.v()
        most = max(queue.running, key=lambda other: other.thread.ran)
        if most.thread.ran > v and queue.next() is flow:
            if most.firm or most.left <= 0:
                queue.resched = True
                return
            self.leave(most)
            queue.waiting.append(most)
            flow.left += self.preempt
            self.worked += self.preempt
            queue.waiting.remove(flow)
            self.start(flow)

    # ---- steps
    def go(self, flow: Flow) -> None:
        """Carry out steps until one takes time; then those of whoever this one set going."""
        ready = [flow]
        while ready:
            flow = ready.pop()
            while self.step(flow, ready):
                pass

    def step(self, flow: Flow, ready: list[Flow]) -> bool:  # noqa: PLR0911
        """One step of `flow`; whether the next one can follow at once."""
        verb, *given = next(flow.steps, ("end",))
        runs = flow in flow.thread.queue.running
        if verb in ("run", "think"):
            if given[0] > 0:
                self.work(flow, given[0], thinks=verb == "think")
            return bool(given[0] == 0)
        if verb == "cpu":  # woken, it goes on when it has one
            if not runs:
                self.work(flow, 0)
            return flow in flow.thread.queue.running and flow.left <= 0
        if verb == "get":
            return self.get(flow, *given)
        if verb == "give":
            self.give(flow, *given, ready)
            return True
        if verb == "wake":
            return self.wake(flow, *given, ready)
        if verb == "tell":
            self.tell(*given)
            return True
        if verb == "join":
            given[0].append((flow, given[1]))
        self.rest(flow)
        if verb == "sleep":
            self.at(flow, self.now + given[0])
        elif flow.number >= TAILS:
            self.freed.append(flow.number)
        return False

    def rest(self, flow: Flow) -> None:
        if flow in flow.thread.queue.running:
            self.block(flow)

    def get(self, flow: Flow, pool: Any, server: Thread | None = None, wake_ns: int = 0) -> bool:
        """A server of `pool`: with a thread of its own, which is woken in `wake_ns`, or without."""
        if self.free[pool] == 0:
            self.rest(flow)
            self.lines.setdefault(pool, []).append(flow)
            return False
        self.free[pool] -= 1
        if server is None:
            return True
        if flow in flow.thread.queue.running and flow.thread.queue is server.queue:
            self.hand_over(flow, server, wake_ns)
            return False
        self.rest(flow)
        flow.thread = server
        if wake_ns > 0:
            self.work(flow, wake_ns)
        return wake_ns == 0

    def hand_over(self, flow: Flow, server: Thread, ns: int) -> None:
        """The thread of `flow` wakes `server` on its own CPU and sleeps."""
        queue, sleeper = server.queue, flow.thread
        others, before = len(queue.members()), queue.v()
        self.charge(queue)
        self.place(server, others, before)
        v = (queue.v() * others + server.ran) // (others + 1)
        sleeper.lag = min(max(v - sleeper.ran, -2 * SLICE), 2 * SLICE)
        sleeper.slept = self.now
        queue.swap(flow, None)
        queue.picked_v, queue.picked_at, queue.resched = v, self.now, False
        self.worked += ns
        flow.thread, flow.left, flow.firm, flow.timer = server, ns, True, 0
        queue.waiting.append(flow)
        following = queue.next()
        assert following
        queue.waiting.remove(following)
        self.start(following)

    def give(self, flow: Flow, pool: Any, last: bool, ready: list[Flow]) -> None:
        """The next in line goes on; as this thread if that has nothing else to do."""
        line = self.lines.get(pool)
        if not line:
            self.free[pool] += 1
            return
        following = line.pop(0)
        ready.append(following)
        if last and flow.thread.serves:
            self.pass_on(flow, following)

    def pass_on(self, flow: Flow, other: Flow) -> None:
        """The thread of `flow`, with its CPU if it has one, carries out `other`."""
        other.thread = flow.thread
        if flow in flow.thread.queue.running:
            flow.thread.queue.swap(flow, other)
            other.since, other.left = flow.since, 0
            flow.timer = 0

    def tell(self, joined: list[tuple[Flow, Any]], ns: int, sleepers: dict[Any, int]) -> None:
        """Those that joined, the last one first, are woken: each has `ns` to do in its own thread."""
        for flow, queue in joined:
            if queue:
                sleepers[queue] -= 1
            self.work(flow, ns)

    def wake(self, flow: Flow, ns: int, thread: Thread, tail: Steps | None, ready: list[Flow]) -> bool:
        """The accessor's thread is woken in `ns` of its own work; `tail` goes on as the thread that did it."""
        if tail:
            other = Flow(tail, flow.thread, self.freed.pop() if self.freed else next(self.numbers))
            ready.append(other)
            self.pass_on(flow, other)
        if ns > 0 or flow.thread is not thread:
            self.rest(flow)
        flow.thread = thread
        if ns > 0:
            self.work(flow, ns)
        return ns == 0


Path = Callable[[int, Thread], Steps]
"""(accessor, its thread) -> the steps of one fault"""


@dataclass
class Replay:
    """A closed loop of `think` times through `path`; `pools`: servers of each."""

    think: list[list[int]]
    cpus: int
    pinned: bool
    preempt_ns: int = 0
    pools: dict[Any, int] = field(default_factory=dict)
    start: list[int] = field(default_factory=list)
    stall: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queues = [Queue(1) for _ in range(self.cpus)] if self.pinned else [Queue(self.cpus)]
        self.host = Host(self.queues, self.preempt_ns)

    def thread(self, number: int) -> Thread:
        """Thread `number` of the host: accessors first, then servers."""
        return Thread(self.queues[number % len(self.queues)])

    def run(self, path: Path) -> Replay:
        self.host.free = dict(self.pools)
        rows = [0, *itertools.accumulate(len(times) for times in self.think)]
        self.start, self.stall = [-1] * rows[-1], [-1] * rows[-1]
        flows = [Flow(self.accessor(n, rows[n], path), self.thread(n), n) for n in range(len(self.think))]
        self.flows = flows
        for flow in flows:
            self.host.at(flow, 0)
        self.host.run()
        return self

    def accessor(self, number: int, row: int, path: Path) -> Steps:
        for ns in self.think[number]:
            yield "think", ns
            self.start[row] = self.host.now
            yield from path(number, self.flows[number].thread)
            yield ("cpu",)
            self.stall[row] = self.host.now - self.start[row]
            row += 1
