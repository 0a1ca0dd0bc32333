"""Costs of windows, from the ioctls of a trace: protecting, memory slots, pausing. They are few; the lab makes many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.faulttrace.schema import UFFD_WRITEPROTECT_MODE_WP, Kind

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

Samples = npt.NDArray[np.int64]
_PAGE_BYTES: Final = 4096


def window_samples(traces: Sequence[Trace]) -> dict[str, Samples]:
    """Cost name -> samples, from all traces together: the parts of protecting show only between different sizes."""
    calls = pl.concat([trace.events(kinds=[Kind.UFFD_WRITEPROTECT]) for trace in traces])
    samples = _protect_samples(calls)
    kinds = [Kind.KVM_SET_MEMSLOT, Kind.KVM_MMU_ZAP_ALL]
    parts = [
        _memslot_samples(trace.events(kinds=kinds), _still_missing(trace)) | _pause_samples(trace) for trace in traces
    ]
    for name in dict.fromkeys(name for part in parts for name in part):
        samples[name] = np.concatenate([part[name] for part in parts if name in part])
    return {name: values for name, values in samples.items() if len(values)}


def split_by_pages(pages: Samples, dur_ns: Samples) -> tuple[float, float]:
    """(fixed, per page) of calls over ranges of different sizes: a straight line through the medians of each size.

    Calls of one size only say what a page takes with the fixed part spread over it: fixed is 0 then.
    """
    sizes = np.unique(pages)
    medians = np.array([np.median(dur_ns[pages == size]) for size in sizes])
    if len(sizes) < 2 or sizes[-1] < 2 * sizes[0]:
        return 0.0, float((medians / sizes).mean())
    slope, fixed = np.polyfit(sizes.astype(np.float64), medians, 1)
    if slope <= 0:
        return float(medians.mean()), 0.0
    return max(float(fixed), 0.0), float(slope)


def _protect_samples(calls: pl.DataFrame) -> dict[str, Samples]:
    calls = calls.filter(calls["value"] >= 0)
    protects = (calls["code"] & UFFD_WRITEPROTECT_MODE_WP) != 0
    samples: dict[str, Samples] = {}
    for name, part in (("protect", calls.filter(protects)), ("unprotect", calls.filter(~protects))):
        pages = part["size"].to_numpy().astype(np.int64) // _PAGE_BYTES
        dur_ns = part["dur_ns"].to_numpy().astype(np.int64)[pages > 1]
        pages = pages[pages > 1]
        if not len(pages):
            continue
        fixed, per_page = split_by_pages(pages, dur_ns)
        samples[f"{name}_per_page"] = np.full(len(pages), round(per_page), np.int64)
        if fixed:  # what a call took beyond its pages, spread and all
            samples[f"{name}_fixed"] = np.maximum(np.rint(dur_ns - per_page * pages), 0).astype(np.int64)
    return samples


def _still_missing(trace: Trace) -> bool:
    """Whether memory is filled in through a userfaultfd: a vCPU that faults while a slot is deleted retries without
    success."""
    return any(part in ("missing", "minor") for entry in trace.meta.memory_map for part in entry.uffd.split("+"))


def _memslot_samples(events: pl.DataFrame, whole: bool = False) -> dict[str, Samples]:
    """Deleting: from emptying stage 2 to the ioctl's end where that was recorded, else all of the ioctl.

    What is before that waits for SRCU, while vCPUs whose memory is mapped run on; `whole`: they do not.
    """
    gone: set[tuple[int, int]] = set()
    zapped: dict[int, list[int]] = {}
    deletes, adds = [], []
    columns = events.select("ts_ns", "kind", "tgid", "tid", "code", "size", "value", "dur_ns")
    for ts_ns, kind, tgid, tid, code, size, value, dur_ns in columns.iter_rows():
        zaps = zapped.setdefault(tid, [])
        if kind == Kind.KVM_MMU_ZAP_ALL:
            zaps.append(ts_ns)
            continue
        began_ns = min((zap_ns for zap_ns in zaps if zap_ns >= ts_ns - dur_ns), default=ts_ns - dur_ns)
        zaps.clear()
        slot = (tgid, code & 0xFFFFFFFF)
        if value != 0:
            continue
        if size == 0:
            gone.add(slot)
            deletes.append(dur_ns if whole else ts_ns - began_ns)
        elif slot in gone:  # a slot put back; setting one up before the guest runs is another matter
            gone.remove(slot)
            adds.append(dur_ns)
    return {"memslot_delete": np.array(deletes, np.int64), "memslot_add": np.array(adds, np.int64)}


def _pause_samples(trace: Trace) -> dict[str, Samples]:
    """Kick: first signal until the last vCPU is out; resume: letting go until each calls KVM_RUN again."""
    told = [w for w in trace.meta.lab.get("windows", []) if w.get("kind") == "pause"]
    if not told:
        return {}
    enters = trace.events(kinds=[Kind.KVM_RUN_ENTER], columns=["tid"])
    kicks = [int(w["begin_ns"]) - int(w["begin_from_ns"]) for w in told]
    resumes: list[int] = []
    for window in told:
        after = enters.filter(enters["ts_ns"] >= window["end_from_ns"])
        first = after.unique("tid", keep="first", maintain_order=True)
        resumes += [ts_ns - int(window["end_from_ns"]) for ts_ns in first["ts_ns"].to_list()]
    return {"kick": np.array(kicks, np.int64), "resume": np.array(resumes, np.int64)}
