"""The background stream over a link (``[push]``) as the compiled loop takes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine import layout as at
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Program
from faultreplay.replay.workload.pages import Pages, tracked_of
from faultreplay.replay.workload.summary import open_loop
from faultreplay.replay.workload.workload import Ints, Workload


def push_of(
    mechanism: Mechanism, program: Program, pages: Pages, workload: Workload, known: Ints | None
) -> tuple[npt.NDArray[np.int32], Ints]:
    """Granules in the order of the background stream, and the stream: int64[P_COLUMNS].

    `known`: pages that earlier runs touched, in order of first touch, for a stream in recorded order; None: it knows
    this run.

    Raises:
        UsageError: the stream's link has no bandwidth.
    """
    push = mechanism.push
    if push is None:
        return np.zeros(0, np.int32), np.zeros(at.P_COLUMNS, np.int64)
    granule_bytes = mechanism.granule_bytes
    order = pages.order
    if push.order == "recorded" and known is not None:
        key = known // (granule_bytes // workload.page_bytes)
        _, first = np.unique(key, return_index=True)
        found = tracked_of(workload, pages, granule_bytes // workload.page_bytes).at(key[np.sort(first)])
        order = found.astype(np.int32)
    elif push.order == "recorded":
        rows = np.argsort(open_loop(workload)[1], kind="stable")
        # Without a fault on missing content no granule is looked up.
        granules = pages.granule[rows] if pages.granule.size else pages.granule
        granules = granules[granules >= 0]
        order = granules[np.sort(np.unique(granules, return_index=True)[1])]
    total = int(mechanism.value(push.memory)) // granule_bytes
    if total > order.size:
        # memory that the trace never touches is sent too: spread evenly between what it touches
        everything = np.full(total, -1, np.int32)
        everything[np.arange(order.size, dtype=np.int64) * total // max(order.size, 1)] = order
        order = everything
    link, ns = program.link_ns[push.link]
    if ns == 0:
        raise UsageError(f"{mechanism.name}: a background stream needs a link with a bandwidth")
    stream = np.zeros(at.P_COLUMNS, np.int64)
    stream[at.P_LINK], stream[at.P_ON_LINK], stream[at.P_BYTES] = link, ns, granule_bytes
    stream[at.P_PLACED] = program.push_latency_ns
    stream[at.P_BACKLOG] = int(mechanism.value(push.backlog)) * ns // granule_bytes
    return np.ascontiguousarray(order, dtype=np.int32), stream
