"""Columns of stitched faults: meaning, unit, meaning of an empty cell. `docs/trace-format.md` is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

CAUSES: Final = ("missing", "minor", "stage2", "mmio", "exit", "minor-host", "major-host", "write-protect", "window")
"""Why an access faulted; a mechanism file calls it the class of the fault. Files hold the words; arrays hold the
index in this tuple (`Workload.cause`). ``window`` must stay last."""
RESOLUTIONS: Final = (
    "copy",
    "zeropage",
    "continue",
    "move",
    "poison",
    "unprotect",
    "wake",
    "kernel",
    "userspace",
    "none",
)
BACKINGS: Final = ("cache", "disk")
"""Where the page of a mapped file was at the fault."""
ACCESSORS: Final = ("vcpu", "vmm", "kernel")
"""Kinds of threads that touch guest memory. Arrays hold the index in this tuple (`Workload.accessor_kind`)."""


@dataclass(frozen=True)
class FaultColumn:
    """One column of `FAULTS`. `null`: what an empty cell means; empty where the column has none."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    null: str = ""


def _ns(name: str, meaning: str, null: str = "") -> FaultColumn:
    return FaultColumn(name, pa.int64(), meaning, "ns", null)


_UNSEEN: Final = "the end was not seen"
_NO_SCHED: Final = "no switch of that thread was seen"
_NO_QUEUE: Final = "not known when its handling began"
_NO_SERVICE: Final = "not known when its handling began or ended"

FAULT_COLUMNS: Final[tuple[FaultColumn, ...]] = (
    FaultColumn("fault_id", pa.int64(), "number of the fault within the trace"),
    FaultColumn("vm", pa.int32(), "process that owns the memory"),
    FaultColumn("accessor", pa.string(), "who touched: `vcpu`, `vmm` or `kernel`"),
    FaultColumn("tid", pa.int32(), "thread that faulted; 0: not found"),
    FaultColumn("vcpu", pa.int32(), "its vCPU number; -1: not a vCPU, or not known"),
    _ns("start_ns", "the access was stopped"),
    _ns("end_ns", "the accessor went on", "still stalled when the recording ended, or the end was not recorded"),
    _ns("stall_ns", "`end_ns` - `start_ns`", _UNSEEN),
    _ns("think_ns", "from the end of the thread's fault before to this start", "the thread's first fault"),
    _ns("think_asleep_ns", "part of `think_ns`: off the CPU of its own accord", "the thread's first fault"),
    _ns("think_preempted_ns", "part of `think_ns`: off the CPU, wanting one", "the thread's first fault"),
    FaultColumn(
        "page",
        pa.uint64(),
        "start of the granule: a host virtual address where the memory slot is known, else guest physical",
        "address",
    ),
    FaultColumn("granule", pa.int64(), "size of the page; 0: the page is not known, `page` means nothing", "bytes"),
    FaultColumn("access", pa.string(), "`r`, `w` or `x`"),
    FaultColumn("cause", pa.string(), "a word of causes"),
    FaultColumn("resolution", pa.string(), "a word of resolutions"),
    FaultColumn("handler_tid", pa.int32(), "thread that resolved it in userspace; 0: none"),
    _ns("queue_ns", "fault taken until its message was read, or until userspace has it", _NO_QUEUE),
    _ns("read_run_ns", "part of `queue_ns`: the woken handler on its CPU", _NO_SCHED),
    FaultColumn("read_after_tid", pa.int32(), "who had that CPU before; 0: it was idle", "", _NO_SCHED),
    FaultColumn("read_preempts", pa.bool_(), "and was preempted for the handler", "", _NO_SCHED),
    _ns("read_preempted_ns", "part of `queue_ns`: the handler off the CPU, wanting one", _NO_QUEUE),
    _ns("service_ns", "message read, or userspace has it, until the page is placed", _NO_SERVICE),
    _ns("resolve_ns", "part of `service_ns`: in the ioctl that placed the page", "no such ioctl was seen"),
    _ns("wake_ns", "page placed until the accessor is past the fault", "not known when the page was placed"),
    _ns("wake_run_ns", "part of `wake_ns`: the woken accessor on its CPU", _NO_SCHED),
    FaultColumn("wake_after_tid", pa.int32(), "who had that CPU before; 0: it was idle", "", _NO_SCHED),
    FaultColumn("wake_preempts", pa.bool_(), "and was preempted for the accessor", "", _NO_SCHED),
    _ns("offcpu_ns", "part of `stall_ns`: off the CPU", _UNSEEN),
    _ns("preempted_ns", "part of `offcpu_ns`: off the CPU, wanting one", _UNSEEN),
    _ns("service_preempted_ns", "part of `service_ns`: the handler off the CPU, wanting one", _NO_SERVICE),
    FaultColumn(
        "rounds", pa.int32(), "how often the same access faulted before it got past", "", "not a stage-2 fault's exit"
    ),
    FaultColumn("ip", pa.uint64(), "guest instruction pointer of the access", "address", "not recorded"),
    FaultColumn(
        "backing",
        pa.string(),
        "a mapped file's page: `cache`: in the page cache; `disk`: read, or waited for while it was read",
        "",
        "no file's page, or unknown",
    ),
    FaultColumn(
        "copied",
        pa.bool_(),
        "a write to a private mapping of a file: the page was copied",
        "",
        "no write to such a mapping, or unknown",
    ),
    FaultColumn("join", pa.string(), "the markers of start and end, `START/END`; `none`: the end was not found"),
)

FAULTS: Final = pa.schema([pa.field(c.name, c.type, nullable=bool(c.null)) for c in FAULT_COLUMNS])
"""Stitched faults, one row per fault, sorted by (`start_ns`, `tid`)."""
