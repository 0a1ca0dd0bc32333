"""Cut a piece out of a trace: a time interval, a subset of the vCPUs. Open faults at a cut are counted and reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Losses, Meta, WindowSpan
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace
from faultreplay.faulttrace.units import format_ns, parse_duration_ns

_STATE: Final = (
    Kind.KVM_SET_MEMSLOT, Kind.UFFD_API, Kind.UFFD_REGISTER, Kind.UFFD_UNREGISTER, Kind.THREAD_NEW,
)  # fmt: skip
"""Kinds that set state. Those before the cut are kept, because later events depend on that state."""
_RESOLVES: Final = (
    Kind.UFFD_COPY, Kind.UFFD_ZEROPAGE, Kind.UFFD_CONTINUE, Kind.UFFD_WRITEPROTECT, Kind.UFFD_WAKE, Kind.UFFD_MOVE,
    Kind.UFFD_POISON,
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """The interval [`from_ns`, `until_ns`), ns from the start of the recording; None: to its end."""

    from_ns: int = 0
    until_ns: int | None = None


def parse_span(text: str) -> Span:
    """`5s-8s`, `5s-` or `-8s`.

    Raises:
        UsageError: it is none of these, or ends before it begins.
    """
    first, dash, last = text.partition("-")
    if not dash or not (first.strip() or last.strip()):
        raise UsageError(f"--time {text}: give it as 5s-8s, 5s- or -8s, from the start of the recording")
    span = Span(
        parse_duration_ns(first, default_unit="s") if first.strip() else 0,
        parse_duration_ns(last, default_unit="s") if last.strip() else None,
    )
    if span.until_ns is not None and span.until_ns <= span.from_ns:
        raise UsageError(f"--time {text}: it ends before it begins")
    return span


class Cut:
    """A trace reduced to an interval and to some vCPUs.

    Args:
        trace: opened.
        span: the interval to keep.
        vcpus: numbers of the vCPUs to keep (in each VM); empty: all. Other threads are always kept.

    Raises:
        IncompleteData: nothing would be left.
        UsageError: the trace has no such vCPU.
    """

    def __init__(self, trace: Trace, span: Span, vcpus: Sequence[int] = ()) -> None:
        start_ns = trace.meta.clock.start_ns
        self._trace = trace
        self._from_ns = start_ns + span.from_ns
        end_ns = trace.end_ns
        self._until_ns = min(start_ns + span.until_ns, end_ns + 1) if span.until_ns is not None else end_ns + 1
        if self._from_ns >= self._until_ns:
            raise IncompleteData(f"{trace.path}: ends after {format_ns(end_ns - start_ns)}: nothing is left")
        self._faults = trace.faults().to_arrow()
        self._gone = self._other_vcpus(vcpus)
        self._vcpus = sorted(set(vcpus))
        self._calls = self._their_calls() if len(self._gone) else np.empty(0, _CALL)
        self._dropped = 0
        self._state = 0
        self._running = self._in_guest()

    def events(self, table: pa.Table) -> pa.Table:
        """The rows of raw events that are kept."""
        ts_ns = table["ts_ns"].to_numpy()
        tid, kind = table["tid"].to_numpy(), table["kind"].to_numpy()
        call = np.empty(len(ts_ns), _CALL)
        call["tid"], call["ts_ns"] = tid, ts_ns
        state = np.isin(kind, _STATE) | ((kind == Kind.KVM_RUN_ENTER) & np.isin(call, self._running))
        state &= ts_ns < self._from_ns
        stays = state | ((ts_ns >= self._from_ns) & (ts_ns < self._until_ns))
        if len(self._gone):
            stays &= ~np.isin(tid, self._gone)
            is_message = kind == Kind.UFFD_MSG
            stays &= ~(is_message & np.isin(table["value"].to_numpy(), self._gone))
            stays &= ~((is_message | np.isin(kind, _RESOLVES)) & np.isin(call, self._calls))
        self._dropped += int(len(stays) - stays.sum())
        self._state += int((state & stays).sum())
        return table.filter(pa.array(stays))

    def losses(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The losses within the interval; `meta` counts the others."""
        # A row covers the time since the previous row: one just after the end may belong to the interval.
        within = [row for row in rows if self._from_ns <= row["ts_ns"] < self._until_ns]
        after = [row for row in rows if row["ts_ns"] >= self._until_ns]
        first = min((row["ts_ns"] for row in after), default=None)
        straddling = [{**row, "ts_ns": self._until_ns - 1} for row in after if row["ts_ns"] == first]
        return within + straddling

    def rows(self, table: pa.Table) -> pa.Table:
        """The rows of faults or truth that are kept: begun and ended within the interval, by threads that are kept."""
        end_ns = table["end_ns"].fill_null(self._until_ns - 1).to_numpy()
        stays = (table["start_ns"].to_numpy() >= self._from_ns) & (end_ns < self._until_ns)
        return table.filter(pa.array(stays & ~np.isin(table["tid"].to_numpy(), self._gone)))

    def meta(self, kept: Sequence[dict[str, Any]], all_losses: int) -> Meta:
        """`meta.json` of the piece. Call it after all events were processed. The writer counts the losses."""
        old = self._trace.meta
        lost = sum(row["lost"] for row in kept)
        start = self._faults["start_ns"].to_numpy()
        end = self._faults["end_ns"].fill_null(0).to_numpy()
        ours = ~np.isin(self._faults["tid"].to_numpy(), self._gone)
        open_at = [int(((start < at) & (end >= at) & ours).sum()) for at in (self._from_ns, self._until_ns)]
        told = {
            "from_ns": self._from_ns - old.clock.start_ns,
            "until_ns": self._until_ns - old.clock.start_ns,
            "vcpus": self._vcpus,
            "events_left_out": self._dropped,
            "earlier_events_kept": self._state,
            "losses_left_out": all_losses - lost,
            "faults_open_at_start": open_at[0],
            "faults_open_at_end": open_at[1],
        }
        gone = set(self._gone.tolist())
        targets = [
            dataclasses.replace(
                target,
                threads=[thread for thread in target.threads if thread.tid not in gone],
                memslots=[slot for slot in target.memslots if slot.ts_ns < self._until_ns],
            )
            for target in old.targets
        ]
        earlier = list(old.extra.get("cut", ()))
        return dataclasses.replace(
            old,
            clock=dataclasses.replace(
                old.clock, start_ns=self._from_ns, end_ns=min(self._until_ns, self._trace.end_ns)
            ),
            targets=targets,
            memory_map=[entry for entry in old.memory_map if entry.ts_ns < self._until_ns],
            windows=self._windows(old.windows),
            losses=Losses(),
            recorder=dataclasses.replace(old.recorder, events=0),
            extra={**{key: value for key, value in old.extra.items() if key != "rotated"}, "cut": [*earlier, told]},
        )

    def _windows(self, windows: Sequence[WindowSpan]) -> list[WindowSpan]:
        return [
            dataclasses.replace(
                window, start_ns=max(window.start_ns, self._from_ns), end_ns=min(window.end_ns, self._until_ns)
            )
            for window in windows
            if window.start_ns < self._until_ns and window.end_ns > self._from_ns
        ]

    def _in_guest(self) -> npt.NDArray[Any]:
        """Thread and start time of the KVM_RUN calls in progress when the interval begins."""
        last: dict[int, tuple[int, bool]] = {}
        for table in self._trace.event_tables() if self._from_ns > self._trace.meta.clock.start_ns else ():
            kind, ts_ns = table["kind"].to_numpy(), table["ts_ns"].to_numpy()
            at = np.flatnonzero(np.isin(kind, (Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT)) & (ts_ns < self._from_ns))
            enters = (kind[at] == Kind.KVM_RUN_ENTER).tolist()
            rows = zip(table["tid"].to_numpy()[at].tolist(), ts_ns[at].tolist(), enters, strict=True)
            last |= {tid: (when, enter) for tid, when, enter in rows}
        return np.array([(tid, when) for tid, (when, enter) in last.items() if enter], _CALL)

    def _other_vcpus(self, vcpus: Sequence[int]) -> npt.NDArray[np.int64]:
        if not vcpus:
            return np.empty(0, np.int64)
        number = {thread.tid: thread.vcpu for target in self._trace.meta.targets for thread in target.threads}
        of_vcpus = self._faults.filter(pc.equal(self._faults["accessor"], "vcpu"))
        number |= dict(zip(of_vcpus["tid"].to_pylist(), of_vcpus["vcpu"].to_pylist(), strict=True))
        known = {tid: vcpu for tid, vcpu in number.items() if vcpu >= 0}
        if missing := sorted(set(vcpus) - set(known.values())):
            there = ", ".join(map(str, sorted(set(known.values())))) or "none"
            raise UsageError(f"--vcpu {missing[0]}: the trace has no such vCPU; there are: {there}")
        return np.array(sorted(tid for tid, vcpu in known.items() if vcpu not in vcpus), np.int64)

    def _their_calls(self) -> npt.NDArray[Any]:
        """Handler and time of the messages and ioctls that served only vCPUs that are removed."""
        mine = np.isin(self._faults["tid"].to_numpy(), self._gone)
        return np.setdiff1d(self._calls_of(mine), self._calls_of(~mine))

    def _calls_of(self, which: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        faults = self._faults.filter(pa.array(which))
        handler = faults["handler_tid"].fill_null(0).to_numpy()
        start, queue, service = (faults[n].fill_null(0).to_numpy() for n in ("start_ns", "queue_ns", "service_ns"))
        calls = np.empty((2, len(faults)), _CALL)
        calls["tid"] = handler
        calls["ts_ns"] = np.stack([start + queue, start + queue + service])
        return np.unique(calls[:, handler > 0].ravel())


_CALL: Final = np.dtype([("tid", np.int64), ("ts_ns", np.int64)])
