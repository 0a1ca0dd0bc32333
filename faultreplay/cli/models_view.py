"""A mechanism as a drawing: who runs, who sleeps, what it costs, stage by stage."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faultreplay.faulttrace.schema import ACCESSORS
from faultreplay.faulttrace.units import format_bytes, format_ns, parse_duration_ns
from faultreplay.replay.engine.windows import window_words
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import COST_NAMES

_LANE = 12
_COST_OPTIONS = ("idle", "walk", "latency", "takes", "contended", "also", "cold", "each", "once")


@dataclass(frozen=True)
class Step:
    """One line of a drawing: what stands in the accessor's lane, in the other lane, and the words beside them."""

    accessor: str
    other: str
    words: str
    says: str


def path_steps(mechanism: Mechanism, name: str, costs: Mapping[str, Cost]) -> list[Step]:
    """The stages of one path, drawn. The other lane is whoever else works: a handler, a worker of the host."""
    steps = []
    asleep = other_works = awake = False
    held = ""
    for stage in mechanism.paths[name]:
        words = _words(mechanism, stage.verb, stage.operand, stage.options, costs)
        when = stage.options.get("when")
        if when:
            words += f"   [only {when if isinstance(when, str) else ', '.join(when)}]"
        accessor = "┆" if asleep else "│"
        other = "│" if other_works else ""
        if stage.verb == "acquire" and "idle" in stage.options:
            accessor, other, held, other_works, asleep = "┆", "┌", stage.operand, True, True
        elif stage.verb == "release" and stage.operand == held:
            other, other_works, held = "└", False, ""
            accessor = "│" if awake else accessor
        elif stage.verb == "sleep":
            accessor, asleep = "╵", True
        elif stage.verb == "wake":
            accessor, other = ("├" if not other_works else "╷◀" + "─" * (_LANE - 3)), ("┤" if other_works else "")
            asleep, awake = False, True
        elif other_works or awake:
            other, other_works = "├", True
        elif not asleep:
            accessor = "├"
        steps.append(Step(accessor, other, words, stage.says))
    if other_works:
        steps.append(Step("│", "╵", "", ""))
    return steps


def draw(mechanism: Mechanism, costs: Mapping[str, Cost], width: int) -> list[str]:
    """The whole mechanism as lines of at most `width` columns where words allow it."""
    lines = [mechanism.title, "─" * min(len(mechanism.title), width)]
    for paragraph in (mechanism.stands_for.replace("\n", " "),):
        lines += textwrap.wrap(paragraph, width)
    lines.append("")
    lines += _facts(mechanism, width)
    for name in mechanism.paths:
        classes = [name] + [key for key, target in mechanism.classes.items() if target == name and key != name]
        lines += ["", f"faults: {', '.join(classes)}", f"{'accessor':<{_LANE}}{'others':<8}"]
        for step in path_steps(mechanism, name, costs):
            lead = f"{step.accessor:<{_LANE}}{step.other:<8}"
            text = step.words + (f": {step.says}" if step.says and step.words else step.says)
            for number, line in enumerate(textwrap.wrap(text, max(width - len(lead), 30)) or [""]):
                lines.append((lead if number == 0 else _continued(step)) + line)
    if mechanism.window is not None:
        lines += ["", "inside a window", *textwrap.wrap(window_words(mechanism), width)]
    if mechanism.push is not None:
        lines += ["", f"background stream: {mechanism.push.get('says', '')} (order: {mechanism.push['order']})"]
    lines += ["", *_cost_table(mechanism, costs, width), ""]
    lines += [line for text in mechanism.limits for line in _bullet("limit", text, width)]
    lines += [line for text in mechanism.source for line in _bullet("source", text, width)]
    return [line.rstrip() for line in lines]


def _continued(step: Step) -> str:
    accessor = "┆" if step.accessor in ("┆", "╵") else "│" if step.accessor else ""
    return f"{accessor:<{_LANE}}{'│' if step.other in ('│', '├', '┌') else '':<8}"


