"""QEMU's own post-copy figures beside the stitched stalls, for people."""

from __future__ import annotations

from dataclasses import asdict

from faultreplay.analysis.judge.qemu import blocktimes, explanation, latency
from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.store import Trace

_COLUMNS = (
    Column("vcpu", "vCPU"),
    Column("faults", "faults", "count", keep=8),
    Column("stall_ns", "stall", "ns"),
    Column("queue_ns", "queue", "ns", keep=7),
    Column("service_ns", "service", "ns"),
    Column("wake_ns", "wake", "ns", keep=7),
    Column("pushed_ns", "pushed", "ns", keep=6),
    Column("qemu_ns", "QEMU", "ns"),
)


def beside(trace: Trace) -> Report | None:
    """The table and what explains the difference; None where the trace holds no figures of QEMU's destination."""
    destination = (trace.meta.extra.get("qemu") or {}).get("destination") or {}
    if "postcopy-blocktime" not in destination or not trace.meta.extra["qemu"].get("vcpus"):
        return None
    rows = blocktimes(trace)
    records = [{**asdict(row), "vcpu": "all at once" if row.vcpu < 0 else str(row.vcpu)} for row in rows]
    notes = [
        "QEMU counts from message read to page placed (service); a stall also holds what is before and after:",
        *explanation(rows),
    ]
    if extra := latency(trace):
        notes.append(f"QEMU's own latency figures: {extra}")
    return Report(records, _COLUMNS, title="stitched stalls beside QEMU's blocktime, a lower bound", notes=notes)
