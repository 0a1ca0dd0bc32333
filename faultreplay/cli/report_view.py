"""A comparison as one HTML page: no script, no font, nothing fetched; it may be mailed."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from faultreplay import __version__
from faultreplay.cli import compare_view
from faultreplay.cli.render import SPAN, Column, Report, format_cell
from faultreplay.faulttrace.plain_text import plain
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.faulttrace.meta import Meta

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d0d7de;--soft:#57606a;--band:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#30363d;--soft:#8d96a0;--band:#161b22}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:96rem;margin:2rem auto;
padding:0 1rem}p,ul{max-width:60rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}thead th{border-bottom:2px solid var(--line);
vertical-align:bottom;line-height:1.25}th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
td.long{white-space:normal;min-width:16rem}
tr.sub td{color:var(--soft)}tr.sub td:first-child{padding-left:1.7rem}tbody tr:hover td{background:var(--band)}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}footer{color:var(--soft);margin-top:2rem;font-size:.85rem}
svg{width:100%;min-width:34rem;max-width:60rem;height:auto}
@media print{@page{size:A4 landscape;margin:12mm}html{font-size:11px}
body{font-size:11px;max-width:none;margin:0;padding:0}.wide{overflow:visible}table{font-size:9.5px}
th,td{padding:.15rem .3rem}th:first-child,td:first-child{position:static}
tr,svg{break-inside:avoid}h2{break-after:avoid}
svg{min-width:0;max-width:150mm}}
"""
_USES: Final = (
    Column("mechanism", "mechanism"),
    Column("resource", "resource"),
    Column("servers", "servers", "count"),
    Column("share", "busy", "text"),
    Column("max_queue", "longest queue", "count"),
)
_COSTS: Final = (
    Column("cost", "cost"),
    Column("mean_ns", "mean", "ns"),
    Column("source", "from"),
    Column("mechanisms", "charged by"),
)
_LONG: Final = "mechanisms"


def page(comparison: Comparison, meta: Meta, qemu: Sequence[Report] = ()) -> str:
    """The whole document; `qemu`: what QEMU says of the same migration."""
    report = compare_view.report(comparison)
    title = html.escape(plain(report.title))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{_escape(_where(meta))}</p>",
        *(f"<p>{_escape(words)}</p>" for words in report.lead),
        "<h2>Stalls by mechanism</h2>",
        _table(report),
        *(f"<h2>{html.escape(plain(more.title))}</h2>{_table(more)}" for more in report.further),
        "<h2>Distribution of stalls</h2>",
        _curves(comparison),
        *(_qemu(one) for one in qemu),
        "<h2>What to know about these numbers</h2>",
        "<ul>",
        *(f"<li>{_escape(note)}</li>" for note in report.notes),
        "</ul>",
        _section("Resources", _USES, _uses(comparison.rows)),
        _section("Costs", _COSTS, _costs(comparison.rows)),
        f"<footer>faultreplay {html.escape(__version__)}</footer>",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def figures_page(name: str, qemu: Sequence[Report]) -> str:
    """A page of QEMU's figures alone: there is no recording."""
    title = html.escape(f"{name}: QEMU's figures, no recording")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        *(_qemu(one) for one in qemu),
        f"<footer>faultreplay {html.escape(__version__)}</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _qemu(report: Report) -> str:
    notes = [note for note in report.notes if not note.startswith("  ")]
    lines = [note for note in report.notes if note.startswith("  ")]
    parts = [f"<h2>{html.escape(report.title)}</h2>", _table(report) if report.records else "", "<ul>"]
    parts += [f"<li>{_escape(note)}</li>" for note in notes]
    drawn = html.escape("\n".join(lines))
    parts += ["</ul>", f'<div class="wide"><pre>{drawn}</pre></div>' if lines else ""]
    return "\n".join(parts)


def _escape(words: str) -> str:
    """As text of the page; a number stays on the line of its per cent."""
    return html.escape(plain(words)).replace(" %", "&nbsp;%")


def _where(meta: Meta) -> str:
    if meta.origin == "synthetic":
        return "a synthetic trace: " + (" ".join(meta.command) or "made, not recorded")
    host = meta.host
    facts = [
        f"recorded {_date(meta.clock.start_realtime)}" if meta.clock.start_realtime else "",
        f"Linux {host.kernel}" if host.kernel else "",
        host.cpu_model,
        f"{host.cpus} CPUs" if host.cpus else "",
        f"KVM: {host.kvm_flavour}" if host.kvm_flavour != "unknown" else "",
    ]
    return ", ".join(fact for fact in facts if fact) or "recorded on an unknown host"


def _date(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:  # an imported trace says what its tool said
        return iso


def _table(report: Report) -> str:
    head = "".join(_head(c) for c in report.columns)
    body = []
    for row in report.records if report.rows is None else report.rows:
        if SPAN in row:
            lead, words = str(row[report.columns[0].key]), str(row[SPAN])
            span = f'<td class="text long" colspan="{len(report.columns) - 1}">{html.escape(plain(words))}</td>'
            body.append(f"<tr><td>{html.escape(plain(lead))}</td>{span}</tr>")
            continue
        cells = [format_cell(row.get(c.key), c.unit) for c in report.columns]
        sub = ' class="sub"' if cells and cells[0].startswith(" ") else ""
        data = "".join(
            f"<td{_class(c)}>{html.escape(cell.strip())}</td>" for c, cell in zip(report.columns, cells, strict=True)
        )
        body.append(f"<tr{sub}>{data}</tr>")
    rows = "\n".join(body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _head(column: Column) -> str:
    title = "<br>".join(html.escape(plain(line)) for line in column.title.replace("-\n", "").split("\n"))
    return f'<th scope="col"{_class(column)}>{title}</th>'


def _class(column: Column) -> str:
    if column.unit != "text":
        return ""
    return ' class="text long"' if column.key == _LONG else ' class="text"'


def _section(title: str, columns: tuple[Column, ...], records: list[dict[str, object]]) -> str:
    return f"<h2>{title}</h2>\n{_table(Report(records, columns))}" if records else ""


def _curves(comparison: Comparison) -> str:
    from faultreplay.analysis.compare.svg import Curve, cdf

    recorded = comparison.workload.recorded_stall_ns
    curves = [Curve("measured", recorded[recorded >= 0], dashed=True)]
    for row in comparison.rows:
        stalls = row.result.stall_ns
        if row.mechanism not in ("as-recorded", "ideal"):
            curves.append(Curve(f"{row.mechanism} (p99 {format_ns(row.metrics.p99_ns)})", stalls[stalls >= 0]))
    return f'<div class="wide">{cdf(curves)}</div>'


def _uses(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for row in rows:
        for use in row.metrics.uses:
            share = f"{use.share:.0%}" if use.servers else "-"
            name = {"mechanism": row.mechanism, "resource": use.name}
            found.append({**name, "servers": use.servers or "no limit", "share": share, "max_queue": use.max_queue})
    return found


def _costs(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    charged: dict[tuple[str, float, str], list[str]] = {}
    for row in rows:
        for cost, source in row.costs.items():
            charged.setdefault((cost, row.cost_means_ns[cost], str(source)), []).append(row.mechanism)
    return [
        {"cost": cost, "mean_ns": mean_ns, "source": source, "mechanisms": ", ".join(names)}
        for (cost, mean_ns, source), names in sorted(charged.items())
    ]
