"""A trace made ready to be replayed: its faults, its workload, the mechanism that was in use, costs and windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.calibrate.calibrate import fit_costs
from faultreplay.analysis.calibrate.samples import COLUMNS as FIT_COLUMNS
from faultreplay.analysis.compare.busy import TOLD_FROM, others_share
from faultreplay.analysis.compare.environment import brought_bytes, guest_memory_bytes, in_environment, with_memory
from faultreplay.analysis.compare.losses import check_losses, loss_percent
from faultreplay.analysis.compare.metrics import Ints
from faultreplay.analysis.compare.predict import (
    Setup,
    Stops,
    Used,
    counted,
    load_with,
    total_stall_ns,
)
from faultreplay.analysis.compare.ranges import FitSamples
from faultreplay.analysis.compare.sources import CostSource, Origin, sources_of, with_host_parts
from faultreplay.analysis.compare.storage_setting import LATENCY
from faultreplay.analysis.compare.uncontended import share_uncontended, uncontended
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.schema import CAUSES, FAULTS
from faultreplay.faulttrace.units import format_bytes, format_ns
from faultreplay.faulttrace.vcpus import vcpu_threads
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.workload.reading import Reading, first_touch
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

from faultreplay.analysis.compare.window_spans import DEFAULT_WINDOW_NS, outside_windows, window_kind, windows_for

__all__ = [
    "DEFAULT_WINDOW_NS",
    "REFERENCES",
    "Case",
    "check_losses",
    "loss_percent",
    "outside_windows",
    "windows_for",
]

USED_COLUMNS: Final = tuple(name for name in FAULTS.names if name != "join")
"""Of the faults: what replays, fits and judgements look at. How each was joined is for `inspect`."""
REFERENCES: Final = ("as-recorded", "ideal")
"""Rows that no mechanism can be: what was recorded, and no stall at all. They are references, no choices."""


@dataclass(frozen=True)
class Case:
    """What every prediction on one trace shares."""

    trace: Trace
    workload: Workload
    used: Used | None
    setup: Setup
    shipped: CostTable
    """shipped costs with the user's files on top"""
    where: Mapping[str, CostSource]
    """where each of `shipped` comes from"""
    windows: tuple[Window, ...]
    windows_from: str
    fit: bool = True
    set_by_user: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """the settings that the user gave; those of `setup` include the host's"""
    reading: Reading = "recorded"
    """how faults of memory that was there are taken in the table on missing memory"""
    _kept: dict[str, CostTable] = field(default_factory=dict, compare=False, repr=False)
    _samples: FitSamples = field(default_factory=FitSamples, compare=False, repr=False)

    @functools.cached_property
    def faults(self) -> pl.DataFrame:
        """All faults, held in memory from the first look on (`USED_COLUMNS`); `pieces` takes less."""
        return self.trace.faults(vcpu_threads=self.setup.vcpu_threads, columns=USED_COLUMNS, categorical=True)

    def pieces(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Columns of the faults in order of time, read anew and a piece at a time."""
        return self.trace.fault_frames(columns, vcpu_threads=self.setup.vcpu_threads)

    @functools.cached_property
    def read(self) -> Workload:
        """The workload as the table on missing memory takes it."""
        workload = self.running
        return first_touch(workload, self.emptied_ns) if self.reading == "first-touch" else workload

    @functools.cached_property
    def running(self) -> Workload:
        """The workload without the time that its vCPUs stood still in recorded pauses: no think time of theirs.

        In other windows who touches memory waits in a fault, which is a stall.
        """
        away = self.paused_ns
        workload = self.workload
        if not away.any():
            return workload
        asleep_ns = np.maximum(workload.asleep_ns - away, 0) if workload.asleep_ns.size else workload.asleep_ns
        return replace(workload, think_ns=workload.think_ns - away, asleep_ns=asleep_ns)

    @functools.cached_property
    def paused_ns(self) -> Ints:
        """int64[F]: part of a vCPU's think time in which a recorded pause held it."""
        workload = self.workload
        away = np.zeros(workload.faults, dtype=np.int64)
        spans = self.recorded_spans(("pause", "pause-only"))
        if not spans:
            return away
        for first, last in spans:
            since = np.maximum(workload.recorded_start_ns - workload.think_ns, first)
            away += np.maximum(np.minimum(workload.recorded_start_ns, last) - since, 0)
        away[~counted(workload)[workload.accessor_of_row()]] = 0
        return away

    @functools.cached_property
    def stops(self) -> Stops | None:
        """Recorded pauses as stalls of the vCPUs they held; None: there were none."""
        away = np.zeros(self.workload.accessors, np.int64)
        if not self.recorded_spans(("pause", "pause-only")):
            return None
        np.add.at(away, self.workload.accessor_of_row(), self.paused_ns)
        held = np.flatnonzero(away)
        if not held.size:
            return None
        spans = np.array(self.recorded_spans(("pause", "pause-only")), np.int64)
        begin, end = (np.tile(spans[:, column], len(held)) for column in (0, 1))
        return Stops(np.repeat(held, len(spans)), begin, end, away)

    def recorded_spans(self, kinds: Collection[str] = ()) -> list[tuple[int, int]]:
        """(begin, end) of the recorded windows, of these kinds if any, in ns from the recording's beginning."""
        begin = self.workload.clock_start_ns
        return [
            (w.start_ns - begin, w.end_ns - begin)
            for w in self.trace.meta.windows
            if w.end_ns > w.start_ns and (not kinds or w.kind in kinds)
        ]

    @functools.cached_property
    def emptied_ns(self) -> int | None:
        """When a recorded window first emptied stage 2, from the beginning; None: none did.

        What faults in stage 2 from then on had been touched before, and would not have faulted.
        """
        begins = [
            max(w.start_ns - self.workload.clock_start_ns, 0)
            for w in self.trace.meta.windows
            if (kind := window_kind(w.kind, self.used))
            and (rule := load_mechanism(WINDOW_KINDS[kind]).window)
            and rule.empties_stage2
        ]
        return min(begins, default=None)

    @functools.cached_property
    def refaulted(self) -> npt.NDArray[np.bool_]:
        """bool[F]: faults that a recorded window brought about by emptying stage 2."""
        if self.emptied_ns is None:
            return np.zeros(self.workload.faults, np.bool_)
        mine: npt.NDArray[np.bool_] = self.workload.cause == CAUSES.index("stage2")
        return mine & (self.workload.recorded_start_ns >= self.emptied_ns)

    @functools.cached_property
    def others_share(self) -> float:
        """Share of the recorded stall caused by the load of other processes; 0 if too small to measure."""
        share = others_share(self.pieces)
        return share if share >= TOLD_FROM else 0.0

    @property
    def read_as_missing(self) -> int:
        """How many faults were something else in the recording."""
        return int((self.read.cause != self.workload.cause).sum())

    @property
    def on_kvm(self) -> bool:
        """Whether some vCPU is one of KVM; otherwise threads are taken as vCPUs (`faulttrace.vcpus`)."""
        without_kvm = vcpu_threads(self.trace.meta, self.setup.vcpu_threads)
        for piece in self.pieces(("accessor", "tid")):
            vcpu = piece.filter(piece["accessor"] == "vcpu")["tid"].unique()
            if any(tid not in without_kvm for tid in vcpu):
                return True
        return False

    @property
    def known(self) -> Sequence[str]:
        """Names of the mechanisms that are shipped."""
        return list_mechanisms()

    @functools.cached_property
    def memory_bytes(self) -> int:
        """The guest's memory; 0: not known."""
        try:
            return guest_memory_bytes(self.trace)
        except IncompleteData:  # a trace far away, of which only the faults are read
            return 0

    def load(self, name: str) -> Mechanism:
        """A mechanism as a row names it, for this trace."""
        return with_memory(load_with(name, self.setup, self.used), lambda: self.memory_bytes)

    @property
    def brought(self) -> int:
        """Bytes that one fetch of the recording brought."""
        return brought_bytes(self.workload, self.used)

    @property
    def what_if(self) -> tuple[str, ...]:
        """In what the replay differs from the recording on purpose, whatever the mechanism."""
        setup = self.setup
        words = []
        if self.reading == "first-touch":
            words.append("first touches taken as missing")
        if setup.fetch_ns is not None:
            words.append(f"fetch {format_ns(setup.fetch_ns)}")
        if setup.link_bytes_per_s:
            words.append(f"link {format_bytes(setup.link_bytes_per_s)}/s")
        return tuple(words)

    def costs(self, fitted: CostTable | None = None) -> CostTable:
        """All costs: shipped, the trace's own (`fitted`, or what the whole trace shows), and the environment's."""
        own = uncontended(self.fitted() if fitted is None else fitted, self.uncontended_share)
        table = self.shipped.merge(own)
        return in_environment(table, self.setup, self.used, self.brought)

    @functools.cached_property
    def uncontended_share(self) -> float:
        """What is left of the trace's own costs without the contention that it was recorded with."""
        used = self.used
        if used is None or used.name not in self.known or not self.workload.measured:
            return 1.0
        mechanism = load_with(used.name, replace(self.setup, settings={}), used)
        windows = self.windows_of(mechanism.name)

        def total(table: CostTable) -> int:
            costs = in_environment(table, self.setup, self.used, self.brought)
            return total_stall_ns(self.running, mechanism, costs, self.setup, windows)

        return share_uncontended(self.shipped, self.fitted(), total)

    def sources(self, used: Mapping[str, str]) -> dict[str, CostSource]:
        """Where each cost that a replay used comes from."""
        found = sources_of(used, self.where, self.fitted())
        asked = {"fetch": self.setup.fetch_ns, LATENCY: self.setup.storage}
        told = [name for name, value in asked.items() if name in found and value is not None]
        return found | dict.fromkeys(told, CostSource(Origin.SET))

    def windows_of(self, mechanism: str) -> tuple[Window, ...]:
        """The windows as they bind `mechanism`.

        A reference, and any mechanism with a default window, is bound only by a window rule of its own.
        """
        if mechanism in REFERENCES:
            return tuple(replace(w, kind="") for w in self.windows)
        return self.windows

    def fitted(self) -> CostTable:
        """Costs that the whole trace shows; none where fitting is off."""
        if "all" not in self._kept:
            self._kept["all"] = self.fitted_on(None, self.trace.name, self._samples)
        return self._kept["all"]

    def fitted_samples(self) -> FitSamples:
        """What each of these costs was fitted on."""
        self.fitted()
        return self._samples

    def fitted_on(
        self, chosen: Callable[[pl.DataFrame], pl.Series] | None, source: str, samples: FitSamples | None = None
    ) -> CostTable:
        """Costs that some of its faults show; those which a recorded window held up show the window, not their path.

        Args:
            chosen: which of some faults, looked at one by one (columns of `samples.COLUMNS`); None: all.
            source: what they are called.
            samples: filled with what each was fitted on.
        """
        if not self.fit or not self.workload.measured:
            return CostTable({})
        meta = self.trace.meta
        # Where CPUs are a resource, the wait for one is the replay's to find.
        waits = self.setup.cpus is None
        pieces = (outside_windows(p if chosen is None else p.filter(chosen(p)), meta) for p in self.pieces(FIT_COLUMNS))
        fit = fit_costs(pieces, meta, source=source, waits=waits)
        if samples is not None:
            samples.take(fit.samples)
        return with_host_parts(fit.within(self.shipped), self.shipped, self.where)
