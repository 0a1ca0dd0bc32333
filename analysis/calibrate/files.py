"""Costs of faults on a private mapping of a file, of which each is a sum: how the sums are shared out.

A trace shows five kinds of them: a read that maps a page of the page cache with its neighbours (A); a read of what a
neighbour's fault mapped, which stage 2 alone lacks (B); a write to a page that nobody has mapped (C); one to a page
that is mapped to be read (D), whose mapping is taken out of stage 2 first; and one that waits for the device (E).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.calibrate.observed import MIN_SAMPLES
from faultreplay.replay.language.mechanism import load_mechanism

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta

Samples = npt.NDArray[np.int64]

NEIGHBOURS: Final = 15
"""That a read maps besides its own page: fault_around_bytes is 64 KiB on every distribution."""
_MODEL: Final = "file-private"
_EMPTY: Final = np.empty(0, np.int64)
COLUMNS: Final = ("access", "cause", "backing", "copied", "stall_ns", "offcpu_ns", "preempted_ns")
"""Of `FAULTS`, that are looked at."""
NAMES: Final = ("host_fault_minor", "map_around", "copy_on_write", "unshare", "major_fault", "storage_read")


def on_private_files(joined: pl.DataFrame, meta: Meta) -> pl.Series:
    """bool[F]: faults that the kernel resolved on memory that is a private mapping of a file."""
    mapped = pl.Series([False] * len(joined), dtype=pl.Boolean)
    for entry in meta.memory_map:
        if entry.file == "private":
            mapped |= (joined["page"] >= entry.start) & (joined["page"] < entry.end)
    return mapped & (joined["resolution"] == "kernel") & joined["cause"].is_in(["stage2", "minor-host", "major-host"])


def of_stage2_alone(joined: pl.DataFrame) -> pl.Series:
    """bool[F]: of these, reads of kind B."""
    reads = (joined["access"] != "w") & (joined["cause"] == "stage2")
    return reads & joined["backing"].is_null() & ~joined["copied"].fill_null(False)


def file_samples(faults: pl.DataFrame, meta: Meta) -> dict[str, Samples]:
    """Cost name -> samples, ns, of `faults` on private mappings; a cost whose sums are not there has none.

    Where stage 2 is in it (B is known), what A takes beyond B is shared out evenly among the pages that A maps.
    Elsewhere all of it is the fault's own page's. What C takes beyond that is the copy, what D takes beyond C is
    `unshare`. Of E the time asleep is the device's, less what a replay charges for the bytes of a readahead window;
    the rest beyond A or C is that of who waits.
    """
    writes, copied = faults["access"] == "w", faults["copied"].fill_null(False)
    backing = faults["backing"].cast(pl.String).fill_null("")
    read, alone = _stalls(faults, ~writes & (backing == "cache")), _stalls(faults, of_stage2_alone(faults))
    found = dict.fromkeys(NAMES, _EMPTY)
    if len(read) < MIN_SAMPLES:
        return found
    own = read
    if len(alone) >= MIN_SAMPLES:
        least = int(np.median(alone))
        each = np.maximum(read - least, 0) // (1 + NEIGHBOURS)
        own = np.minimum(read, least) + each
        found["map_around"] = each
    elif (faults["cause"] != "stage2").all():
        found["map_around"] = np.zeros(len(read), np.int64)
    found["host_fault_minor"] = own
    fresh = _stalls(faults, writes & (backing != "disk") & ~(copied & (backing == "")))
    shared = _stalls(faults, writes & copied & (backing == ""))
    minor = int(np.median(own))
    copy = 0
    if len(fresh) >= MIN_SAMPLES:
        found["copy_on_write"] = np.maximum(fresh - minor, 0)
        copy = int(np.median(found["copy_on_write"]))
        if len(shared) >= MIN_SAMPLES:
            found["unshare"] = np.maximum(shared - minor - copy, 0)
    disk = faults.filter((backing == "disk") & faults["offcpu_ns"].is_not_null())
    return found | _of_device(disk, meta, int(np.median(read)), minor + copy)


def _of_device(disk: pl.DataFrame, meta: Meta, read_ns: int, write_ns: int) -> dict[str, Samples]:
    """Of faults that waited for the device; `read_ns`, `write_ns`: what they take where the page cache has the page."""
    asleep = np.maximum(_column(disk, "offcpu_ns") - np.maximum(_column(disk, "preempted_ns"), 0), 0)
    else_ns = np.where((disk["access"] == "w").to_numpy(), write_ns, read_ns)
    found = {"major_fault": np.maximum(_column(disk, "stall_ns") - asleep - else_ns, 0)}
    on_wire_ns = window_ns(meta.mechanism.params if meta.mechanism else {})
    return found | {"storage_read": np.maximum(asleep - on_wire_ns, 0)}


def window_ns(params: Mapping[str, Any]) -> int:
    """What the bytes of one readahead window take in a replay with these parameters of a recording."""
    declared = load_mechanism(_MODEL).params
    rate, window = (float(params.get(name, declared[name].default)) for name in ("storage_bandwidth", "readahead"))
    return round(window / rate * 1e9) if rate else 0


def _stalls(faults: pl.DataFrame, rows: pl.Series) -> Samples:
    return _column(faults.filter(rows), "stall_ns")


def _column(faults: pl.DataFrame, name: str) -> Samples:
    return faults[name].fill_null(0).to_numpy().astype(np.int64)