def _bullet(what: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(f"{what}: {text}", width, subsequent_indent=" " * (len(what) + 2), break_long_words=False)


def _facts(mechanism: Mechanism, width: int) -> list[str]:
    told = f" ({mechanism.status.source})" if mechanism.status.source else ""
    lines = textwrap.wrap(f"upstream: {mechanism.status}{told}", width, subsequent_indent="  ", break_long_words=False)
    lines.append(f"granule: {format_bytes(mechanism.granule_bytes)}")
    served = ", ".join(mechanism.serves)
    falls = "; ".join(f"{kind} falls back to {other.name}" for kind, other in mechanism.fallback.items())
    nobody = [k for k in ACCESSORS if k not in mechanism.serves and k not in mechanism.fallback]
    lines.append(
        f"serves: {served}" + (f"; {falls}" if falls else "") + (f"; not served: {', '.join(nobody)}" if nobody else "")
    )
    for param in mechanism.params.values():
        value = _number(mechanism.values[param.name], param.unit)
        low, high = (_number(v, param.unit).removesuffix(f" {param.unit}") for v in (param.minimum, param.maximum))
        lines += textwrap.wrap(
            f"parameter {param.name} = {value} ({low} to {high}): {param.help}",
            width,
            subsequent_indent="  ",
        )
    return lines


def _number(value: float, unit: str) -> str:
    if unit == "ns":
        return format_ns(value)
    if unit.startswith("bytes"):
        return format_bytes(value) + unit.removeprefix("bytes")
    return f"{value:g} {unit}"


def _words(mechanism: Mechanism, verb: str, operand: Any, options: Mapping[str, Any], costs: Mapping[str, Cost]) -> str:  # noqa: PLR0911, PLR0912
    cost = _cost(mechanism, operand, costs) if verb in ("delay", "wake") else ""
    match verb:
        case "delay":
            times = options.get("times")
            return f"{cost}" + (f" x {times}" if times else "") + ("  (asleep)" if options.get("asleep") else "")
        case "acquire":
            idle = f", {_cost(mechanism, options['idle'], costs)} if it was idle" if "idle" in options else ""
            return f"takes {operand}{idle}"
        case "release":
            return f"gives {operand} back"
        case "transfer":
            latency = f"{_cost(mechanism, options['latency'], costs)}, then " if "latency" in options else ""
            return f"{latency}{format_bytes(mechanism.value(options.get('bytes', mechanism.granule)))} over {operand}"
        case "hold":
            also = f" + {_cost(mechanism, options['also'], costs)} x {options['times']}" if "also" in options else ""
            return f"holds {operand} for {_lock(mechanism, options, costs)}{also}"
        case "enter":
            return f"enters {operand}{_slowed(mechanism, options, costs)}"
        case "leave":
            return f"leaves {operand}"
        case "sleep":
            return f"sleeps among {operand}"
        case "coalesce":
            return "joins a fault on the same granule that is under way"
        case "wake":
            walk = _walk(mechanism, options, costs)
            slower = (
                f" (through {options['within']}{_slowed(mechanism, options, costs)})" if "within" in options else ""
            )
            return f"{walk}runs after {cost}{slower}" if cost != "0 ns" else f"{walk}runs on{slower}"
        case "recorded":
            return "as long as in the recording"
        case "retry":
            return f"back to '{operand}' with chance {options['chance']}, at most {options['most']} times"
        case _:
            return "the content has come: end of the fault's latency"


def _walk(mechanism: Mechanism, options: Mapping[str, Any], costs: Mapping[str, Cost]) -> str:
    parts = [f"{_cost(mechanism, options['walk'], costs)} x other sleepers"] if "walk" in options else []
    if "cold" in options:
        parts.append(f"{_cost(mechanism, options['cold'], costs)} x cold ones")
    if "under" in options:
        parts.append(f"holding {options['under']} for {_lock(mechanism, options, costs)}")
    return " + ".join(parts) + ", then " if parts else ""


def _lock(mechanism: Mechanism, options: Mapping[str, Any], costs: Mapping[str, Cost]) -> str:
    alone = _cost(mechanism, options.get("takes", 0), costs)
    return alone + (f", {_cost(mechanism, options['contended'], costs)} if contended" if "contended" in options else "")


def _slowed(mechanism: Mechanism, options: Mapping[str, Any], costs: Mapping[str, Cost]) -> str:
    each = f", {_cost(mechanism, options['each'], costs)} for each other inside" if "each" in options else ""
    return each + (f", {_cost(mechanism, options['once'], costs)} if there is any" if "once" in options else "")


def _cost(mechanism: Mechanism, operand: Any, costs: Mapping[str, Cost]) -> str:
    if is_expression(operand):
        return f"{operand.replace('$', '')} {format_ns(mechanism.value(operand))}"
    if operand in COST_NAMES:
        return (
            f"{operand} {format_ns(costs[operand].distribution.mean)}" if operand in costs else f"{operand} (unknown)"
        )
    return format_ns(parse_duration_ns(operand)) if isinstance(operand, str) else "0 ns"


def used_costs(mechanism: Mechanism) -> list[str]:
    """Names of the costs that its own paths, window and stream charge, in the order of `COST_NAMES`."""
    found = set()
    for path in mechanism.paths.values():
        for stage in path:
            found |= {stage.operand, *(stage.options.get(key) for key in _COST_OPTIONS)}
    for rule in (mechanism.window or {}, mechanism.push or {}):
        for key in ("enter", "leave"):
            found |= {str(item).partition(" * ")[0] for item in rule.get(key, [])}
        found |= {rule.get("resume"), rule.get("latency")}
    return [name for name in COST_NAMES if name in {item for item in found if isinstance(item, str)}]


def _cost_table(mechanism: Mechanism, costs: Mapping[str, Cost], width: int) -> list[str]:
    rows = [("cost", "mean", "p99", "known as", "from -> to")]
    for name in used_costs(mechanism):
        about = COST_NAMES[name]
        cost = costs.get(name)
        mean, p99, known = ("-", "-", "unknown") if cost is None else (
            format_ns(cost.distribution.mean), format_ns(cost.distribution.quantile(0.99)), cost.provenance,
        )  # fmt: skip
        rows.append((name, mean, p99, known, f"{about.begin} -> {about.end}"))
    if len(rows) == 1:
        return ["no cost of its own"]
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    lines = []
    for row in rows:
        lead = "  ".join(row[n].ljust(widths[n]) for n in range(4)) + "  "
        words = textwrap.wrap(row[4], max(width - len(lead), 24))
        lines += [(lead if n == 0 else " " * len(lead)) + line for n, line in enumerate(words)]
    return lines
