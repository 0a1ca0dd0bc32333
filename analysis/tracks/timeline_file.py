"""A recording and replays of it in one file for Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faultreplay.analysis.tracks.recording import Recording
from faultreplay.analysis.tracks.replayed import replayed_tracks
from faultreplay.analysis.tracks.write import check_perfetto, write_tracks
from faultreplay.analysis.views.explain import situation

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace


def write_timeline(
    trace: Trace, output: Path, mechanisms: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> int:
    """Write `trace`, and its replay under each of `mechanisms`, to `output`; how many slices and instants.

    A fault's flow leads from its accessor to its handler and to its wake.

    Raises:
        MissingFeature: the package `perfetto` is not installed.
        UsageError: no such mechanism, or one that has no numbers for this trace.
        IncompleteData: nothing to replay.
    """
    from faultreplay.analysis.compare.opening import open_case
    from faultreplay.analysis.compare.predict import Setup

    step = progress or (lambda _: None)
    check_perfetto()
    step("reading the trace")
    tracks = Recording(trace).tracks()
    if mechanisms:
        case = open_case(trace, Setup())
        for number, name in enumerate(mechanisms, 1):
            step(f"replaying {name}")
            tracks += replayed_tracks(case, situation(case, name), number)
    step("writing")
    return write_tracks(tracks, output)
