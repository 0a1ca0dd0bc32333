"""Pages of the site that are made from code and data when it is built (mkdocs-gen-files runs this)."""

from __future__ import annotations

import sys
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from commands import commands, help_of  # noqa: E402
from ladder import ladder  # noqa: E402

from faultreplay.cli.models_view import stream_words, used_costs  # noqa: E402
from faultreplay.faulttrace.schema import ACCESSORS  # noqa: E402
from faultreplay.faulttrace.units import format_bytes, format_ns  # noqa: E402
from faultreplay.replay.engine.windows import window_words  # noqa: E402
from faultreplay.replay.language.costs import CostTable, load_costs  # noqa: E402
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism  # noqa: E402
from faultreplay.replay.language.names import COST_NAMES  # noqa: E402


def main() -> None:
    """Mechanisms, command line, samples, changes."""
    costs = load_costs()
    mechanisms = [load_mechanism(name) for name in list_mechanisms()]
    write("mechanisms/index.md", index(mechanisms))
    for mechanism in mechanisms:
        write(f"mechanisms/{mechanism.name}.md", page(mechanism, costs))
    write("cli.md", command_line())
    for source, target in (("sample-traces/README.md", "samples.md"), ("CHANGELOG.md", "changelog.md")):
        write(target, (ROOT / source).read_text(encoding="utf-8"))


def write(name: str, text: str) -> None:
    """One page of the site."""
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)


def index(mechanisms: list[Mechanism]) -> str:
    """The table of all of them."""
    lines = [
        "# Mechanisms",
        "",
        "Each is a TOML file in `replay/mechanisms/`, drawn here from that file. Your own is used in the same way:",
        "[write a mechanism](../howto/own-mechanism.md).",
        "",
        "| mechanism | stands for | upstream | serves |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| [{m.name}]({m.name}.md) | {cell(m.title)} | {cell(str(m.status))} | {', '.join(m.serves)} |"
        for m in mechanisms
    ]
    return "\n".join([*lines, ""])


def page(mechanism: Mechanism, costs: CostTable) -> str:
    """One mechanism: what it is, how far upstream, its ladder, parameters, costs, limits, sources."""
    told = f" Source: {mechanism.status.source}." if mechanism.status.source else ""
    lines = [f"# {mechanism.name}", "", f"**{mechanism.title}.** {' '.join(mechanism.stands_for.split())}", ""]
    lines += [f"**Status**: {mechanism.status}.{told}", ""]
    falls = {kind: f"[{other.name}]({other.name}.md)" for kind, other in mechanism.fallback.items()}
    nobody = [kind for kind in ACCESSORS if kind not in mechanism.serves and kind not in falls]
    serves = [
        f"serves {', '.join(mechanism.serves)}",
        *(f"{kind} falls back to {name}" for kind, name in falls.items()),
    ]
    serves += [f"nobody serves {', '.join(nobody)}"] if nobody else []
    lines += [f"One fault brings {format_bytes(mechanism.granule_bytes)}; {'; '.join(serves)}.", ""]
    for name in mechanism.paths:
        also = [key for key, target in mechanism.classes.items() if target == name and key != name]
        what = "A piece of a stream" if name in {stream.path for stream in mechanism.streams} else "A fault"
        lines += [f"## {what}: {', '.join([name, *also])}", "", ladder(mechanism, name, costs), ""]
    if mechanism.paths:
        lines += ["A full line runs, a broken one sleeps; times are means of the shipped costs.", ""]
    if mechanism.window is not None:
        lines += ["## Inside a window", "", window_words(mechanism), ""]
    if mechanism.push is not None:
        lines += [
            "## Background stream",
            "",
            f"{mechanism.push.says} (order: {mechanism.push.order})",
            "",
        ]
    if mechanism.streams:
        lines += ["## Streams", "", *(f"- {words}" for words in stream_words(mechanism)), ""]
    if mechanism.params:
        lines += ["## Parameters", "", f"Set with `--set {mechanism.name}.NAME=VALUE`.", ""]
        lines += ["| parameter | unit | default | from | to | meaning |", "|---|---|--:|--:|--:|---|"]
        for p in mechanism.params.values():
            row = (
                p.name,
                p.unit,
                *(amount(value, p.unit) for value in (p.default, p.minimum, p.maximum)),
                cell(p.help),
            )
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    lines += cost_table(mechanism, costs)
    lines += ["## What it leaves out", "", *(f"- {text}" for text in mechanism.limits), ""]
    lines += ["## Sources", "", *(f"- {text}" for text in mechanism.source), ""]
    return "\n".join(lines)


def cost_table(mechanism: Mechanism, costs: CostTable) -> list[str]:
    """What its own paths, window and stream charge."""
    names = used_costs(mechanism)
    if not names:
        return []
    lines = ["## Costs", "", "The shipped ones. A trace's own, and those of `calibrate --lab`, take their place.", ""]
    lines += ["| cost | mean | known as | from | to |", "|---|--:|---|---|---|"]
    for name in names:
        cost, about = costs.get(name), COST_NAMES[name]
        mean = format_ns(cost.distribution.mean) if cost else "-"
        known = cost.provenance if cost else "unknown"
        lines.append(f"| {name} | {mean} | {known} | {cell(about.begin)} | {cell(about.end)} |")
    return [*lines, ""]


def command_line() -> str:
    """`--help` of every verb."""
    lines = [
        "# Command line",
        "",
        "The text of `--help`; as man pages: `make man`. Completion: see [manners](manners.md).",
        "",
    ]
    for name, command, context in commands():
        depth = "##" if name.count(" ") < 2 else "###"
        lines += [f"{depth} {name}", "", "```text", help_of(command, context), "```", ""]
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """A parameter's value as a person writes it."""
    if unit == "ns":
        return format_ns(value)
    return format_bytes(value) + unit.removeprefix("bytes") if unit.startswith("bytes") else f"{value:g}"


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


main()
