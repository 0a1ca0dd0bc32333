"""Zaps of a trace by what caused them, a stretch at a time: what no event to come can change is counted at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import MIGRATE_REASONS, Kind, ZapCause
from faultreplay.faulttrace.stitch.columns import Rows
from faultreplay.faulttrace.stitch.keys import I64
from faultreplay.faulttrace.stitch.source import stretches
from faultreplay.faulttrace.stitch.zaps import ZAP_KINDS, Coming, Zaps

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

_STRETCH_ROWS: Final = 1 << 18
_MOST_TOLD: Final = 3
_FACTS: Final = ("ts_ns", "kind", "tid", "code", "addr")


@dataclass(frozen=True)
class ZapGroup:
    """Zaps of one cause by one kind of thread.

    Attributes:
        cause: label of a `ZapCause`.
        detail: why pages were migrated, where known.
        by: role of the thread (``vcpu``, ``vmm``, ``handler``), name of a kernel thread, or ``an outsider``: a thread
            of another process, or one that has ended.
        zaps: how many.
        size_bytes: of the ranges together; one range may be zapped again and again.
        tids: the threads, at most `_MOST_TOLD`.
        sizes: (bytes, how many) of the most frequent sizes, at most `_MOST_TOLD`.
        ranges: distinct ranges.
        most_often: how often the range was zapped that was zapped most.
    """

    cause: str
    detail: str
    by: str
    zaps: int
    size_bytes: int
    tids: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    ranges: int = 0
    most_often: int = 0


def zap_groups(trace: Trace) -> list[ZapGroup]:
    """All zaps of a trace by cause, the most frequent first."""
    source = trace.source(ZAP_KINDS)
    if not any(len(frame) for frame in source.frames(["ts_ns"], [Kind.KVM_UNMAP_HVA_RANGE])):
        return []
    return _grouped(source.frames, trace.meta, _STRETCH_ROWS)


def group_zaps(frame: pl.DataFrame, meta: Meta, *, rows: int = _STRETCH_ROWS) -> list[ZapGroup]:
    """Zaps by cause in raw events (columns of `EVENTS`, sorted by `ts_ns`), about `rows` of them at a time."""
    return _grouped(lambda _columns=None: iter([frame]), meta, rows)


def _grouped(frames: Callable[..., Iterator[pl.DataFrame]], meta: Meta, rows: int) -> list[ZapGroup]:
    import polars as pl

    coming = Coming(frames(_FACTS))
    kinds = pl.col("kind").is_in([int(kind) for kind in ZAP_KINDS])
    mine = kinds & pl.col("tid").is_in(coming.zapping)
    tally = _Tally()
    left: pl.DataFrame | None = None
    for frame, last in stretches((frame.filter(mine) for frame in frames()), rows):
        whole = frame if left is None else pl.concat([left, frame])
        zaps = Zaps(whole, meta)
        settled = np.ones(len(zaps.rows), bool) if last else zaps.settled(coming)
        tally.add(zaps, np.flatnonzero(settled))
        left = whole.filter(pl.Series(zaps.left(~settled)))
    return tally.groups()


class _Tally:
    """Counts by (cause, detail, thread's role)."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str], _Counts] = {}

    def add(self, zaps: Zaps, chosen: I64) -> None:
        """The chosen zaps, each once."""
        cause, reason = zaps.causes()
        zapped = zaps.rows.pick(chosen)
        by = [zaps.who(tgid, tid) for tgid, tid in zip(zapped.tgid.tolist(), zapped.tid.tolist(), strict=True)]
        rows: dict[tuple[str, str, str], list[int]] = {}
        told = zip(cause[chosen].tolist(), reason[chosen].tolist(), by, strict=True)
        for row, (number, why, who) in enumerate(told):
            known = ZapCause(number) is ZapCause.MIGRATION and 0 <= why < len(MIGRATE_REASONS)
            rows.setdefault((ZapCause(number).label, MIGRATE_REASONS[why] if known else "", who), []).append(row)
        for key, some in rows.items():
            self._groups.setdefault(key, _Counts()).add(zapped.pick(np.array(some, np.int64)))

    def groups(self) -> list[ZapGroup]:
        """The most frequent first; of those alike the earliest."""
        found = [(counts.first_ns, counts.group(key)) for key, counts in self._groups.items()]
        return [group for _, group in sorted(found, key=lambda one: (-one[1].zaps, one[0]))]


class _Counts:
    """Zaps of one group: distinct ranges with how often each, and when first."""

    def __init__(self) -> None:
        self._ranges: list[pl.DataFrame] = []
        self._merged_rows = 0
        self._tids: set[int] = set()
        self.first_ns = 0

    def add(self, zapped: Rows) -> None:
        """More of them."""
        import polars as pl

        first = int(zapped.ts_ns.min())
        self.first_ns = min(self.first_ns, first) if self._tids else first
        self._tids.update(np.unique(zapped.tid).tolist())
        columns = {"addr": zapped.addr, "size": zapped.size, "n": np.ones(len(zapped), np.int64)}
        self._ranges.append(pl.DataFrame(columns | {"first": zapped.ts_ns}))
        if sum(map(len, self._ranges)) > 2 * max(self._merged_rows, _STRETCH_ROWS):
            self._merge()

    def _merge(self) -> pl.DataFrame:
        whole = _counted(self._ranges, ("addr", "size"))
        self._ranges, self._merged_rows = [whole], len(whole)
        return whole

    def group(self, key: tuple[str, str, str]) -> ZapGroup:
        """What is told of them."""
        ranges = self._merge()
        sizes = _counted([ranges.drop("addr")], ("size",)).sort("n", "first", descending=[True, False])
        return ZapGroup(
            *key,
            zaps=int(ranges["n"].sum()),
            size_bytes=sum(size * count for size, count, _ in sizes.iter_rows()),
            tids=tuple(sorted(self._tids)[:_MOST_TOLD]),
            sizes=tuple((size, count) for size, count, _ in sizes.head(_MOST_TOLD).iter_rows()),
            ranges=len(ranges),
            most_often=int(ranges["n"].max()),  # type: ignore[arg-type]
        )


def _counted(frames: Iterable[pl.DataFrame], keys: tuple[str, ...]) -> pl.DataFrame:
    import polars as pl

    return pl.concat(frames).group_by(keys).agg(pl.col("n").sum(), pl.col("first").min())
