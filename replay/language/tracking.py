"""Which granules a replay of a mechanism must look up."""

from __future__ import annotations

from faultreplay.replay.language.mechanism import Mechanism


def tracks_pages(mechanism: Mechanism) -> bool:
    """True when it must be known which granules are there: some path coalesces, or a stream brings pages."""
    if brings_more(mechanism) or any(stage.verb == "coalesce" for path in mechanism.paths.values() for stage in path):
        return True
    return any(tracks_pages(other) for other in mechanism.fallback.values())


def brings_more(mechanism: Mechanism) -> bool:
    """True when any granule may come without a fault of its own: by a stream, or beside another one."""
    if mechanism.push is not None or mechanism.streams:
        return True
    if any(stage.verb == "around" for path in mechanism.paths.values() for stage in path):
        return True
    return any(brings_more(other) for other in mechanism.fallback.values())
