"""What a restore needs besides its guest: a snapshot file, the set of pages to prefetch, a handler process."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.lists import first_touches, make_lists
from faultreplay.lab.spec import PAGE_BYTES, PREFETCH_KINDS, LabSpec

_LARGE_BYTES: Final = 1 << 20
"""Of the host program's large reads (DIRECT_BYTES)."""
_PLACES: Final = {"tmpfs": Path("/dev/shm"), "disk": Path("/var/tmp")}


@contextlib.contextmanager
def snapshot_file(spec: LabSpec) -> Iterator[Path | None]:
    """Where the host program is to make its snapshot file; None where the run has none. Removed afterwards.

    Raises:
        UsageError: there is no such folder.
    """
    if not spec.needs_snapshot:
        yield None
        return
    folder = _PLACES.get(spec.snapshot) or Path(spec.snapshot)
    if not folder.is_dir():
        raise UsageError(f"--snapshot {spec.snapshot}: {folder} is no folder: choose tmpfs, disk or a folder")
    with tempfile.TemporaryDirectory(prefix="faultreplay-lab-", dir=folder) as name:
        yield Path(name) / "memory"


def storage_params(spec: LabSpec, snapshot: Path | None) -> dict[str, int]:
    """How far the kernel reads around a page that a cold snapshot misses, by the name that replays use."""
    if snapshot is None or spec.page_cache != "cold":
        return {}
    return {"readahead": readahead_bytes(snapshot) if spec.readahead else 0}


def device_bytes_per_s(facts: dict[str, Any]) -> int:
    """The device's bandwidth, by how much longer a large read past the page cache took than a small one; 0: unknown."""
    longer_ns = facts["storage_large_ns"] - facts["storage_small_ns"]
    return (_LARGE_BYTES - PAGE_BYTES) * 10**9 // longer_ns if longer_ns > 0 else 0


def readahead_bytes(path: Path) -> int:
    """How much the kernel reads around a page of this file: ``read_ahead_kb``; its default, 128 KiB, if unknown."""
    device = path.stat().st_dev
    told = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return int(told.read_text()) << 10
    except (OSError, ValueError):
        return 128 << 10


def working_set(spec: LabSpec) -> npt.NDArray[np.int64]:
    """The 4 KiB pages that prefetch brings, in its order, numbered from the start of guest memory (int64[pages]).

    They are what another run of this guest touched first: one that was recorded, or one that another seed would give.

    Raises:
        IncompleteData: the other trace is not the lab's.
    """
    if spec.working_set is not None:
        return touched_in(spec.working_set)
    assert spec.working_set_seed is not None
    return first_touches(make_lists(replace(spec, seed=spec.working_set_seed))[0])


def working_set_of(meta: Meta) -> npt.NDArray[np.int64] | None:
    """The pages that a recorded run of the lab prefetched, as `working_set`; None: it did not.

    Raises:
        IncompleteData: the trace that its set came from is not there any more.
    """
    told = meta.lab.get("spec", {})
    if told.get("mechanism") not in PREFETCH_KINDS:
        return None
    names = ("mechanism", "base", "vcpus", "pages", "shared", "accesses", "order", "access", "think", "seed")
    earlier = told.get("working_set")
    spec = LabSpec(
        **{name: told[name] for name in names if name in told},
        working_set=Path(earlier) if earlier else None,
        working_set_seed=told.get("working_set_seed"),
    )
    return working_set(spec)


def cold(meta: Meta) -> bool:
    """Whether a recorded run of the lab restored from a file that was in no page cache."""
    return bool(meta.lab.get("spec", {}).get("page_cache") == "cold")


def write_working_set(path: Path, spec: LabSpec, pages: int) -> int:
    """`working_set` for the host program to read; how many pages.

    Raises:
        UsageError: it has memory that this guest, of so many `pages`, does not have.
    """
    wanted = working_set(spec)
    if len(wanted) and int(wanted.max()) >= pages:
        raise UsageError(f"--working-set {spec.working_set}: has page {wanted.max()}, this guest has {pages}")
    wanted.astype(np.uint64).tofile(path)
    return len(wanted)


def touched_in(path: Path) -> npt.NDArray[np.int64]:
    """The pages of a lab trace in the order of their first touch, numbered from the start of guest memory."""
    trace = open_trace(path)
    truth = trace.truth()
    if truth is None or not trace.meta.memory_map:
        raise IncompleteData(f"{path}: no lab trace with its guest's accesses: --working-set takes the lab's traces")
    start = trace.meta.memory_map[0].start
    page = truth.sort("start_ns")["page"].to_numpy()
    _, first = np.unique(page, return_index=True)
    return ((page[np.sort(first)] - np.uint64(start)) // PAGE_BYTES).astype(np.int64)
