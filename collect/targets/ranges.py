"""Address ranges of the recorded VMs: only the addresses show whose memory a kernel thread zapped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

Range = tuple[int, int]
"""First address, and the first behind it."""


@dataclass
class VmRanges:
    """Mappings of the processes that hold a VM."""

    _of: dict[int, list[Range]] = field(default_factory=dict)

    def set(self, tgid: int, mapped: list[Range]) -> None:
        """What is mapped in a process now."""
        self._of[tgid] = merged(mapped)

    def add(self, tgid: int, start: int, end: int) -> None:
        """One more memory slot."""
        self._of[tgid] = merged([*self._of.get(tgid, []), (start, end)])

    def clear(self) -> None:
        """Forget all."""
        self._of.clear()

    def owner(self, start: int, end: int) -> int:
        """The process whose memory overlaps this range; 0: none of them."""
        for tgid, mapped in self._of.items():
            if any(start < there_end and there < end for there, there_end in mapped):
                return tgid
        return 0

    def at_most(self, limit: int) -> list[tuple[int, int, int]]:
        """All of it as `limit` (start, end, process) or fewer: the narrowest gaps are taken in where there are more."""
        whole = [(start, end, tgid) for tgid, mapped in self._of.items() for start, end in mapped]
        whole.sort(key=lambda r: (r[2], r[0]))
        while len(whole) > limit:
            gaps = [
                (later[0] - before[1], i)
                for i, (before, later) in enumerate(itertools.pairwise(whole))
                if before[2] == later[2]
            ]
            if not gaps:
                return whole[:limit]
            closed = {i for _, i in sorted(gaps)[: len(whole) - limit]}
            kept: list[tuple[int, int, int]] = []
            for i, (start, end, tgid) in enumerate(whole):
                if i - 1 in closed:
                    kept[-1] = (kept[-1][0], end, tgid)
                else:
                    kept.append((start, end, tgid))
            whole = kept
        return whole


def merged(ranges: list[Range]) -> list[Range]:
    """The same addresses in order, touching ranges made one."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out
