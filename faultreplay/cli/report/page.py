"""A comparison as one HTML page that may be mailed: the answer first, then pictures, tables, and how it was made."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from faultreplay import __version__
from faultreplay.cli import compare_view
from faultreplay.cli.render import Column, Report
from faultreplay.cli.report.answers import answers
from faultreplay.cli.report.assets import POLICY, SCRIPT, STYLE
from faultreplay.cli.report.tables import escape, section, table
from faultreplay.cli.verdict_view import verdict
from faultreplay.faulttrace.plain_text import plain

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.cli.report.charts import Picture
    from faultreplay.faulttrace.meta import Meta

_USES: Final = (
    Column("mechanism", "mechanism"),
    Column("resource", "resource"),
    Column("servers", "servers", "count"),
    Column("share", "busy", "percent"),
    Column("max_queue", "longest queue", "count"),
)
_COSTS: Final = (
    Column("cost", "cost"),
    Column("mean_ns", "mean", "ns"),
    Column("source", "from"),
    Column("mechanisms", "charged by"),
)
_PER_VCPU: Final = Column("accessor", "accessor")
_VALIDATION: Final = (
    Column("what", "the recorded mechanism"),
    Column("faults", "faults", "count"),
    Column("predicted_ns", "predicted\nstall", "ns"),
    Column("measured_ns", "measured\nstall", "ns"),
    Column("total", "error", "error"),
    Column("low", "95 %\nfrom", "error"),
    Column("high", "\nto", "error"),
    Column("p50", "p50", "error"),
    Column("p90", "p90", "error"),
    Column("p99", "p99", "error"),
)
_LOSSES: Final = (Column("probe", "probe"), Column("lost", "lost events", "count"))


@dataclass(frozen=True)
class Made:
    """How a page came about, and what else belongs on it."""

    trace_id: str
    runtime: str
    """script of the pictures' library"""
    pictures: Sequence[Picture] = ()
    qemu: Sequence[Report] = ()
    """what QEMU says of the same migration"""
    swept: Sequence[Report] = ()
    swept_words: Sequence[str] = field(default_factory=tuple)


def page(comparison: Comparison, meta: Meta, made: Made) -> str:
    """The whole document."""
    comparison = replace(comparison, trace=PurePath(comparison.trace).name)
    report = compare_view.report(comparison)
    found = [
        _section("Stalls by mechanism", table(report, "Stalls by mechanism")),
        *(_section(more.title, table(more, more.title)) for more in report.further),
        *(_picture(picture) for picture in made.pictures),
        section("Stall of each accessor", *_accessors(comparison)),
        _swept(made),
        *(_qemu(one) for one in made.qemu),
        section("How well the recorded mechanism is reproduced", _VALIDATION, _judged(comparison)),
        section("Resources", _USES, _uses(comparison.rows)),
        section("Costs", _COSTS, _costs(comparison.rows), "Where each comes from stands beside it."),
        _losses(comparison, meta),
        "<h2>What to know about these numbers</h2>",
        "<ul>",
        *(f"<li>{escape(note)}</li>" for note in report.notes),
        "</ul>",
        _how(comparison, made),
    ]
    head = [f"<h1>{escape(report.title)}</h1>", f'<p class="soft">{escape(_where(meta))}</p>', _answer(comparison)]
    return _document(report.title, [*head, *found], made)


def figures_page(name: str, made: Made) -> str:
    """A page of QEMU's figures alone: there is no recording."""
    title = f"{name}: QEMU's figures, no recording"
    parts = [f"<h1>{escape(title)}</h1>", *(_qemu(one) for one in made.qemu)]
    return _document(title, [*parts, f"<footer>faultreplay {html.escape(__version__)}</footer>"], made)


def _document(title: str, parts: Sequence[str], made: Made) -> str:
    pictures = json.dumps({picture.name: picture.spec for picture in made.pictures}, separators=(",", ":"))
    whole = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(plain(title))}</title><style>{STYLE}</style></head><body>",
        *(part for part in parts if part),
        # In JSON a less-than sign may stand in strings alone: escaped there, no text can end the element.
        '<script type="application/json" id="pictures">' + pictures.replace("<", "\\u003c") + "</script>",
        f"<script>{made.runtime}</script>" if made.pictures else "",
        f"<script>{SCRIPT}</script>",
        "</body></html>",
    ]
    return "\n".join(part for part in whole if part) + "\n"


def _answer(comparison: Comparison) -> str:
    from faultreplay.analysis.compare.judged import Trust

    said = answers(comparison)
    first = f'<p class="first">{escape(said[0])}</p>' if said else ""
    warn = " warn" if comparison.trust in (Trust.NOT, Trust.UNJUDGED) else ""
    parts = [first, *(f"<p>{escape(words)}</p>" for words in (*said[1:], *verdict(comparison)))]
    return f'<div class="answer{warn}">{"".join(parts)}</div>'


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _picture(picture: Picture) -> str:
    label = html.escape(plain(picture.title), quote=True)
    return (
        f"<h2>{escape(picture.title)}</h2>\n<figure>"
        f'<div class="picture" id="picture-{picture.name}" role="img" aria-label="{label}">'
        "<noscript>Pictures need JavaScript; the tables hold the numbers.</noscript></div>"
        f"<figcaption>{escape(picture.words)}</figcaption></figure>"
    )


