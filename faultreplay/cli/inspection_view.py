"""What `inspect` says of a whole trace, from an inspection: for people, and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.header_view import facts_of
from faultreplay.cli.joins_view import join_lines
from faultreplay.cli.render import Column, Report
from faultreplay.cli.zaps_view import zap_lines
from faultreplay.faulttrace.units import format_bytes, format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.inspection import Inspection

_BAR: Final = 40


def data_report(inspection: Inspection) -> Report:
    """One record a group of faults; JSON also carries all the rest."""
    from dataclasses import asdict

    meta = inspection.meta
    report = {key: value for key, value in asdict(inspection.report).items() if not key.startswith("_")}
    extra: dict[str, Any] = {
        "trace": inspection.name,
        "events": inspection.events,
        "size_bytes": inspection.size_bytes,
        "duration_ns": inspection.duration_ns,
        "kinds": dict(inspection.kinds),
        "stitch": report,
        "histogram": [asdict(bucket) for bucket in inspection.histogram],
        "windows": [asdict(window) for window in inspection.windows],
        "zaps": [asdict(group) for group in inspection.zaps],
    }
    whole = asdict(meta)
    extra |= {key: whole[key] for key in ("origin", "host", "clock", "command", "mechanism", "targets", "probes")}
    extra |= {key: whole[key] for key in ("losses", "recorder", "lab", "complete")}
    extra["told_windows"] = whole["windows"]
    extra["import"] = meta.extra.get("import")
    columns = [
        Column("cause", "cause"),
        Column("resolution", "resolved by"),
        Column("accessor", "accessor"),
        *(Column(key, key, "count") for key in ("faults", "joined", "unjoined")),
        *(Column(f"stall_{q}_ns", f"stall {q}", "ns") for q in ("total", "p50", "p90", "p99", "max")),
        *(Column(f"{s}_p50_ns", f"{s} p50", "ns") for s in ("queue", "service", "resolve", "wake")),
    ]
    records = [group.as_record() for group in inspection.groups]
    return Report(records, columns, _title(inspection), _facts_as_notes(inspection), extra=extra)


def whole_report(inspection: Inspection, *, with_events: bool) -> Report:
    """The table of faults; facts, histogram and joins stand under it."""
    from faultreplay.analysis.compare.known import why_no_faults

    columns = [
        Column("what", "faults"),
        Column("faults", "n", "count"),
        Column("unjoined", "un-\njoined", "count"),
        Column("p50", "p50", "ns"),
        Column("p90", "p90", "ns", keep=5),
        Column("p99", "p99", "ns"),
        Column("max", "max", "ns", keep=6),
        Column("total", "total", "ns", keep=7),
    ]
    rows: list[dict[str, Any]] = []
    rules = set()
    for group in inspection.groups:
        what = f"{group.cause}, {group.resolution}" if group.resolution != "none" else group.cause
        row: dict[str, Any] = {
            "what": what if group.accessor == "vcpu" else f"{what} ({group.accessor})",
            "faults": group.faults,
            "unjoined": group.faults - group.joined,
        }
        if group.stall.n:
            stall = group.stall
            row |= {"p50": stall.p50_ns, "p90": stall.p90_ns, "p99": stall.p99_ns}
            row |= {"max": stall.max_ns, "total": stall.total_ns}
        rows.append(row)
        for name, stage in (
            ("queue", "queue"),
            ("service", "service"),
            ("  of it the ioctl", "resolve"),
            ("wake", "wake"),
        ):
            spent = group.stages[stage]
            if spent.n:
                rows.append(
                    {"what": f"  {name}", "p50": spent.p50_ns, "p90": spent.p90_ns, "p99": spent.p99_ns}
                    | {"max": spent.max_ns, "total": spent.total_ns, "faults": None, "unjoined": None}
                )
        rules.add(len(rows) - 1)
    for row in rows:
        for key in ("faults", "unjoined"):
            if row.get(key) is None:
                row[key] = ""
    joins = join_lines(inspection.report)
    if not inspection.faults and not joins:
        joins = [why_no_faults(inspection.meta)]
    notes = [*_facts_as_notes(inspection), "", *_histogram(inspection), *joins, *zap_lines(inspection.zaps)]
    if with_events:
        notes += ["", "events:", *(f"  {name:<24} {count:>12,}" for name, count in inspection.kinds.items())]
    return Report(
        [group.as_record() for group in inspection.groups],
        columns,
        _title(inspection),
        notes,
        rows=rows,
        rules=frozenset(rules),
    )


def _title(inspection: Inspection) -> str:
    return (
        f"{inspection.path}: {inspection.faults:,} faults, {inspection.events:,} events "
        f"in {format_ns(inspection.duration_ns)} ({format_bytes(inspection.size_bytes)})"
    )


def _facts_as_notes(inspection: Inspection) -> list[str]:
    return [*inspection.notes, *facts_of(inspection.meta, inspection.duration_ns, inspection.windows)]


def _histogram(inspection: Inspection) -> list[str]:
    if not inspection.histogram:
        return []
    most = max(bucket.faults for bucket in inspection.histogram)
    lines = ["stalls:"]
    for bucket in inspection.histogram:
        # A bar is never empty where there is something.
        length = -(-bucket.faults * _BAR // most)
        edges = f"{format_ns(bucket.from_ns):>8} - {format_ns(bucket.until_ns):<8}"
        lines.append(f"  {edges} {bucket.faults:>9,} {'#' * length}".rstrip())
    return [*lines, ""]
