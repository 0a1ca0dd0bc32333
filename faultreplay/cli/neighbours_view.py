"""Several VMs on one storage device as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from faultreplay.cli.render import Column, Report

if TYPE_CHECKING:
    from faultreplay.analysis.compare.neighbours import Neighbour

COLUMNS: Final = (
    Column("mechanism", "mechanism"),
    Column("trace", "VM"),
    Column("faults", "faults", "count", keep=2),
    Column("alone_startup_ns", "start-up\nalone", "ns", keep=4),
    Column("startup_ns", "start-up\ntogether", "ns", keep=5),
    Column("alone_stall_ns", "total stall\nalone", "ns"),
    Column("stall_ns", "total stall\ntogether", "ns"),
    Column("alone_last_ns", "last touch\nalone", "ns"),
    Column("last_ns", "last touch\ntogether", "ns"),
    Column("device_busy_percent", "device\nbusy", "percent", keep=3),
)
NOTES: Final = (
    "together: all restore from one device at the same time, each from a file of its own (clones that share one file "
    "also find each other's pages in the page cache: not modelled); handlers, locks and prefetchers are each VM's own",
    "all resume when the last has done what it does before (start-up); last touch: until a VM's last first touch, from "
    "the beginning of the restore; costs and storage are those of the first trace",
)


def shared(rows: Sequence[Neighbour]) -> Report:
    """One row a VM and mechanism."""
    records = [row.as_record() | {"device_busy_percent": 100 * row.device_busy} for row in rows]
    ends = [n for n, row in enumerate(rows[:-1]) if rows[n + 1].mechanism != row.mechanism]
    return Report(records=records, columns=COLUMNS, rows=records, rules=frozenset(ends), notes=NOTES)
