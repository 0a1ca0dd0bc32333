"""A replay as tracks: its accessors' stalls with their stages, and who had each handler, lock and link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.analysis.tracks.model import Slice, Track, Value, spread_out
from faultreplay.analysis.views.explain import fault_ids
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.workload.workload import ACCESS_CODES

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.views.explain import Situation
    from faultreplay.replay.engine.steps import Story, Use

FLOWS_EACH: Final = 1 << 40
"""Numbers of flows that one recording or replay may have."""
_ACCESS: Final = {code: name for name, code in ACCESS_CODES.items()}


def replayed_tracks(case: Case, how: Situation, number: int) -> list[Track]:
    """The tracks of one replay, beside the recording: its time 0 is when that began.

    Args:
        case: from `open_case`.
        how: the mechanism, as its row in `compare` is replayed.
        number: of the replay, from 1: so that flows of several are told apart.

    Raises:
        UsageError: it has more operations than can be followed.
    """
    story = how.story(0, 1 << 60)
    return _Tracks(case, how, story, number).tracks()


class _Tracks:
    def __init__(self, case: Case, how: Situation, story: Story, number: int) -> None:
        self._how, self._story = how, story
        self._base = how.workload.clock_start_ns
        self._ids = fault_ids(case, how.workload)
        self._flows = number * FLOWS_EACH
        self._group = Track(f"{how.name} (replayed)")

    def tracks(self) -> list[Track]:
        """The group, then what is in it."""
        return [self._group, *self._accessors(), *self._resources(), *self._windows()]

    def _flow(self, row: int) -> tuple[int, ...]:
        return (self._flows + row + 1,) if row >= 0 else ()

    def _accessors(self) -> list[Track]:
        work, result = self._how.workload, self._story.followed.result
        found: list[Track] = []
        for who, name in enumerate(work.accessor_name):
            first, beyond = int(work.accessor_start[who]), int(work.accessor_start[who + 1])
            ran = np.flatnonzero(result.start_ns[first:beyond] >= 0) + first
            slices = [self._fault(row) for row in ran.tolist()]
            found += spread_out(Track(name, self._group), slices)
        return found

    def _fault(self, row: int) -> Slice:
        work, result = self._how.workload, self._story.followed.result
        start = self._base + int(result.start_ns[row])
        inner = []
        for step in self._story.steps(row):
            at = self._base + step.at_ns
            flows = self._flow(row) if step.what == "wake" else ()
            inner.append(Slice(at, at + step.took_ns, step.what, "stage", (), flows, [("word", step.word)]))
        name = f"{CAUSES[int(work.cause[row])]} {_ACCESS[int(work.access[row])]}"
        args: list[tuple[str, Value]] = [("fault_id", int(self._ids[row])), ("row", row)]
        return Slice(start, start + int(result.stall_ns[row]), name, "fault", inner, self._flow(row), args)

    def _resources(self) -> list[Track]:
        """One track for each server, lock and link that was used."""
        end = self._story.followed.result.run_time_ns
        used: dict[int, list[Slice]] = {}
        for use in self._story.uses:
            if use.end_ns != use.begin_ns:
                used.setdefault(use.resource, []).append(self._use(use, end))
        found: list[Track] = []
        for resource, slices in sorted(used.items()):
            item = self._story.resource(resource)
            kind = {"servers": "", "lock": "lock ", "link": "link "}.get(item.kind, "")
            found += spread_out(Track(f"{kind}{self._story.label(resource)}", self._group), slices)
        return found

    def _use(self, use: Use, end_ns: int) -> Slice:
        serves = self._story.resource(use.resource).kind == "servers"
        name = f"fault of {self._how.workload.accessor_name[use.who]}"
        fault = int(self._ids[use.row]) if use.row >= 0 else -1
        until = use.end_ns if use.end_ns >= 0 else max(end_ns, use.begin_ns)
        flows = self._flow(use.row) if serves else ()
        category = "service" if serves else "held"
        return Slice(self._base + use.begin_ns, self._base + until, name, category, (), flows, [("fault_id", fault)])

    def _windows(self) -> list[Track]:
        spans = self._story.followed.result.windows
        slices = [Slice(self._base + begin, self._base + end, "window", "window") for begin, end in spans]
        return spread_out(Track("windows", self._group), slices) if slices else []
