"""What was observed of a host's costs, of one trace or of several together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int64]
MIN_SAMPLES: Final = 30
"""A cost with fewer is not fitted."""


@dataclass(frozen=True)
class Observed:
    """Samples of costs, and the placing ioctls with the sleepers that were there (their slope is a cost too)."""

    samples: Mapping[str, Samples]
    placing_ns: Samples
    sleepers: Samples
    on_idle_cpu: Mapping[str, Samples] = field(default_factory=dict)
    """of woken threads whose CPU was idle"""
    on_busy_cpu: Mapping[str, Samples] = field(default_factory=dict)
    """of woken threads from the moment that the CPU of another accessor or handler was theirs"""
    uncharged: Mapping[str, int] = field(default_factory=dict)
    """key of `UNCHARGED` -> how many faults"""
    preempted: int = 0
    """faults left out because a thread was preempted in them"""
    at_most_ns: Mapping[str, int] = field(default_factory=dict)
    """cost that no fault shows by itself -> what it cannot exceed, or faults would have waited that did not"""

    @classmethod
    def together(cls, parts: Sequence[Observed]) -> Observed:
        """What several traces show."""
        empty = np.empty(0, np.int64)

        def joined(tables: Sequence[Mapping[str, Samples]]) -> dict[str, Samples]:
            names = dict.fromkeys(name for table in tables for name in table)
            return {name: np.concatenate([table.get(name, empty) for table in tables]) for name in names}

        return cls(
            joined([part.samples for part in parts]),
            np.concatenate([empty, *(part.placing_ns for part in parts)]),
            np.concatenate([empty, *(part.sleepers for part in parts)]),
            joined([part.on_idle_cpu for part in parts]),
            joined([part.on_busy_cpu for part in parts]),
            dict(sum((Counter(part.uncharged) for part in parts), Counter[str]())),
            sum(part.preempted for part in parts),
        )

    def by_cpu_alone(self) -> Observed:
        """Only what woken threads paid on idle and on busy CPUs: all that holds of a run that waited for CPUs."""
        empty = np.empty(0, np.int64)
        return Observed({}, empty, empty, self.on_idle_cpu, self.on_busy_cpu, self.uncharged, self.preempted)

    def without(self, costs: Collection[str]) -> Observed:
        """The rest of the costs."""
        return replace(self, samples={name: values for name, values in self.samples.items() if name not in costs})
