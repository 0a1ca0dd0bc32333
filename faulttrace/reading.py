"""Raw events of a trace, read in time order without holding all of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from faultreplay.faulttrace.belonging import Part
from faultreplay.faulttrace.files import begin_ns, read_groups
from faultreplay.faulttrace.limits import MAX_AT_ONCE, at_once
from faultreplay.faulttrace.schema import EVENTS, Kind

if TYPE_CHECKING:
    import polars as pl


class PartsSource:
    """Events of some kinds in the parts of a trace."""

    def __init__(self, parts: Sequence[Part], kinds: Iterable[Kind] | None, check: Callable[[str], None]) -> None:
        """Events of these `kinds` (None: all).

        `check` is called with the name of each part before it is read, and raises if the part was changed.
        """
        self._parts = parts
        self._kinds = None if kinds is None else frozenset(kinds)
        self._check = check
        self.rows = sum(part.rows for part in parts)

    def frames(
        self, columns: Sequence[str] | None = None, kinds: Iterable[Kind] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Frames sorted by `ts_ns`, one after the other; ties keep the order they were written in.

        Args:
            columns: only these; `ts_ns` and `kind` are always included.
            kinds: only these.

        Raises:
            IncompleteData: a part is damaged.
        """
        import polars as pl

        chosen = self._kinds if kinds is None else frozenset(kinds) & (self._kinds or frozenset(Kind))
        wanted = None if columns is None else list(dict.fromkeys(["ts_ns", "kind", *columns]))
        begins = [begin_ns(part.path) for part in self._parts]
        waiting: pl.DataFrame | None = None
        for number, part in enumerate(self._parts):
            self._check(part.name)
            border_ns = min(begins[number + 1 :], default=None)
            for table in read_groups(part.path, EVENTS, wanted, None if chosen is None else sorted(chosen)):
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)
                whole = frame if waiting is None or not len(waiting) else pl.concat([waiting, frame])
                if not whole["ts_ns"].is_sorted():
                    whole = whole.sort("ts_ns", maintain_order=True)
                # A later part, or a later group of this one, may begin before this group ends.
                end_ns = int(table["ts_ns"][-1].as_py()) if len(table) else border_ns
                limit_ns = end_ns if border_ns is None else min(border_ns, end_ns if end_ns is not None else border_ns)
                ready = len(whole) if limit_ns is None else int(whole["ts_ns"].search_sorted(limit_ns, side="left"))
                waiting = whole.slice(ready)
                if len(waiting) > MAX_AT_ONCE and waiting["ts_ns"][MAX_AT_ONCE] == waiting["ts_ns"][0]:
                    raise at_once(part.path, int(waiting["ts_ns"][0]))
                if ready:
                    yield whole.slice(0, ready)
        if waiting is not None and len(waiting):
            yield waiting
