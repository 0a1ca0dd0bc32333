"""Zaps of guest memory in another tool's trace, and events that show their cause: as collect/bpf/zaps.c keeps them.

A cause is kept only where its thread has zapped guest memory just before; the source does not contain whose memory it
was.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, Final

from faultreplay.collect.backends.program import HUGE_PAGE_BYTES
from faultreplay.collect.importers.raw import Raw
from faultreplay.collect.importers.rows import Rows
from faultreplay.faulttrace.schema import Kind, ZapCause

KERNEL_THREADS: Final = ("kcompactd", "ksmd", "kswapd", "khugepaged", "kworker", "migration/", "kdamond")
"""What names of the kernel's own threads begin with, of those that take memory away."""
_ELSEWHERE: Final = "its thread had not just zapped guest memory"
_BATCHES: Final = {
    "ksm:ksm_merge_one_page": (ZapCause.KSM, "err", 0),
    "ksm:ksm_merge_with_ksm_page": (ZapCause.KSM, "err", 0),
    "vmscan:mm_vmscan_lru_shrink_inactive": (ZapCause.RECLAIM, "nr_reclaimed", 0),
    "vmscan:mm_vmscan_reclaim_pages": (ZapCause.RECLAIM, "nr_reclaimed", 0),
    "huge_memory:mm_collapse_huge_page": (ZapCause.THP_COLLAPSE, "status", HUGE_PAGE_BYTES),
    "huge_memory:mm_khugepaged_collapse_file": (ZapCause.THP_COLLAPSE, "result", HUGE_PAGE_BYTES),
}
"""Event -> cause, field of `value`, `size`."""
_MIGRATION: Final = "migrate:mm_migrate_pages"
_PLACES: Final = ("migrate:set_migration_pte", "thp:set_migration_pmd")


@dataclass
class _Batch:
    """Pages that a thread migrates, and whether it zapped guest memory for them."""

    reason: int
    zapped: bool = False


class Zaps:
    """Turns zaps and their causes into rows."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._last: dict[int, tuple[int, int]] = {}  # thread -> its last zap, until its cause is known
        self._batches: dict[int, _Batch] = {}

    def takes(self, name: str) -> bool:
        """Whether events of this name are zaps or tell why."""
        return name == "kvm:kvm_unmap_hva_range" or name.startswith(_MIGRATION) or name in (*_PLACES, *_BATCHES)

    def add(self, raw: Raw) -> str:
        """Take one event; why it is not kept, where it is not (empty: it is)."""
        if raw.name == "kvm:kvm_unmap_hva_range":
            self._zap(raw)
        elif raw.name == f"{_MIGRATION}_start":
            self._batches[raw.tid] = _Batch(raw.fields["reason"])
        elif raw.name == _MIGRATION:
            return self._end_of_batch(raw)
        elif raw.name in _PLACES:
            return self._place(raw)
        else:
            return self._batch_told(raw)
        return ""

    def _zap(self, raw: Raw) -> None:
        start, end = raw.fields["start"], raw.fields["end"]
        self._last[raw.tid] = start, end
        if raw.tid in self._batches:
            self._batches[raw.tid].zapped = True
        self._rows.add(raw, Kind.KVM_UNMAP_HVA_RANGE, addr=start, size=end - start)

    def _end_of_batch(self, raw: Raw) -> str:
        batch = self._batches.pop(raw.tid, None)
        # Without the batch's beginning (before Linux 5.16) a zap just before is all that tells.
        if not (batch.zapped if batch else raw.tid in self._last):
            return _ELSEWHERE
        return self._tell(raw, ZapCause.MIGRATION, value=raw.fields["reason"])

    def _batch_told(self, raw: Raw) -> str:
        cause, field, size = _BATCHES[raw.name]
        if raw.tid not in self._last:
            return _ELSEWHERE
        place = {"addr": raw.fields["addr"]} if "addr" in raw.fields else {}
        return self._tell(raw, cause, value=raw.fields[field], size=size, **place)

    def _place(self, raw: Raw) -> str:
        start, end = self._last.get(raw.tid, (0, 0))
        addr = raw.fields["addr"]
        if not start <= addr < end:
            return _ELSEWHERE
        size = HUGE_PAGE_BYTES if raw.name.startswith("thp:") else mmap.PAGESIZE << (raw.fields.get("order", 0) & 31)
        batch = self._batches.get(raw.tid)
        return self._tell(raw, ZapCause.MIGRATION, addr=addr, size=size, value=batch.reason if batch else -1)

    def _tell(self, raw: Raw, cause: ZapCause, **columns: Any) -> str:
        self._last.pop(raw.tid, None)
        self._rows.add(raw, Kind.MM_CAUSE, code=int(cause), **columns)
        return ""
