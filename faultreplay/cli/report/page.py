"""A comparison as one HTML page that may be mailed: the answer first, then pictures, tables, and how it was made."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from faultreplay import __version__
from faultreplay.cli import compare_view
from faultreplay.cli.manners import command_words, without_folder
from faultreplay.cli.render import SPAN, Report
from faultreplay.cli.report import sections
from faultreplay.cli.report.answers import answers
from faultreplay.cli.report.assets import asset, policy
from faultreplay.cli.report.runtime import LICENCE
from faultreplay.cli.report.tables import escape, headed, plain_id, section, table, without_folders
from faultreplay.cli.verdict_view import verdict
from faultreplay.faulttrace.plain_text import plain

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison
    from faultreplay.cli.report.charts import Picture
    from faultreplay.faulttrace.meta import Meta

_FIRST_SAID: Final = 8
"""So many answers stand before what they are worth."""
_LONGEST_LINK: Final = 60
_LESS_ASKED: Final = 3  # `Column.keep`


@dataclass(frozen=True)
class Made:
    """How a page came about, and what else belongs on it."""

    trace_id: str
    runtime: str
    """script of the pictures' library; empty: no pictures"""
    pictures: Sequence[Picture] = ()
    swept: Sequence[Picture] = ()
    """curves along an axis"""
    swept_words: Sequence[str] = ()
    sweep: Report | None = None
    """table of a stored sweep, whose curves are `swept`"""
    qemu: Sequence[Report] = ()
    """what QEMU says of the same migration"""


def page(comparison: Comparison, case: Case, made: Made) -> str:
    """The whole document."""
    comparison = replace(comparison, trace=PurePath(comparison.trace).name)
    meta, report = case.trace.meta, compare_view.report(comparison)
    columns, records = sections.accessors(comparison)
    found = [
        *_main_tables(report),
        *(headed(more.title, table(more, more.title)) for more in report.further),
        *(_picture(picture) for picture in made.pictures),
        section("Stall of each accessor", columns, records),
        _swept(made),
        *(_further(one) for one in ([made.sweep] if made.sweep else [])),
        *(_further(one) for one in made.qemu),
        section("How well the recorded mechanism is reproduced", sections.VALIDATION, sections.judged(comparison)),
        section("Resources", sections.USES, sections.uses(comparison.rows)),
        section(
            "Costs",
            sections.COSTS,
            sections.costs(comparison.rows, case.costs()),
            "Range: the 90 % range of the mean, where the source gives one.",
        ),
        _losses(comparison, meta),
        headed("What to know about these numbers", _list(report.notes)),
        _how(comparison, made),
    ]
    head = [f"<h1>{escape(report.title)}</h1>", f'<p class="soft">{escape(_where(meta))}</p>', _answer(comparison)]
    return _document(report.title, [*head, _contents(found), *found], made)


def _main_tables(report: Report) -> list[str]:
    """The table of `compare`, and its less asked for columns in one of their own: neither is wider than a page."""
    if not report.columns:
        return []
    first = report.columns[0]
    less = [column for column in report.columns if column.keep <= _LESS_ASKED]
    main = replace(report, columns=[column for column in report.columns if column not in less])
    rows = [row for row in report.rows or () if SPAN not in row]
    parts = [headed("Stalls by mechanism", table(main, "Stalls by mechanism"))]
    if less:
        more = replace(report, columns=[first, *less], rows=rows)
        parts.append(headed("More of each mechanism", table(more, "More of each mechanism")))
    return parts


def figures_page(name: str, made: Made) -> str:
    """A page of QEMU's figures alone: there is no recording."""
    title = f"{name}: QEMU's figures, no recording"
    parts = [f"<h1>{escape(title)}</h1>", *(_further(one) for one in made.qemu)]
    return _document(title, [*parts, f"<footer>faultreplay {html.escape(__version__)}</footer>"], made)


