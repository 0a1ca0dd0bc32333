"""A recording from its beginning to its end: the duration, the targets and who asks decide when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.spec import RecordSpec, RecordStatus, RecordSummary

_STEP_S: Final = 0.1
_STATUS_S: Final = 0.5


def record(
    spec: RecordSpec,
    out: Path,
    stop: threading.Event | Callable[[], bool],
    on_status: Callable[[RecordStatus], None] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> RecordSummary:
    """Record until the duration is over, the targets have ended or `stop` says so.

    Args:
        spec: what to record.
        out: the trace to make.
        stop: an event, or a function that is asked ten times a second.
        on_status: called about twice a second, and once at the end.
        on_step: called with what is being done before recording begins, and after it ends.
    """
    asked = stop.is_set if isinstance(stop, threading.Event) else stop
    recorder = Recorder(spec, out, on_step)
    with recorder:
        last_ns, last_events, told_ns = recorder.start_ns, 0, 0
        while True:
            now_ns = time.monotonic_ns()
            reason = _reason_to_end(recorder, spec, asked, now_ns)
            if on_status is not None and (reason or now_ns - told_ns >= _STATUS_S * 1e9):
                events, _, _ = recorder.status()
                rate = (events - last_events) / max(now_ns - last_ns, 1) * 1e9
                on_status(recorder.moment(now_ns, rate))
                last_ns, last_events, told_ns = now_ns, events, now_ns
            if reason:
                recorder.ended_by(reason)
                break
            recorder.tick()
            if isinstance(stop, threading.Event):
                stop.wait(_STEP_S)
            else:
                time.sleep(_STEP_S)
    assert recorder.summary is not None
    return recorder.summary


def _reason_to_end(recorder: Recorder, spec: RecordSpec, asked: Callable[[], bool], now_ns: int) -> str:
    if asked():
        return "request"
    if recorder.own_end:
        return recorder.own_end
    if spec.duration_ns is not None and now_ns - recorder.start_ns >= spec.duration_ns:
        return "duration"
    return "targets ended" if recorder.targets_ended() else ""
