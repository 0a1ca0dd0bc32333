"""Where a stitch reads events from: frames in order of time, more than once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from faultreplay.faulttrace.limits import MAX_AT_ONCE, at_once
from faultreplay.faulttrace.schema import Kind

if TYPE_CHECKING:
    import polars as pl


class Source(Protocol):
    """Events of a trace in order of time, frame by frame."""

    rows: int
    """Events in it, of any kind."""

    def frames(
        self, columns: Sequence[str] | None = None, kinds: Iterable[Kind] | None = None
    ) -> Iterator[pl.DataFrame]:
        """The events of those kinds (all that a stitch reads when None), from the first on."""
        ...


class FrameSource:
    """Events that are in memory."""

    def __init__(self, frame: pl.DataFrame, kinds: Iterable[Kind]) -> None:
        self._frame = _of_kinds(frame, kinds)
        self.rows = len(self._frame)

    def frames(
        self, columns: Sequence[str] | None = None, kinds: Iterable[Kind] | None = None
    ) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        frame = self._frame if kinds is None else _of_kinds(self._frame, kinds)
        yield frame if columns is None else frame.select(columns)


def stretches(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[tuple[pl.DataFrame, bool]]:
    """The same events in frames of about `rows`, and whether each is the last one.

    Events of one time are never in two of them.

    Raises:
        IncompleteData: more events of one time than a host can have.
    """
    import polars as pl

    waiting: list[pl.DataFrame] = []
    held: pl.DataFrame | None = None
    for frame in frames:
        begin = 0
        while begin < len(frame):
            piece = frame.slice(begin, max(rows - sum(map(len, waiting)), 1))
            begin += len(piece)
            waiting.append(piece)
            if sum(map(len, waiting)) < rows:
                continue
            whole = pl.concat(waiting)
            cut = int(whole["ts_ns"].search_sorted(whole["ts_ns"][-1], side="left"))
            waiting = [whole.slice(cut)]
            if cut:
                if held is not None:
                    yield held, False
                held = whole.slice(0, cut)
            elif len(whole) > MAX_AT_ONCE:
                raise at_once("the trace", int(whole["ts_ns"][0]))
    rest = [held] if held is not None else []
    tail = pl.concat(waiting) if waiting else None
    if tail is not None and len(tail):
        rest.append(tail)
    for number, frame in enumerate(rest):
        yield frame, number == len(rest) - 1


def _of_kinds(frame: pl.DataFrame, kinds: Iterable[Kind]) -> pl.DataFrame:
    import polars as pl

    return frame.filter(pl.col("kind").is_in([int(kind) for kind in kinds]))
