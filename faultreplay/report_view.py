"""A comparison as one HTML page: no script, no font, nothing fetched; it may be mailed."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final

from faultreplay import __version__, compare_view
from faultreplay.render import Column, Report, format_cell
from faulttrace.units import format_ns

if TYPE_CHECKING:
    from analysis.compare import Comparison, Row
    from faulttrace.meta import Meta

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d0d7de;--soft:#57606a;--band:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#30363d;--soft:#8d96a0;--band:#161b22}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:76rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}thead th{border-bottom:2px solid var(--line)}
tr.sub td{color:var(--soft)}tr.sub td:first-child{padding-left:1.7rem}tbody tr:hover{background:var(--band)}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}footer{color:var(--soft);margin-top:2rem;font-size:.85rem}
svg{width:100%;max-width:60rem;height:auto}
"""
_USES: Final = (
    Column("mechanism", "mechanism"),
    Column("resource", "resource"),
    Column("servers", "servers", "count"),
    Column("share", "busy", "text"),
    Column("max_queue", "longest queue", "count"),
)
_COSTS: Final = (
    Column("mechanism", "mechanism"),
    Column("cost", "cost"),
    Column("source", "from"),
)


def page(comparison: Comparison, meta: Meta) -> str:
    """The whole document."""
    report = compare_view.report(comparison)
    title = html.escape(report.title)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{html.escape(_where(meta))}</p>",
        "<h2>Stalls by mechanism</h2>",
        _table(report),
        "<h2>Distribution of stalls</h2>",
        _curves(comparison),
        "<h2>What to know about these numbers</h2>",
        "<ul>",
        *(f"<li>{html.escape(note)}</li>" for note in report.notes),
        "</ul>",
        _section("Resources", _USES, _uses(comparison.rows)),
        _section("Costs", _COSTS, _costs(comparison.rows)),
        f"<footer>faultreplay {html.escape(__version__)}</footer>",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _where(meta: Meta) -> str:
    host = meta.host
    facts = [
        f"recorded {meta.clock.start_realtime}" if meta.clock.start_realtime else "",
        f"Linux {host.kernel}" if host.kernel else "",
        host.cpu_model,
        f"{host.cpus} CPUs" if host.cpus else "",
        f"KVM: {host.kvm_flavour}" if host.kvm_flavour != "unknown" else "",
    ]
    return ", ".join(fact for fact in facts if fact) or "recorded on an unknown host"


def _table(report: Report) -> str:
    head = "".join(_head(c) for c in report.columns)
    body = []
    for row in report.records if report.rows is None else report.rows:
        cells = [format_cell(row.get(c.key), c.unit) for c in report.columns]
        sub = ' class="sub"' if cells and cells[0].startswith(" ") else ""
        data = "".join(
            f"<td{_class(c)}>{html.escape(cell.strip())}</td>" for c, cell in zip(report.columns, cells, strict=True)
        )
        body.append(f"<tr{sub}>{data}</tr>")
    rows = "\n".join(body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _head(column: Column) -> str:
    title = html.escape(column.title.replace("-\n", "").replace("\n", " "))
    return f'<th scope="col"{_class(column)}>{title}</th>'


def _class(column: Column) -> str:
    return ' class="text"' if column.unit == "text" else ""


def _section(title: str, columns: tuple[Column, ...], records: list[dict[str, object]]) -> str:
    return f"<h2>{title}</h2>\n{_table(Report(records, columns))}" if records else ""


def _curves(comparison: Comparison) -> str:
    from analysis.svg import Curve, cdf

    recorded = comparison.workload.recorded_stall_ns
    curves = [Curve("measured", recorded[recorded >= 0], dashed=True)]
    for row in comparison.rows:
        stalls = row.result.stall_ns
        if row.mechanism not in ("as-recorded", "ideal"):
            curves.append(Curve(f"{row.mechanism} (p99 {format_ns(row.metrics.p99_ns)})", stalls[stalls >= 0]))
    return cdf(curves)


def _uses(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for row in rows:
        for use in row.metrics.uses:
            share = f"{use.share:.0%}" if use.servers else "-"
            name = {"mechanism": row.mechanism, "resource": use.name}
            found.append({**name, "servers": use.servers or "no limit", "share": share, "max_queue": use.max_queue})
    return found


def _costs(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    return [
        {"mechanism": row.mechanism, "cost": cost, "source": source}
        for row in rows
        for cost, source in sorted(row.costs.items())
    ]
