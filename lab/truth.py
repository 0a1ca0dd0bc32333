"""From the accessors' logs to truth: TSC to CLOCK_MONOTONIC, rows of `TRUTH`, and whether memory holds what it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.faulttrace.schema import TRUTH
from faultreplay.lab.lists import OP_RMW, OP_WRITE, AccessList
from faultreplay.lab.spec import PAGE_BYTES

Ints = npt.NDArray[np.int64]

LOG = np.dtype([("t0", "<u8"), ("t1", "<u8"), ("value", "<u8")])
SERVICE = np.dtype(
    [("page", "<u8"), ("t_msg", "<u8"), ("t_fetched", "<u8"), ("t_placed", "<u8"),
     ("faulter_tid", "<u4"), ("handler_tid", "<u4"), ("result", "<i8")]
)  # fmt: skip
PAGES = np.dtype([("present", "<u8"), ("number", "<u8"), ("written", "<u8"), ("counted", "<u8"), ("changed", "<u8")])
WAITS_FOR_THAW = 1  # SERVICE.result of a write that met a frozen page
_OP_MASK = 3
_ACCESS = np.array(["r", "w", "w"])  # what the memory system sees of a read-modify-write is a write


class Clock:
    """TSC to CLOCK_MONOTONIC: a line through the pairs at both ends of the run.

    `error_ns` bounds it: half the widest bracket plus the largest distance of a pair inside the run from the line.
    """

    def __init__(self, pairs: list[list[int]], at_each_end: int = 4) -> None:
        first = min(pairs[:at_each_end], key=lambda pair: pair[2])
        last = min(pairs[-at_each_end:], key=lambda pair: pair[2])
        self.tsc0, self.ns0 = first[0], first[1]
        self.ns_per_tick = (last[1] - first[1]) / (last[0] - first[0])
        residuals = [abs(self.to_ns(np.array([tsc], dtype=np.uint64))[0] - ns) for tsc, ns, _ in pairs]
        self.error_ns = float(max(residuals)) + max(pair[2] for pair in (first, last)) * self.ns_per_tick

    def to_ns(self, tsc: npt.NDArray[np.uint64]) -> Ints:
        """Whole ns of CLOCK_MONOTONIC."""
        ticks = (tsc - np.uint64(self.tsc0)).astype(np.int64)  # wraps to negative before the first pair
        ns: Ints = self.ns0 + np.rint(ticks * self.ns_per_tick).astype(np.int64)
        return ns


def read_log(work: Path, index: int) -> npt.NDArray[np.void]:
    """Rows of the accesses that ended."""
    log = np.fromfile(work / f"log-{index}.bin", dtype=LOG)
    return log[: int(np.count_nonzero(log["t1"]))]


def truth_table(
    work: Path, lists: list[AccessList], facts: dict[str, Any], clock: Clock, guest_offsets: list[int]
) -> pa.Table:
    """Rows of `TRUTH`, sorted by accessor and sequence."""
    threads = [t for t in facts["threads"] if t["index"] >= 0 and t["role"] != "handler" and t["tid"] != facts["pid"]]
    is_guest = bool(facts["data_gpa"])
    tables = []
    for index, (accesses, thread) in enumerate(zip(lists, threads, strict=True)):
        log = read_log(work, index)
        rows = len(log)
        offset = np.uint64(guest_offsets[index] % (1 << 64))
        columns = {
            "accessor": ["vcpu" if is_guest else "vmm"] * rows,
            "tid": np.full(rows, thread["tid"]),
            "vcpu": np.full(rows, index if is_guest else -1),
            "seq": np.arange(rows),
            "page": accesses.page[:rows].astype(np.uint64) * np.uint64(PAGE_BYTES) + np.uint64(facts["data_hva"]),
            "access": _ACCESS[accesses.op[:rows] & _OP_MASK],
            "start_ns": clock.to_ns(log["t0"] - offset),
            "end_ns": clock.to_ns(log["t1"] - offset),
        }
        tables.append(pa.table(columns).cast(TRUTH))
    return pa.concat_tables(tables)


def read_services(work: Path, clock: Clock, files: str = "service-*.bin") -> npt.NDArray[np.void]:
    """All resolutions, sorted by when the message was taken; times in ns of CLOCK_MONOTONIC.

    `files`: ``prefetch-*.bin`` is what was placed without a waiter.
    """
    logs = [np.fromfile(path, dtype=SERVICE) for path in sorted(work.glob(files))]
    rows = np.concatenate(logs) if logs else np.zeros(0, dtype=SERVICE)
    out = np.zeros(len(rows), dtype=[("page", "i8"), ("msg_ns", "i8"), ("fetched_ns", "i8"), ("placed_ns", "i8"),
                                     ("faulter", "i4"), ("handler", "i4"), ("result", "i8")])  # fmt: skip
    out["page"], out["faulter"], out["handler"] = rows["page"], rows["faulter_tid"], rows["handler_tid"]
    out["result"] = rows["result"]
    for name in ("msg", "fetched", "placed"):
        out[f"{name}_ns"] = clock.to_ns(rows[f"t_{name}"])
    return out[np.argsort(out["msg_ns"], kind="stable")]


def verify(work: Path, lists: list[AccessList], *, zero_filled: bool, atomic: bool) -> dict[str, int]:
    """Compare memory and what was read with what must be there; counts of pages and of errors.

    Args:
        work: where the program left its files.
        lists: what was done.
        zero_filled: fresh pages hold zeros, not their number.
        atomic: read-modify-writes of several accessors may not get lost (they may across a memslot-destroy).
    """
    pages = np.fromfile(work / "pages.bin", dtype=PAGES)
    present = pages["present"] == 1
    number = np.zeros(len(pages), dtype=np.uint64) if zero_filled else np.arange(len(pages), dtype=np.uint64)
    counted = np.zeros(len(pages), dtype=np.int64)
    last_writes: list[Ints] = []
    touched = np.zeros(len(pages), dtype=bool)
    wrong_values = 0
    for index, accesses in enumerate(lists):
        log = read_log(work, index)
        page, op = accesses.page[: len(log)], accesses.op[: len(log)]
        kind = op & _OP_MASK
        touched[page] = True
        np.add.at(counted, page[kind == OP_RMW], 1)
        last = np.zeros(len(pages), dtype=np.int64)
        last[page[kind == OP_WRITE]] = op[kind == OP_WRITE]  # numpy keeps the last of repeated indices
        last_writes.append(last)
        wrong_values += int(np.count_nonzero(log["value"][kind == 0] != number[page[kind == 0]]))
        wrong_values += int(np.count_nonzero(log["value"][kind == OP_WRITE] != op[kind == OP_WRITE].astype(np.uint64)))
    written = pages["written"].astype(np.int64)
    from_a_writer = np.any([written == last for last in last_writes], axis=0)
    any_writer = np.any([last != 0 for last in last_writes], axis=0)
    wrong_write = np.where(any_writer, ~from_a_writer | (written == 0), written != 0)
    wrong_count = pages["counted"].astype(np.int64) != counted
    return {
        "pages_touched": int(touched.sum()),
        "pages_present": int(present.sum()),
        "absent": int((touched & ~present).sum()),
        "wrong_content": int((present & ((pages["number"] != number) | (pages["changed"] != 0))).sum()),
        "wrong_values": wrong_values,
        "lost_writes": int((present & wrong_write).sum()),
        "lost_updates": int((present & wrong_count).sum()) if atomic else 0,
    }
