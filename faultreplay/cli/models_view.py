"""A mechanism as a drawing: who runs, who sleeps, what it costs, stage by stage."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from faultreplay.faulttrace.schema import ACCESSORS
from faultreplay.faulttrace.units import format_bytes, format_ns, parse_duration_ns
from faultreplay.replay.engine.windows import window_words
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.stage import Amount, Stage, StageOptions

_LANE = 12


@dataclass(frozen=True)
class Step:
    """One line of a drawing: what stands in the accessor's lane, in the other lane, and the words beside them."""

    accessor: str
    other: str
    words: str
    says: str


def path_steps(mechanism: Mechanism, name: str, costs: Mapping[str, Cost]) -> list[Step]:
    """The stages of one path, drawn. The other lane is the thread that works for it: a handler, a worker of the
    host."""
    steps = []
    asleep = other_works = awake = False
    held = ""
    for stage in mechanism.paths[name]:
        words = _words(mechanism, stage, costs)
        if stage.options.when:
            words += f"   [only {', '.join(stage.options.when)}]"
        accessor = "┆" if asleep else "│"
        other = "│" if other_works else ""
        if stage.verb == "acquire" and stage.options.idle is not None:
            accessor, other, held, other_works, asleep = "┆", "┌", stage.name, True, True
        elif stage.verb == "release" and stage.name == held:
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
        what = "stream" if name in {stream.path for stream in mechanism.streams} else "faults"
        lines += ["", f"{what}: {', '.join(classes)}", f"{'accessor':<{_LANE}}{'others':<8}"]
        for step in path_steps(mechanism, name, costs):
            lead = f"{step.accessor:<{_LANE}}{step.other:<8}"
            text = step.words + (f": {step.says}" if step.says and step.words else step.says)
            for number, line in enumerate(textwrap.wrap(text, max(width - len(lead), 30)) or [""]):
                lines.append((lead if number == 0 else _continued(step)) + line)
    if mechanism.window is not None:
        lines += ["", "inside a window", *textwrap.wrap(window_words(mechanism), width)]
    if mechanism.push is not None:
        lines += ["", f"background stream: {mechanism.push.says} (order: {mechanism.push.order})"]
    if mechanism.streams:
        lines += ["", *(line for words in stream_words(mechanism) for line in textwrap.wrap(words, width))]
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


def _words(mechanism: Mechanism, stage: Stage, costs: Mapping[str, Cost]) -> str:  # noqa: PLR0911, PLR0912
    options, operand = stage.options, stage.operand

    def charged(cost: Amount | None) -> str:
        return _cost(mechanism, cost, costs)

    match stage.verb:
        case "delay":
            times = f" x {options.times}" if options.times else ""
            return f"{charged(operand)}{times}" + ("  (asleep)" if options.asleep else "")
        case "acquire":
            return f"takes {operand}" + ("" if options.idle is None else f", {charged(options.idle)} if it was idle")
        case "release":
            return f"releases {operand}"
        case "transfer":
            latency = "" if options.latency is None else f"{charged(options.latency)}, then "
            size = mechanism.granule if options.bytes is None else options.bytes
            return f"{latency}{format_bytes(mechanism.value(size))} over {operand}"
        case "hold":
            also = "" if options.also is None else f" + {charged(options.also)} x {options.times}"
            return f"holds {operand} for {_lock(mechanism, options, costs)}{also}"
        case "enter":
            return f"enters {operand}{_slowed(mechanism, options, costs)}"
        case "leave":
            return f"leaves {operand}"
        case "sleep":
            return f"sleeps on {operand}"
        case "coalesce" if operand == "skip":
            return "left to whoever brings it, where it is there or on its way"
        case "coalesce":
            return "joins a fault in progress on the same granule"
        case "read":
            return _read(mechanism, stage, costs)
        case "around":
            size = format_bytes(mechanism.value(operand))
            return f"{charged(options.each)} x neighbours in {size}" + (" in the page cache" if options.cached else "")
        case "wake":
            walk, cost = _walk(mechanism, options, costs), charged(operand)
            within = options.within
            slower = f" (through {within}{_slowed(mechanism, options, costs)})" if within else ""
            return f"{walk}runs after {cost}{slower}" if cost != "0 ns" else f"{walk}runs on{slower}"
        case "recorded":
            return "as long as in the recording"
        case "retry":
            return f"back to '{operand}' with chance {options.chance}, at most {options.most} times"
        case _:
            return "the content has arrived: end of the fault's latency"