def _swept(made: Made) -> str:
    if not made.swept and not made.swept_words:
        return ""
    lines = "".join(f"<li>{escape(words)}</li>" for words in made.swept_words)
    tables = "\n".join(table(one, one.title) for one in made.swept)
    return f"<h2>Where the choice changes</h2>\n<ul>{lines}</ul>\n{tables}"


def _qemu(report: Report) -> str:
    notes = [note for note in report.notes if not note.startswith("  ")]
    lines = [note for note in report.notes if note.startswith("  ")]
    parts = [f"<h2>{escape(report.title)}</h2>", table(report, report.title) if report.records else "", "<ul>"]
    parts += [f"<li>{escape(note)}</li>" for note in notes]
    drawn = html.escape("\n".join(plain(line) for line in lines))
    parts += ["</ul>", f'<div class="wide" tabindex="0"><pre>{drawn}</pre></div>' if lines else ""]
    return "\n".join(parts)


def _where(meta: Meta) -> str:
    if meta.origin == "synthetic":
        return "a synthetic trace: " + (" ".join(map(_name, meta.command)) or "made, not recorded")
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


def _name(word: str) -> str:
    """An argument without the folders of a path: whose they are is nobody's business who gets the page."""
    return PurePath(word).name if word.startswith("/") else word


def _accessors(comparison: Comparison) -> tuple[Sequence[Column], list[dict[str, object]]]:
    import numpy as np

    workload = comparison.workload
    columns = [_PER_VCPU]
    records: list[dict[str, object]] = [{"accessor": name} for name in workload.accessor_name]
    if workload.measured:
        stall = np.zeros(workload.accessors, dtype=np.int64)
        np.add.at(stall, workload.accessor_of_row(), np.maximum(workload.recorded_stall_ns, 0))
        columns.append(Column("measured", "measured", "ns"))
        for record, ns in zip(records, stall, strict=True):
            record["measured"] = int(ns)
    for row in comparison.rows:
        if row.mechanism not in ("as-recorded", "ideal"):
            columns.append(Column(f"by:{row.mechanism}", row.mechanism, "ns"))
            whole = row.result.accessor_stall_ns + row.result.window_stall_ns
            for record, ns in zip(records, whole, strict=True):
                record[f"by:{row.mechanism}"] = int(ns)
    return columns, records


def _uses(rows: Sequence[Row]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for row in rows:
        for use in row.metrics.uses:
            share = 100 * use.share if use.servers else None
            name = {"mechanism": row.mechanism, "resource": use.name}
            found.append({**name, "servers": use.servers or "no limit", "share": share, "max_queue": use.max_queue})
    return found


def _costs(rows: Sequence[Row]) -> list[dict[str, object]]:
    charged: dict[tuple[str, float, str], list[str]] = {}
    for row in rows:
        for cost, source in row.costs.items():
            charged.setdefault((cost, row.cost_means_ns[cost], str(source)), []).append(row.mechanism)
    return [
        {"cost": cost, "mean_ns": mean_ns, "source": source, "mechanisms": ", ".join(names)}
        for (cost, mean_ns, source), names in sorted(charged.items())
    ]


def _judged(comparison: Comparison) -> list[dict[str, object]]:
    judged = comparison.judged
    if judged is None:
        return []
    found = []
    named = (
        ("held out: costs from other tenths of the recording", judged.held_out),
        ("its second half, costs from the first", judged.over_time),
    )
    for what, one in named:
        if one is not None:
            found.append(
                {
                    "what": what,
                    "faults": one.faults,
                    "predicted_ns": one.predicted_total_ns,
                    "measured_ns": one.measured_total_ns,
                    "low": one.total.low,
                    "high": one.total.high,
                    **{key: getattr(one.errors, key) for key in ("total", "p50", "p90", "p99")},
                }
            )
    inside = judged.in_sample
    found.append(
        {"what": "in sample: costs from all of it", "faults": judged.rows}
        | {key: getattr(inside, key) for key in ("total", "p50", "p90", "p99")}
    )
    return found


def _losses(comparison: Comparison, meta: Meta) -> str:
    told = (meta.extra.get("import") or {}).get("losses_told", True)
    if not meta.losses.total:
        words = "No event was lost." if told else "The source does not tell whether events were lost."
        return f"<h2>Losses</h2>\n<p>{words} {comparison.events:,} events were kept.</p>"
    words = f"{meta.losses.total:,} events were lost, {comparison.loss_percent:.2g} % of all."
    records = [{"probe": name, "lost": count} for name, count in sorted(meta.losses.by_probe.items())]
    return section("Losses", _LOSSES, records, words) or f"<h2>Losses</h2>\n<p>{escape(words)}</p>"


def _how(comparison: Comparison, made: Made) -> str:
    facts = {
        "command": " ".join(["faultreplay", *map(_name, sys.argv[1:])]),
        "version": __version__,
        "seed": str(comparison.seed),
        "trace": comparison.trace,
        "trace id": made.trace_id,
    }
    lines = "".join(f"<dt>{key}</dt><dd><code>{escape(value)}</code></dd>" for key, value in facts.items())
    return f"<h2>How this was made</h2>\n<dl>{lines}</dl>"
