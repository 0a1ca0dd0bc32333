"""What a timeline holds: tracks in groups, slices that may hold slices, instants, and flows between slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Value = int | str


class Slice(NamedTuple):
    """Something that takes time, ns. `flows`: numbers that it shares with what came before or comes after it."""

    start_ns: int
    end_ns: int
    name: str
    category: str
    inner: Sequence[Slice] = ()
    """in order, within it, apart from each other"""
    flows: Sequence[int] = ()
    args: Sequence[tuple[str, Value]] = ()


class Instant(NamedTuple):
    """Something that takes none."""

    at_ns: int
    name: str
    category: str
    args: Sequence[tuple[str, Value]] = ()


@dataclass
class Track:
    """A line of the timeline, in `parent`; one of the kernel's threads or processes where `tid` or `pid` is not 0."""

    name: str
    parent: Track | None = None
    pid: int = 0
    tid: int = 0
    slices: list[Slice] = field(default_factory=list)
    """in order of their start; they must not overlap: see `spread_out`"""
    instants: list[Instant] = field(default_factory=list)


def spread_out(track: Track, slices: Iterable[Slice]) -> list[Track]:
    """Put `slices` on `track`; those that overlap go to further tracks of the same name, which are returned too."""
    lanes = [track]
    for one in sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)):
        for lane in lanes:
            if not lane.slices or lane.slices[-1].end_ns <= one.start_ns:
                break
        else:
            # A thread has one track; what does not fit on it stands below it.
            parent = track if track.tid else track.parent
            lane = Track(f"{track.name} ({len(lanes) + 1})", parent)
            lanes.append(lane)
        lane.slices.append(one)
    return lanes
