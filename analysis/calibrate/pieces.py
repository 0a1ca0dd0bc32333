"""What samples are taken from: of faults that come a piece at a time, arrays of those that have something to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.calibrate.kernel import KernelSamples
from faultreplay.analysis.calibrate.observed import Samples

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

USERFAULTS: Final = ("missing", "minor", "write-protect")
PLACED: Final = ("copy", "zeropage", "continue", "move", "unprotect")
COLUMNS: Final = (
    *("vm", "tid", "start_ns", "end_ns", "stall_ns", "page", "granule", "access", "cause", "resolution", "handler_tid"),
    *("queue_ns", "read_run_ns", "read_after_tid", "read_preempts", "read_preempted_ns", "service_ns", "resolve_ns"),
    *("wake_ns", "wake_run_ns", "wake_after_tid", "wake_preempts", "offcpu_ns", "preempted_ns"),
    *("service_preempted_ns", "backing", "copied"),
)
"""Columns of `FAULTS` that samples are taken from."""
UNKNOWN: Final = -1
_USERFAULT_COLUMNS: Final = (
    *("vm", "tid", "handler_tid", "start_ns", "queue_ns", "service_ns", "resolve_ns", "wake_ns"),
    *("read_run_ns", "read_after_tid", "wake_run_ns", "wake_after_tid"),
)
_TIMES: Final = (
    *(name for name in _USERFAULT_COLUMNS if name.endswith("_ns") and name != "start_ns"),
    "fault_entry_ns",
)
_INT32: Final = np.iinfo(np.int32)
_EXIT_COLUMNS: Final = ("queue_ns", "service_ns", "resolve_ns", "wake_ns")
_MMIO_COLUMNS: Final = ("start_ns", "end_ns", "queue_ns", "wake_ns")
Arrays = dict[str, npt.NDArray[Any]]
_PAGE_BYTES: Final = 4096


class Pieces:
    """What is kept of faults that come a piece at a time: arrays of those that have something to tell."""

    def __init__(self, meta: Meta, waits: bool, logged_from_ns: int | None) -> None:
        self._waits = waits
        self.preempted = 0
        self.userfaults: list[Arrays] = []
        self.exits: list[Arrays] = []
        self.mmio: list[Arrays] = []
        self.kernel = KernelSamples(meta, logged_from_ns)

    def add(self, faults: pl.DataFrame) -> None:
        """The next faults, in order of time."""
        joined = faults.filter(faults["end_ns"].is_not_null())
        unpreempted = (joined["preempted_ns"].fill_null(0) == 0) & (joined["service_preempted_ns"].fill_null(0) == 0)
        if self._waits:
            unpreempted |= True
        self.preempted += int((~unpreempted).sum())
        self.userfaults.append(_userfault_arrays(joined.filter(_is_userfault(joined)), self._waits))
        is_exit = unpreempted & (joined["cause"] == "exit") & joined["resolve_ns"].is_not_null()
        self.exits.append(_arrays(joined.filter(is_exit), _EXIT_COLUMNS))
        is_mmio = unpreempted & (joined["cause"] == "mmio") & joined["wake_ns"].is_not_null()
        self.mmio.append(_arrays(joined.filter(is_mmio), _MMIO_COLUMNS))
        self.kernel.add(joined, unpreempted)


def _arrays(faults: pl.DataFrame, names: Sequence[str]) -> Arrays:
    """Numbers of faults; `UNKNOWN` for null."""
    return {name: faults[name].fill_null(UNKNOWN).to_numpy() for name in names}


def _userfault_arrays(faults: pl.DataFrame, waits: bool) -> Arrays:
    found = _arrays(faults, _USERFAULT_COLUMNS)
    for name in ("read_preempts", "wake_preempts"):
        found[name] = faults[name].fill_null(False).to_numpy()
    every = np.ones(len(faults), bool)
    away = _arrays(faults, ("preempted_ns", "service_preempted_ns", "read_preempted_ns"))
    found["unpreempted"] = every if waits else (away["preempted_ns"] <= 0) & (away["service_preempted_ns"] <= 0)
    found["unpreempted_read"] = every if waits else found["unpreempted"] & (away["read_preempted_ns"] <= 0)
    found["pages"] = np.maximum(faults["granule"].fill_null(UNKNOWN).to_numpy() // _PAGE_BYTES, 1).astype(np.int32)
    found["continued"] = (faults["resolution"] == "continue").to_numpy()
    found["fault_entry_ns"] = _fault_entry_ns(_arrays(faults, ("end_ns", "offcpu_ns")) | found)
    for name in _TIMES:  # half the memory: few last two seconds
        values = found[name]
        if values.min(initial=0) >= _INT32.min and values.max(initial=0) <= _INT32.max:
            found[name] = values.astype(np.int32)
    return found


def _fault_entry_ns(faults: Arrays) -> Samples:
    """From the fault until the accessor slept, by what is left of its stall; `UNKNOWN` where that is not known."""
    seen = (faults["wake_run_ns"] >= 0) & (faults["offcpu_ns"] > 0)
    awake = faults["end_ns"] - faults["start_ns"] - faults["offcpu_ns"] - faults["wake_run_ns"]
    entry: Samples = np.where(seen & (awake >= 0), np.minimum(awake, np.maximum(faults["queue_ns"], 0)), UNKNOWN)
    return entry


def together(pieces: list[Arrays]) -> Arrays:
    """One array a column; the pieces are given up column by column, so that nothing is there twice."""
    names = list(pieces[0]) if pieces else []
    return {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in names}


class Userfaults:
    """Userfaults that were placed and woken; `UNKNOWN` for null. Times widen when they are asked for."""

    def __init__(self, pieces: list[Arrays]) -> None:
        columns = together(pieces)
        self._times: Mapping[str, npt.NDArray[Any]] = {name: columns.pop(name) for name in _TIMES}
        self.vm, self.tid, self.handler = columns["vm"], columns["tid"], columns["handler_tid"]
        self.start_ns = columns["start_ns"]
        self.read_after, self.wake_after = columns["read_after_tid"], columns["wake_after_tid"]
        self.read_preempts, self.wake_preempts = columns["read_preempts"], columns["wake_preempts"]
        self.unpreempted = columns["unpreempted"]
        """faults to use"""
        self.unpreempted_read = columns["unpreempted_read"]
        """of these, the ones in which the handler was not preempted before it read"""
        self.pages, self.continued = columns["pages"], columns["continued"]

    def _time(self, name: str) -> Samples:
        wide: Samples = self._times[name].astype(np.int64, copy=False)
        return wide

    queue_ns = property(lambda self: self._time("queue_ns"))
    service_ns = property(lambda self: self._time("service_ns"))
    resolve_ns = property(lambda self: self._time("resolve_ns"))
    wake_ns = property(lambda self: self._time("wake_ns"))
    read_run_ns = property(lambda self: self._time("read_run_ns"))
    wake_run_ns = property(lambda self: self._time("wake_run_ns"))
    fault_entry_ns = property(lambda self: self._time("fault_entry_ns"))
    """from the fault until the accessor slept; `UNKNOWN` where that is not known"""

    @property
    def read_ns(self) -> Samples:
        """When each was read."""
        found: Samples = self.start_ns + self.queue_ns
        return found

    @property
    def placed_ns(self) -> Samples:
        """When the content of each was there."""
        found = self.read_ns
        found += self.service_ns
        return found


def _is_userfault(faults: pl.DataFrame) -> pl.Series:
    served = faults["service_ns"].is_not_null() & faults["queue_ns"].is_not_null() & faults["wake_ns"].is_not_null()
    return served & faults["cause"].is_in(USERFAULTS) & faults["resolution"].is_in(PLACED)