def _document(title: str, parts: Sequence[str], made: Made) -> str:
    pictures = (*made.pictures, *made.swept)
    specs = json.dumps({plain_id(picture.name): picture.spec for picture in pictures}, separators=(",", ":"))
    scripts = [made.runtime, asset("page.js")] if pictures else [asset("page.js")]
    whole = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(plain(title))}</title><style>{asset('page.css')}</style></head><body>",
        *(part for part in parts if part),
        # In JSON a less-than sign may stand in strings alone: escaped there, no text can end the element.
        '<script type="application/json" id="pictures">' + specs.replace("<", "\\u003c") + "</script>",
        f"<!--{LICENCE}-->" if pictures else "",
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>",
    ]
    return "\n".join(part for part in whole if part) + "\n"


def _answer(comparison: Comparison) -> str:
    from faultreplay.analysis.compare.judged import Trust

    said, told = answers(comparison), verdict(comparison, alike=False)
    first, *more = [*said[:_FIRST_SAID], *told, *said[_FIRST_SAID:]]
    warn = " warn" if comparison.trust in (Trust.NOT, Trust.UNJUDGED) else ""
    parts = [f'<p class="first">{escape(first)}</p>', *(f"<p>{escape(words)}</p>" for words in more)]
    if any("(" in words for words in said):
        parts.append('<p class="soft">In brackets: the 90 % interval.</p>')
    return f'<div class="answer{warn}">{"".join(parts)}</div>'


def _contents(parts: Sequence[str]) -> str:
    found = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', "\n".join(parts))
    return (
        "<nav>" + "".join(f'<a href="#{anchor}">{title.partition(":")[0]}</a> ' for anchor, title in found) + "</nav>"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(without_folders(line))}</li>" for line in lines) + "\n</ul>"


def _picture(picture: Picture) -> str:
    label = html.escape(plain(picture.title), quote=True)
    return headed(
        picture.title,
        f'<figure><div class="picture" id="picture-{plain_id(picture.name)}" role="img" aria-label="{label}">'
        "<noscript>Pictures need JavaScript; the tables hold the numbers.</noscript></div>"
        f"<figcaption>{escape(picture.words)}</figcaption></figure>",
    )


def _swept(made: Made) -> str:
    drawn = "\n".join(_picture(picture) for picture in made.swept)
    if not made.swept_words:
        return drawn
    lines = _list(made.swept_words)
    return f"{drawn}\n{lines}" if drawn else headed("Where the choice changes", lines)


def _further(report: Report) -> str:
    notes = [note for note in report.notes if not note.startswith("  ")]
    lines = [note for note in report.notes if note.startswith("  ")]
    drawn = html.escape("\n".join(plain(line) for line in lines))
    parts = [
        table(report, report.title) if report.records else "",
        _list(notes),
        f'<div class="wide" tabindex="0"><pre>{drawn}</pre></div>' if lines else "",
    ]
    return headed(report.title, "\n".join(part for part in parts if part))


def _where(meta: Meta) -> str:
    if meta.origin == "synthetic":
        return "a synthetic trace: " + (" ".join(map(without_folder, meta.command)) or "made, not recorded")
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


def _losses(comparison: Comparison, meta: Meta) -> str:
    told = (meta.extra.get("import") or {}).get("losses_told", True)
    if not meta.losses.total:
        words = "No event was lost." if told else "The source does not report whether events were lost."
        return headed("Losses", f"<p>{words} {comparison.events:,} events were kept.</p>")
    words = f"{meta.losses.total:,} events were lost, {comparison.loss_percent:.2g} % of all."
    records = [{"probe": name, "lost": count} for name, count in sorted(meta.losses.by_probe.items())]
    return section("Losses", sections.LOSSES, records, words) or headed("Losses", f"<p>{escape(words)}</p>")


def _how(comparison: Comparison, made: Made) -> str:
    facts = {
        "command": command_words(),
        "version": __version__,
        "seed": str(comparison.seed),
        "trace": comparison.trace,
        "trace id": made.trace_id,
    }
    lines = "".join(f"<dt>{key}</dt><dd><code>{escape(value)}</code></dd>" for key, value in facts.items())
    return headed("How this was made", f"<dl>{lines}</dl>")
