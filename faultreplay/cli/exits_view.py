"""`inspect --exits`: guest exits by reason, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultreplay.cli.render import Column, Report

if TYPE_CHECKING:
    from faultreplay.analysis.compare.exits import ExitStatistics


def exits_report(name: str, found: ExitStatistics) -> Report:
    """One row a reason: of all vCPUs, then of each where there are several."""
    columns = [
        Column("vcpu", "vCPU"),
        Column("reason", "exit reason"),
        Column("exits", "exits", "count"),
        Column("total_ns", "total", "ns"),
        Column("share_percent", "share", "percent", keep=5),
        Column("p50_ns", "p50", "ns", keep=4),
        Column("p99_ns", "p99", "ns", keep=5),
        Column("max_ns", "max", "ns"),
        Column("kernel_ns", "kernel", "ns"),
        Column("userspace_ns", "user-\nspace", "ns"),
        Column("to_userspace", "to user-\nspace", "count", keep=2),
        Column("unended", "no\nentry", "count", keep=3),
    ]
    rules = {n for n, (a, b) in enumerate(zip(found.groups, found.groups[1:], strict=False)) if a.vcpu != b.vcpu}
    notes = ["time from kvm_exit to kvm_entry; that of a halted vCPU (HLT, WFx) is the guest's own idling"]
    if any(group.to_userspace for group in found.groups) and not found.runs_told:
        notes.append("time in userspace holds the way back in: calls of KVM_RUN were not recorded")
    if unended := sum(group.unended for group in found.groups if group.vcpu == "all"):
        notes.append(f"{unended:,} exits have no kvm_entry before the thread's next exit: their time is not counted")
    if found.doubled:
        notes.append(f"{found.doubled:,} events stand twice in the trace: counted once")
    records = [group.as_record() for group in found.groups]
    total = sum(group.exits for group in found.groups if group.vcpu == "all")
    return Report(records, columns, f"{name}: {total:,} guest exits", notes, rules=frozenset(rules))
