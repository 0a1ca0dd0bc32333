"""What is known beside a trace: its guest's memory, and what earlier runs of that guest touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faultreplay.analysis.compare.working_sets import alike, load_set
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.workload.guest_memory import guest_memory_of
from faultreplay.replay.workload.working_set import in_order, working_set
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace


def knowledge_of(trace: Trace, workload: Workload, earlier: Sequence[str]) -> Knowledge:
    """The guest's memory as the trace's header has it, and the pages that the traces `earlier` touched.

    Pages of other runs are found by their place in guest memory (`guest_memory.GuestMemory`).

    Raises:
        UsageError: which pages are the same cannot be told, or they have none in common.
    """
    memory = guest_memory_of(trace.meta)
    size = workload.page_bytes
    ranges = tuple((first // size, -(-end // size) - first // size) for first, end, _ in memory.ranges)
    if not earlier:
        return Knowledge(memory=ranges)
    sets = [load_set(open_trace(Path(path))) for path in earlier]
    alike([working_set(trace.name, workload, memory), *sets])
    pages = memory.pages(in_order(sets), size)
    if not pages.size:
        raise UsageError(f"--working-set: no page of {', '.join(earlier)} lies in the guest memory of {trace.path}")
    return Knowledge(pages, ranges)
