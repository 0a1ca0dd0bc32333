"""What a recorder needs of a backend: probes attached, events in bulk, losses, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from faultreplay.collect.backends.probes import Probe as ProbeRow
from faultreplay.collect.backends.program import Available
from faultreplay.collect.backends.ring import Block
from faultreplay.collect.backends.tracefs import kprobe_format, read_format, tracefs_root
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.meta import Probe

Key = tuple[str, tuple[str, ...], int, Filter]
"""Backend's name, groups, ring size and filter: backends with the same key are interchangeable."""


@dataclass(frozen=True)
class Lost:
    """Events of one probe on one CPU (-1: not known) that were not kept since the last poll."""

    probe: str
    cpu: int
    count: int


class Backend(Protocol):
    """A way to run the probes."""

    name: str
    key: Key
    ring_bytes: int
    probes: list[Probe]
    why: str
    """Why this one was chosen, where that needs saying."""
    skew_ns: int
    """How late an event may come after one with a later time."""
    reusable: bool
    """Whether it can be paused and resumed for another recording."""

    def follow(self, tgid: int) -> None:
        """Make a process a target, with all its threads and file descriptors."""

    def refresh(self, tgid: int) -> None:
        """Look again at a target's threads and file descriptors."""

    def start(self) -> None:
        """Begin to record; targets may need to be known before."""

    def found(self) -> set[int]:
        """All targets, also those that the kernel side found."""

    def take_into(self, out: Block, at: int) -> int:
        """Put events that are ready into `out` from row `at` on; how many."""

    def poll_losses(self) -> list[Lost]:
        """Losses since the last call."""

    def helper_cpu_ns(self) -> int:
        """CPU time of a process that helps, without what it took to start."""

    def shed(self, groups: Sequence[str]) -> None:
        """Count the events of these groups as lost and keep none, until told otherwise."""

    def pause(self) -> None:
        """Keep nothing and count nothing from now on; what was recorded can still be read."""

    def resume(self) -> None:
        """Undo `pause`, with no target and nothing left of the recording before."""

    def free(self) -> None:
        """Detach all probes and give everything back to the kernel; nothing may be called after."""


def find_probes(rows: Sequence[ProbeRow]) -> tuple[list[Available], list[Probe]]:
    """What of `rows` this kernel has, and for the rest why not."""
    root = tracefs_root()
    available, missing = [], []
    for row in rows:
        if row.tracepoint.startswith("kprobe:"):
            function = kprobe_format(root, row.tracepoint.partition(":")[2], "vm_fault", ("address:8", "flags:4"))
            if isinstance(function, str):
                missing.append(Probe(row.tracepoint, row.groups[0], "off", function))
            else:
                available.append(Available(row, function))
            continue
        layout = read_format(root, row.tracepoint)
        if layout is None:
            missing.append(Probe(row.tracepoint, row.groups[0], "missing", "this kernel has no such tracepoint"))
            continue
        absent = [name for name in row.reads_of(layout.fields) if name not in layout.fields]
        if absent and row.by_hand:
            reason = f"this kernel's tracepoint has no field {absent[0]}"
            missing.append(Probe(row.tracepoint, row.groups[0], "missing", reason))
            continue
        note = f"this kernel's tracepoint has no {', '.join(absent)}: columns from it are 0" if absent else ""
        available.append(Available(row, layout, note))
    return available, missing