def _read(mechanism: Mechanism, stage: Stage, costs: Mapping[str, Cost]) -> str:
    """A read through the page cache."""
    keys, options = mechanism.resources[stage.name].storage, stage.options
    latency = _cost(mechanism, keys.latency, costs) if keys else ""
    size = format_bytes(mechanism.value(options.over)) if options.over is not None else "it"
    ahead = f" and {format_bytes(mechanism.value(options.ahead))} on" if options.ahead is not None else ""
    miss = "" if options.miss is None else f" + {_cost(mechanism, options.miss, costs)}"
    return f"reads {size}{ahead} from {stage.name}: {latency}{miss} where the page cache has not got it  (asleep)"


def stream_words(mechanism: Mechanism) -> list[str]:
    """What each stream of a mechanism brings, in a line."""
    lines = []
    for stream in mechanism.streams:
        when = "before the guest runs" if stream.before else "beside the guest"
        chunk = format_bytes(mechanism.value(stream.chunk) or mechanism.granule_bytes)
        threads = int(mechanism.value(stream.servers))
        many = "1 thread" if threads == 1 else f"{threads} threads"
        packed = ", packed" if stream.packed else ""
        says = f": {stream.says}" if stream.says else ""
        lines.append(
            f"stream '{stream.path}', {when}{says} (set: {stream.set}; order: {stream.order}{packed}; {many}, {chunk} "
            "at a time)"
        )
    return lines


def _walk(mechanism: Mechanism, options: StageOptions, costs: Mapping[str, Cost]) -> str:
    parts = [f"{_cost(mechanism, options.walk, costs)} x other sleepers"] if options.walk is not None else []
    if options.cold is not None:
        parts.append(f"{_cost(mechanism, options.cold, costs)} x cold ones")
    if options.under:
        parts.append(f"holding {options.under} for {_lock(mechanism, options, costs)}")
    return " + ".join(parts) + ", then " if parts else ""


def _lock(mechanism: Mechanism, options: StageOptions, costs: Mapping[str, Cost]) -> str:
    alone, contended = (_cost(mechanism, cost, costs) for cost in (options.takes, options.contended))
    return alone if options.contended is None else f"{alone}, {contended} if contended"


def _slowed(mechanism: Mechanism, options: StageOptions, costs: Mapping[str, Cost]) -> str:
    each, once = (_cost(mechanism, cost, costs) for cost in (options.each, options.once))
    words = "" if options.each is None else f", {each} for each other inside"
    return words if options.once is None else f"{words}, {once} if there is any"


def _cost(mechanism: Mechanism, operand: Amount | None, costs: Mapping[str, Cost]) -> str:
    if not isinstance(operand, str):
        return "0 ns"
    if is_expression(operand):
        return f"{operand.replace('$', '')} {format_ns(mechanism.value(operand))}"
    if operand in COST_NAMES:
        known = format_ns(costs[operand].distribution.mean) if operand in costs else "(unknown)"
        return f"{operand} {known}"
    return format_ns(parse_duration_ns(operand))


def used_costs(mechanism: Mechanism) -> list[str]:
    """Names of the costs that its own paths, window and stream charge, in the order of `COST_NAMES`."""
    found: set[object] = set()
    for path in mechanism.paths.values():
        for stage in path:
            found |= {stage.operand, *stage.options.costs}
    if rule := mechanism.window:
        found |= {rule.resume, *(charge.cost for charge in (*rule.enter, *rule.leave))}
    if mechanism.push:
        found.add(mechanism.push.latency)
    found |= {resource.storage.latency for resource in mechanism.resources.values() if resource.storage}
    return [name for name in COST_NAMES if name in found]


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
