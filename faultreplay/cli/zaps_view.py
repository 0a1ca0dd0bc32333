"""Guest memory taken away: by whom, how often and why, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.units import format_bytes

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.stitch.zap_groups import ZapGroup

_PROBE = "kvm:kvm_unmap_hva_range"


def zap_lines(zaps: Sequence[ZapGroup]) -> list[str]:
    """Lines to stand under the table of faults."""
    if not zaps:
        return []
    lines = ["", "guest memory taken away (zaps by mmu notifiers; --zaps says more):"]
    for group in zaps:
        lines.append(f"  {_what(group):<28} {group.zaps:>9,} {format_bytes(group.size_bytes):>10}  by {group.by}")
    return lines


def zaps_report(name: str, zaps: Sequence[ZapGroup], meta: Meta, duration_ns: int) -> Report:
    """One row for each cause and each kind of thread."""
    from faultreplay.faulttrace.schema import ZAP_MEANINGS, ZapCause

    columns = [
        Column("cause", "why"),
        Column("detail", "reason", keep=7),
        Column("by", "by"),
        Column("zaps", "zaps", "count"),
        Column("per_s", "per s", "text", keep=6),
        Column("size_bytes", "bytes", "bytes"),
        Column("sizes", "sizes", keep=4),
        Column("ranges", "ranges", "count", keep=5),
        Column("most_often", "one range,\nat most", "count", keep=5),
    ]
    records = [
        {
            "cause": group.cause,
            "detail": group.detail,
            "by": group.by,
            "tids": " ".join(map(str, group.tids)),
            "zaps": group.zaps,
            "per_s": f"{group.zaps * 1e9 / duration_ns:.3g}" if duration_ns else "",
            "size_bytes": group.size_bytes,
            "sizes": ", ".join(f"{format_bytes(size)} x{count:,}" for size, count in group.sizes),
            "ranges": group.ranges,
            "most_often": group.most_often,
        }
        for group in zaps
    ]
    meanings = {cause.label: text for cause, text in ZAP_MEANINGS.items()}
    notes = [f"{cause}: {meanings[cause]}" for cause in dict.fromkeys(group.cause for group in zaps)]
    recorded = any(probe.name == _PROBE and probe.status == "attached" for probe in meta.probes)
    if not zaps:
        unknown = f"whether memory was taken away is not known: {_PROBE} was not recorded"
        notes.append("no guest memory was taken away while it was recorded" if recorded else unknown)
    if any(group.cause == ZapCause.UNKNOWN.label for group in zaps):
        notes.append(
            "record migrate:*, ksm:*, vmscan:*, huge_memory:* and the system calls of the VMM to know more causes"
        )
    total = sum(group.zaps for group in zaps)
    return Report(records, columns, f"{name}: guest memory taken away {total:,} times", notes)


def _what(group: ZapGroup) -> str:
    return f"{group.cause} ({group.detail})" if group.detail else group.cause
