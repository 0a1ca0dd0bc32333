"""Ceilings: when recording costs too much, whole probe groups are dropped, which is recorded in the trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from faultreplay.collect.backends.backend import Backend

ORDER = ("locks", "mm", "sched", "kvm", "faults")
"""Dropped in this order: first the group that joining events needs least."""

_WINDOW_NS = 500_000_000
_FIRST_CALM_NS = 10_000_000_000
_LEAST_SHARE = 0.05
_MAX_CALM_NS = 300_000_000_000


@dataclass(frozen=True)
class Limits:
    """Ceilings of a recording; None: none.

    Attributes:
        max_rate: events kept a second.
        max_cpu_percent: of one core, by the recorder's process.
    """

    max_rate: float | None = None
    max_cpu_percent: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is a ceiling."""
        return self.max_rate is not None or self.max_cpu_percent is not None


NO_LIMITS = Limits()


@dataclass
class Shedder:
    """Drops a group of probes for each interval above a ceiling; enables it again after a time below it, which doubles
    with each failure."""

    backend: Backend
    limits: Limits
    groups: tuple[str, ...]
    spans: list[dict[str, Any]] = field(default_factory=list)
    _shed: list[str] = field(default_factory=list)
    _last: tuple[int, int, int] | None = None
    _last_by_group: dict[str, int] = field(default_factory=dict)
    _calm_since_ns: int = 0
    _calm_ns: int = _FIRST_CALM_NS

    def step(self, now_ns: int, events: int, cpu_ns: int, by_group: Mapping[str, int]) -> None:
        """Look at the totals so far (events also by group); at most one group is dropped or enabled again."""
        if self._last is None:
            self._last, self._last_by_group = (now_ns, events, cpu_ns), dict(by_group)
            return
        then_ns, then_events, then_cpu_ns = self._last
        elapsed_ns = now_ns - then_ns
        if elapsed_ns < _WINDOW_NS:
            return
        fresh = {group: count - self._last_by_group.get(group, 0) for group, count in by_group.items()}
        self._last, self._last_by_group = (now_ns, events, cpu_ns), dict(by_group)
        rate = (events - then_events) / elapsed_ns * 1e9
        cpu_percent = (cpu_ns - then_cpu_ns) / elapsed_ns * 100
        reason = self._reason(rate, cpu_percent)
        if reason:
            self._more(now_ns, reason, fresh)
        elif self._shed and now_ns - self._calm_since_ns >= self._calm_ns:
            self._less(now_ns)

    def end(self, now_ns: int) -> None:
        """Close the intervals that are still open."""
        for span in self.spans:
            span.setdefault("end_ns", now_ns)

    @property
    def shed_now(self) -> tuple[str, ...]:
        """Groups that are dropped at present."""
        return tuple(self._shed)

    def _reason(self, rate: float, cpu_percent: float) -> str:
        limits = self.limits
        if limits.max_rate is not None and rate > limits.max_rate:
            return f"{rate:,.0f} events/s, ceiling {limits.max_rate:,.0f}"
        if limits.max_cpu_percent is not None and cpu_percent > limits.max_cpu_percent:
            return f"{cpu_percent:.0f} % of a core, ceiling {limits.max_cpu_percent:.0f} %"
        return ""

    def _more(self, now_ns: int, reason: str, fresh: Mapping[str, int]) -> None:
        self._calm_since_ns = now_ns
        left = [group for group in ORDER if group in self.groups and group not in self._shed]
        if not left:
            return
        # Dropping a group with hardly any events would not help.
        worth = sum(fresh.values()) * _LEAST_SHARE
        group = next((group for group in left if fresh.get(group, 0) > worth), left[0])
        if any(span["group"] == group for span in self.spans):  # it was taken back, and too early
            self._calm_ns = min(self._calm_ns * 2, _MAX_CALM_NS)
        self._shed.append(group)
        self.spans.append({"group": group, "start_ns": now_ns, "reason": reason})
        self.backend.shed(self._shed)

    def _less(self, now_ns: int) -> None:
        group = self._shed.pop()
        next(s for s in reversed(self.spans) if s["group"] == group)["end_ns"] = now_ns
        self._calm_since_ns = now_ns
        self.backend.shed(self._shed)
