"""Who is on stage in one call of the compiled loop: the guest first, then the threads of streams; and their files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine.storage import Files
from faultreplay.replay.language.program import Program
from faultreplay.replay.workload.workload import Ints, Workload


@dataclass(frozen=True)
class Cast:
    """The guest is the first accessors and rows; the rest is streams'."""

    accessors: int
    """of the guest"""
    faults: int
    """of the guest"""
    files: Files
    """as they are at the beginning"""
    guest: Workload | None = None
    """the guest alone; None: there is nobody else"""
    present_at: Ints | None = None
    """int64[G]: which tracked granules are there at the beginning; None: none"""

    def has_streams(self, workload: Workload) -> bool:
        """Whether anybody but the guest is on stage."""
        return workload.accessors > self.accessors

    def homes(self, workload: Workload, program: Program) -> Ints:
        """int64[A]: which CPU each accessor is pinned to: the guest's, then the servers', then threads of streams."""
        homes = np.arange(workload.accessors, dtype=np.int64)
        servers = sum(item.servers * item.count for item in program.resources if item.kind == "servers")
        homes[self.accessors :] += int((workload.accessor_kind == 0).sum()) + servers - self.accessors
        return homes

    def present(self, granules: int) -> Ints:
        """A fresh array of what is there."""
        return np.full(granules, at.NEVER, np.int64) if self.present_at is None else self.present_at.copy()

    def fresh_files(self) -> Files:
        """The files, of which a run writes what it changes."""
        files = self.files
        return files._replace(
            cached_at=files.cached_at.copy(),
            marked=files.marked.copy(),
            placed=files.placed.copy(),
            devices=files.devices.copy(),
            found=files.found.copy(),
        )


def shard_of_row(workload: Workload, shards: int) -> npt.NDArray[np.int32]:
    """int32[F]: the shard of each fault's page, or the VM of several; [1] where there is one."""
    if workload.vms > 1:
        return workload.vm_of_page(workload.page).astype(np.int32)
    if shards == 1 or not workload.faults:
        return np.zeros(workload.faults if shards > 1 else 1, np.int32)
    pages, place = np.unique(workload.page, return_inverse=True)
    return (place.astype(np.int64) * shards // len(pages)).astype(np.int32)
