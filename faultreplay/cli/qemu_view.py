"""QEMU's own figures of a migration, and the stitched stalls beside them, for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.units import format_bytes, format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.judge.qemu_figures import Answer
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace

_BESIDE = (
    Column("vcpu", "vCPU"),
    Column("faults", "faults", "count", keep=8),
    Column("stall_ns", "stall", "ns"),
    Column("queue_ns", "queue", "ns", keep=7),
    Column("service_ns", "service", "ns"),
    Column("wake_ns", "wake", "ns", keep=7),
    Column("pushed_ns", "pushed", "ns", keep=6),
    Column("qemu_ns", "QEMU", "ns"),
)
_FIGURES = (
    Column("vcpu", "vCPU"),
    Column("blocktime_ns", "blocktime", "ns"),
    Column("latency_ns", "mean latency", "ns"),
)
_NAMES = {-1: "all", -2: "not vCPUs"}
_BAR = 30


def qemu_reports(trace: Trace) -> list[Report]:
    """What there is of QEMU in the trace: its own figures, then the stitched stalls beside its blocktime."""
    found = [figures(trace.meta), beside(trace) if trace.event_rows else None]
    return [report for report in found if report is not None]


def figures(meta: Meta) -> Report | None:
    """QEMU's figures by themselves; None where the trace holds no answer of query-migrate."""
    from faultreplay.analysis.judge.qemu_figures import answers, vcpu_figures

    told = answers(meta)
    if not told:
        return None
    records = [{**asdict(row), "vcpu": _NAMES.get(row.vcpu, str(row.vcpu))} for row in vcpu_figures(meta)]
    notes = [_words(answer) for answer in told]
    if records:
        notes.append(
            "blocktime counts from message read to page placed, in whole milliseconds: a lower bound of the stall "
            "(docs/hosts.md); all: while every vCPU was blocked at once, latency of all faults"
        )
    else:
        notes.append("no blocktime: turn on postcopy-blocktime at the destination and take its answer there")
    return Report(records, _FIGURES if records else (), "QEMU's own figures", [*notes, *_distribution(meta)])


def beside(trace: Trace) -> Report | None:
    """The table and what explains the difference; None where the trace holds no figures of QEMU's destination."""
    from faultreplay.analysis.judge.qemu import blocktimes, explanation

    destination = (trace.meta.extra.get("qemu") or {}).get("destination") or {}
    if "postcopy-blocktime" not in destination or not trace.meta.extra["qemu"].get("vcpus"):
        return None
    rows = blocktimes(trace)
    records = [{**asdict(row), "vcpu": "all at once" if row.vcpu < 0 else str(row.vcpu)} for row in rows]
    notes = [
        "QEMU counts from message read to page placed (service); a stall also holds what is before and after:",
        *explanation(rows),
    ]
    return Report(records, _BESIDE, title="stitched stalls beside QEMU's blocktime, a lower bound", notes=notes)


def _words(answer: Answer) -> str:
    """One line on an answer: its side, how the migration ended, its counters."""
    format_ = {"ms": lambda v: format_ns(v * 1_000_000), "count": lambda v: f"{v:,}", "bytes": format_bytes}
    counters = [f"{words} {format_[unit](value)}" for words, value, unit in answer.counters]
    if answer.status in ("failed", "cancelled"):
        state = f"the migration {'failed' if answer.status == 'failed' else 'was cancelled'}"
        state += f" ({answer.error})" if answer.error else ""
    else:
        state = answer.status if answer.finished else f"{answer.status}: taken before the end, figures up to then"
    return f"{answer.side}: {'; '.join([state, *counters])}"


def _distribution(meta: Meta) -> list[str]:
    from faultreplay.analysis.judge.qemu_figures import latencies

    dist = latencies(meta)
    if dist is None or not dist.total:
        return []
    most = max(dist.counts)
    used = [bucket for bucket, count in enumerate(dist.counts) if count]
    lines = [f"latencies of {dist.total:,} faults, by QEMU (share: up to the end of the line's range):"]
    for bucket in range(used[0], used[-1] + 1):
        count = dist.counts[bucket]
        start, end = (format_ns(edge) for edge in dist.edges_ns(bucket))
        bar = "#" * -(-count * _BAR // most)
        lines.append(f"  {start:>8} - {end:<8} {count:>9,} {dist.share_below(bucket + 1):>6.1%} {bar}".rstrip())
    return lines
