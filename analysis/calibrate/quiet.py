"""Whether the host was quiet while something was measured: other processes, stolen time, pressure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

OTHERS_PERCENT: Final = 10.0
"""CPU time that other processes may take, of all CPUs'; a recorder's own kernel work stays below it."""
STOLEN_PERCENT: Final = 1.0
"""CPU time that a hypervisor below may take away."""
PREEMPTED_PERCENT: Final = 10.0
"""Faults in which a thread may be preempted, where threads do not outnumber CPUs."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Conditions:
    """Other activity of a host over some span; None if its kernel does not report it."""

    others_percent: float
    """CPU time of other processes, of all CPUs' time"""
    stolen_percent: float
    waited_percent: float | None
    """share of the span in which some thread, ours too, waited for a CPU (pressure stall information)"""
    load: float
    """runnable threads in the minute before it began"""
    preempted_percent: float = 0.0
    """faults in which a thread was preempted"""

    @property
    def problems(self) -> tuple[str, ...]:
        """What spoils a measurement; empty on a quiet host."""
        found = []
        if self.others_percent > OTHERS_PERCENT:
            found.append(f"other processes took {self.others_percent:.0f} % of the CPUs")
        if self.stolen_percent > STOLEN_PERCENT:
            found.append(f"a hypervisor stole {self.stolen_percent:.1f} % of the CPUs")
        if self.preempted_percent > PREEMPTED_PERCENT:
            found.append(f"a thread was preempted in {self.preempted_percent:.0f} % of the faults")
        return tuple(found)

    def __str__(self) -> str:
        waited = "" if self.waited_percent is None else f", {self.waited_percent:.0f} % of the time somebody waited"
        return (
            f"others {self.others_percent:.1f} % of the CPUs, stolen {self.stolen_percent:.1f} %{waited}, load "
            f"{self.load:.2f} before, {self.preempted_percent:.1f} % of the faults preempted"
        )


def worst(several: Sequence[Conditions]) -> Conditions:
    """The worst of each."""
    waited = [c.waited_percent for c in several if c.waited_percent is not None]
    return Conditions(
        max(c.others_percent for c in several),
        max(c.stolen_percent for c in several),
        max(waited) if waited else None,
        max(c.load for c in several),
        max(c.preempted_percent for c in several),
    )


class Watch:
    """Looks at the host's counters when entered and when left. Children must have been waited for by then."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self.conditions: Conditions | None = None

    def __enter__(self) -> Watch:
        self._begin = _Counters.read(self._proc)
        self._load = os.getloadavg()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.conditions = _Counters.read(self._proc).since(self._begin, self._load)


@dataclass(frozen=True)
class _Counters:
    total: float
    """CPU time of all CPUs, seconds"""
    busy: float
    stolen: float
    ours: float
    waited: float | None
    clock: float

    @classmethod
    def read(cls, proc: Path) -> _Counters:
        # user nice system idle iowait irq softirq steal; guest time is in user already.
        fields = [int(x) / _TICKS for x in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        fields += [0.0] * (8 - len(fields))
        idle, stolen = fields[3] + fields[4], fields[7]
        times = os.times()
        try:
            some = re.search(r"^some .*total=(\d+)", (proc / "pressure" / "cpu").read_text(), re.MULTILINE)
        except OSError:
            some = None
        return cls(
            total=sum(fields),
            busy=sum(fields) - idle - stolen,
            stolen=stolen,
            ours=times.user + times.system + times.children_user + times.children_system,
            waited=int(some[1]) / 1e6 if some else None,
            clock=times.elapsed,
        )

    def since(self, before: _Counters, load: float) -> Conditions:
        total = max(self.total - before.total, 1 / _TICKS)
        others = self.busy - before.busy - (self.ours - before.ours)
        waited = None
        if self.waited is not None and before.waited is not None:
            waited = 100 * (self.waited - before.waited) / max(self.clock - before.clock, 1e-9)
        return Conditions(100 * max(others, 0) / total, 100 * (self.stolen - before.stolen) / total, waited, load)
