"""Costs of faults that the kernel resolves alone: first touches, and refaults on memory that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

from faultreplay.analysis.calibrate.files import COLUMNS as OF_FILES
from faultreplay.analysis.calibrate.files import file_samples, of_stage2_alone, on_private_files

Samples = npt.NDArray[np.int64]

KERNEL_FILLS: Final = ("host-lazy", "guest-memfd")
UNCHARGED: Final[dict[str, str]] = {
    "guest-memfd": "faults that the kernel filled in from guest_memfd: no mechanism charges them",
    "dirty-log": "writes to stage 2 while KVM logged them: no mechanism charges them",
}
"""Faults of a kind of their own, which would blur the costs of others -> why they are left out."""


_COSTS: Final = ("stage2_fault", "host_fault", "host_fault_read")
_COLUMNS: Final = ("vm", "page", "access", "cause", "resolution", "start_ns", "stall_ns", "backing", "copied")
_NONE: Final = np.zeros(0, np.int64)


def fills_in(meta: Meta) -> str:
    """The mechanism that serves the faults: the lab names a run with a window after the window."""
    if meta.mechanism is None:
        return ""
    return str(meta.mechanism.params.get("base", "")) or meta.mechanism.name


class KernelSamples:
    """Stalls of faults that the kernel resolved alone, taken a piece at a time."""

    def __init__(self, meta: Meta, logged_from_ns: int | None) -> None:
        """
        Args:
            meta: of the faults' trace.
            logged_from_ns: since when KVM logs writes, if it does.
        """
        self._meta = meta
        self._mechanism = fills_in(meta)
        self._logged_from_ns = 0 if self._mechanism == "dirty-log" else logged_from_ns
        # Which fault is its page's first only all of them together tell.
        self._held: list[tuple[pl.DataFrame, pl.Series]] = []
        self._stalls: dict[str, list[Samples]] = {name: [] for name in (*_COSTS, *UNCHARGED)}
        self._of_files: list[pl.DataFrame] = []

    def add(self, joined: pl.DataFrame, unpreempted: pl.Series) -> None:
        """The next faults that have an end, in order of time, and which of them to use."""
        if (of_file := on_private_files(joined, self._meta) & unpreempted).any():
            self._of_files.append(joined.filter(of_file).select(OF_FILES))
        if self._mechanism in KERNEL_FILLS and self._meta.windows:
            self._held.append((joined.select(_COLUMNS), unpreempted))
        else:
            self._take(joined, unpreempted)

    def found(self) -> tuple[dict[str, Samples], dict[str, int]]:
        """Cost name -> samples, and key of `UNCHARGED` -> how many faults were of that kind."""
        if self._held:
            self._take(pl.concat([frame for frame, _ in self._held]), pl.concat([used for _, used in self._held]))
        together = {name: np.concatenate([_NONE, *parts]) for name, parts in self._stalls.items()}
        counts = {name: len(together[name]) for name in UNCHARGED}
        samples = {name: together[name] for name in _COSTS}
        if self._of_files:
            samples |= file_samples(pl.concat(self._of_files), self._meta)
        return samples, {name: count for name, count in counts.items() if count}

    def _take(self, joined: pl.DataFrame, unpreempted: pl.Series) -> None:
        elsewhere = ~on_private_files(joined, self._meta) | of_stage2_alone(joined)
        alone = unpreempted & elsewhere & (joined["resolution"] == "kernel")
        stage2, writes = joined["cause"] == "stage2", joined["access"] == "w"
        # Where the kernel alone fills memory in, one exit makes the page too; elsewhere the host has it by then.
        fills = stage2 & _first_touches(joined, self._meta) if self._mechanism in KERNEL_FILLS else stage2 & False
        of_host = fills | joined["cause"].is_in(["minor-host", "major-host"])
        logged = stage2 & False
        if self._logged_from_ns is not None:
            logged = stage2 & writes & ~fills & (joined["start_ns"] >= self._logged_from_ns)
        memfd = of_host if self._mechanism == "guest-memfd" else of_host & False
        for name, rows in (
            ("stage2_fault", stage2 & ~fills & ~logged),
            ("host_fault", of_host & ~memfd & writes),
            ("host_fault_read", of_host & ~memfd & ~writes),
            ("guest-memfd", memfd),
            ("dirty-log", logged),
        ):
            self._stalls[name].append(joined.filter(alone & rows)["stall_ns"].to_numpy().astype(np.int64))


def _first_touches(joined: pl.DataFrame, meta: Meta) -> pl.Series:
    """Faults for which the host had no page; before any window all are.

    From the first window on that is each page's first fault, and its first write: a read may have found the zero page.
    Memory outside the memory map was there before the run: the guest's own, which a window throws out of stage 2 too.
    """
    if not meta.windows:
        return pl.Series([True] * len(joined), dtype=pl.Boolean)
    nth = joined.select(
        fault=pl.int_range(pl.len()).over("vm", "page"),
        write=(pl.col("access") == "w").cast(pl.Int64).cum_sum().over("vm", "page"),
    )
    first = (nth["fault"] == 0) | ((nth["write"] == 1) & (joined["access"] == "w"))
    mapped = joined["page"] != joined["page"] if meta.memory_map else joined["page"] == joined["page"]
    for entry in meta.memory_map:
        mapped |= (joined["page"] >= entry.start) & (joined["page"] < entry.end)
    return (joined["start_ns"] < meta.windows[0].start_ns) | (first & mapped)
