"""`faultreplay calibrate`: a cost file from traces, or from small lab runs on this host."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import Finite, NewPath, gathered
from faultreplay.cli.render import FORMATS, Column, Report, check_output, emit, say
from faultreplay.faulttrace.errors import IncompleteData, UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.calibrate.calibrate import Fit
    from faultreplay.analysis.calibrate.contention import ContentionFit
    from faultreplay.analysis.calibrate.host import HostFit
    from faultreplay.faulttrace.meta import Host
    from faultreplay.faulttrace.store import Trace
    from faultreplay.replay.language.costs import CostTable


@dataclass(frozen=True)
class _Given:
    """What the command line says."""

    traces: tuple[Path, ...]
    output: Path | None
    lab: bool
    row: tuple[str, int, float] | None
    split: float
    with_truth: bool
    min_samples: int
    require: str
    allow_busy: bool
    fmt: str
    force: bool


@click.command("calibrate", short_help="Fit a cost file.")
@click.argument("traces", metavar="[TRACE]...", type=click.Path(path_type=Path), nargs=-1, shell_complete=traces_here)
@click.option("-o", "--output", type=NewPath(dir_okay=False), help="The cost file to make: NAME.toml.")
@click.option(
    "--lab",
    is_flag=True,
    help="Make small lab runs on this host, twice (a minute; needs root and KVM), with 1, 2, 4 ... accessors "
    "where contention is fitted, and file their costs for all traces of this host.",
)
@click.option(
    "--row",
    nargs=3,
    type=(str, click.IntRange(1, 4096), Finite(0, 1e12, min_open=True)),
    metavar="MECHANISM VCPUS RATE",
    help="Instead of traces: one row of a table, as kvm-exit 2 286000: so many vCPUs that do nothing but fault made so "
    "many pages/s in all. It sets how fast the host is, and predicts other numbers of vCPUs.",
)
@click.option(
    "--split",
    type=Finite(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Fit on this first share of each trace's faults and keep the rest for judging "
    "(`faultreplay validate TRACE` does both).",
)
@click.option(
    "--truth",
    "with_truth",
    is_flag=True,
    help="Lab traces: take starts and ends from the accessors' own clock, so that fault entry, wake and re-entry hold "
    "the world switch that no tracepoint shows.",
)
@click.option("--min-samples", type=click.IntRange(2), default=30, show_default=True, help="Refuse costs with fewer.")
@click.option("--require", metavar="COSTS", default="", help="Fail (exit 4) unless these costs, by commas, are fitted.")
@click.option("--allow-busy", is_flag=True, help="With --lab: on a busy host, fit all the same, with wider ranges.")
@click.option("--format", "fmt", type=click.Choice(FORMATS[:-1]), default="table", show_default=True)
@click.option("--force", is_flag=True, help="Write over an existing cost file.")
@gathered(_Given)
def command(given: _Given) -> None:
    """Fit the costs that TRACEs show, as distributions with their number of samples, and write them with -o.

    A cost is the interval that `faultreplay models` gives for its name. Without -o the table is only shown.
    """
    import faultreplay

    if given.row is not None:
        _from_row(given, given.row)
        return
    if not given.traces and not given.lab:
        raise UsageError("nothing to calibrate from: name traces, or give --lab or --row")
    if given.allow_busy and not given.lab:
        raise UsageError("--allow-busy goes with --lab")
    if given.output is not None:
        check_output(given.output, force=given.force)
    wanted = _wanted(given.require)
    opened: list[Trace] = [faultreplay.open_trace(path) for path in given.traces]
    how: dict[str, Any] = {"first_share": given.split, "with_truth": given.with_truth, "min_samples": given.min_samples}
    measured = None
    if given.lab:
        from faultreplay.analysis.calibrate.host import calibrate_host

        # The lab's runs only simulate a fetch, so they do not show the fetch of the environment.
        left_out = () if given.traces else ("fetch",)
        measured = calibrate_host(say, extra=opened, left_out=left_out, allow_busy=given.allow_busy, **how)
        fit, hosts = measured.fit, [measured.meta.host, *(trace.meta.host for trace in opened)]
    else:
        fit, hosts = faultreplay.calibrate(opened, **how), [trace.meta.host for trace in opened]
    absent = [name for name in wanted if name not in fit.costs]
    if absent:
        reasons = {**fit.refused, **(measured.contention.not_told if measured else {})}
        why = ", ".join(f"{name} ({reasons.get(name, 'no samples')})" for name in absent)
        raise IncompleteData(f"not fitted: {why}: record more, or lower --min-samples")
    costs = fit.some()
    emit(_report(fit, measured), given.fmt)
    if measured is not None:
        _file(costs, measured.meta.host, allow_busy=bool(measured.problems))
    if given.output is not None:
        _save(costs, given.output, hosts, given.lab)
        say(f"wrote {given.output}")


def _from_row(given: _Given, row: tuple[str, int, float]) -> None:
    """Costs from one row of a table, and what they predict."""
    from faultreplay.analysis.calibrate.own_row import PREDICTED, OwnRow
    from faultreplay.analysis.compare.setup import split_choice
    from faultreplay.replay.language.costs import load_costs, save_costs
    from faultreplay.replay.language.mechanism import load_mechanism

    if given.traces or given.lab:
        raise UsageError("--row goes without traces and without --lab")
    if given.output is not None:
        check_output(given.output, force=given.force)
    name, own = split_choice(row[0])
    one = OwnRow(load_mechanism(name).with_params(own), row[1], row[2])
    shipped = load_costs()
    costs, factor = one.fit(shipped)
    ready = shipped.merge(costs)
    records = [{"vcpus": n, "pages_per_s": one.rate(ready, n)} for n in PREDICTED]
    notes = [
        f"{', '.join(costs)}: x {factor:.3g} of the shipped costs; {row[1]} vCPUs then make {row[2]:,.0f} pages/s",
        "one row says nothing about contention: its costs are the shipped ones, of other hosts",
        f"beyond {shipped.fitted_to} vCPUs extrapolated",
    ]
    columns = [Column("vcpus", "vCPUs", "count"), Column("pages_per_s", "pages/s in all", "count")]
    emit(Report(records, columns, row[0], notes, extra={"factor": factor, "costs": list(costs)}), given.fmt)
    if given.output is not None:
        title = f"shipped costs x {factor:.3g}, from one row: {row[0]}, {row[1]} vCPUs, {row[2]:,.0f} pages/s"
        save_costs(costs, given.output, title=title, date=time.strftime("%Y-%m-%d"), fitted_to=shipped.fitted_to)
        say(f"wrote {given.output}")


def _file(costs: CostTable, host: Host, *, allow_busy: bool) -> None:
    """Keep this host's costs where they are found by themselves; not those of a busy host."""
    from faultreplay.analysis.compare.ranges import ENVIRONMENT
    from faultreplay.replay.language.costs import CostTable
    from faultreplay.replay.language.filed import filed_path, hand_over

    if allow_busy or not host.fingerprint:
        why = "the host was busy" if allow_busy else "this host does not say what it is"
        say(f"not filed for traces of this host ({why}): give the file with --costs")
        return
    path = filed_path(host.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: cost for name, cost in costs.items() if name not in ENVIRONMENT}
    _save(CostTable(kept, fitted_to=costs.fitted_to), path, [host], True)
    hand_over(path)
    say(f"filed for traces of this host (fingerprint {host.fingerprint}): {path}")


def _save(costs: CostTable, path: Path, hosts: list[Host], lab: bool) -> None:
    from faultreplay.replay.language.costs import save_costs

    flavours = {host.kvm_flavour for host in hosts} - {"none", "unknown"}
    fingerprints = {host.fingerprint for host in hosts}
    save_costs(
        costs,
        path,
        title=_title(hosts, lab),
        host=platform.node(),
        date=time.strftime("%Y-%m-%d"),
        kvm_flavour=flavours.pop() if len(flavours) == 1 else "",
        fingerprint=fingerprints.pop() if len(fingerprints) == 1 else "",
        fitted_to=costs.fitted_to,
    )


def _wanted(require: str) -> list[str]:
    from faultreplay.replay.language.names import COST_NAMES, current_name

    names = [current_name(name.strip(), "--require") for name in require.split(",") if name.strip()]
    for name in names:
        if name not in COST_NAMES:
            raise UsageError(f"--require {name}: no such cost; they are {', '.join(COST_NAMES)}")
    return names


def _title(hosts: list[Host], lab: bool) -> str:
    host = hosts[0]
    made_of = "lab runs" if lab else f"{len(hosts)} trace{'s' if len(hosts) > 1 else ''}"
    cpu = host.cpu_model or "an unknown CPU"
    return f"measured on {cpu}, kernel {host.kernel}, KVM {host.kvm_flavour}, from {made_of}"


def _report(fit: Fit, measured: HostFit | None) -> Report:
    records: list[dict[str, Any]] = []
    for name, cost in fit.costs.items():
        shape = cost.distribution
        record: dict[str, Any] = {"cost": name, "n": cost.n, "mean_ns": shape.mean}
        record |= {f"p{level}_ns": shape.quantile(level / 100) for level in (10, 50, 90, 99)}
        record |= {"low_ns": cost.low or None, "high_ns": cost.high or None}
        record |= {"max_ns": shape.quantile(1.0), "provenance": cost.provenance, "source": cost.source}
        # Not in the table: only --cpus uses them, and most costs have none.
        parts = {"on_idle_cpu": cost.on_idle_cpu, "on_busy_cpu": cost.on_busy_cpu}
        records.append(record | {f"{key}_mean_ns": part.mean for key, part in parts.items() if part is not None})
    columns = [
        Column("cost", "cost"),
        Column("n", "n", "count"),
        *(Column(f"{key}_ns", key, "ns", keep=keep) for key, keep in (("p10", 4), ("p50", 9), ("p90", 6), ("p99", 7))),
        Column("max_ns", "max", "ns", keep=5),
        Column("mean_ns", "mean", "ns"),
    ]
    if measured is not None:
        columns += [Column("low_ns", "low", "ns"), Column("high_ns", "high", "ns")]
    sources = dict.fromkeys(cost.source for cost in fit.costs.values())
    notes = [*sources, *(f"refused: {name}: {why}" for name, why in fit.refused.items())]
    extra: dict[str, Any] = {"refused": dict(fit.refused)}
    if measured is not None:
        notes = [*_host_notes(measured), *_contention_notes(measured.contention), *notes]
        extra["conditions"] = [dict(one.__dict__) for one in measured.conditions]
        extra["unsteady_percent"] = dict(measured.unsteady)
        told = measured.contention
        extra["contention"] = {
            "fitted": list(told.costs),
            "fitted_to": told.costs.fitted_to,
            "worst_percent": told.worst_percent,
            "not_told": dict(told.not_told),
            "refused": dict(told.refused),
            "alone_ns": {series: {"measured": ns, "costs": model} for series, (ns, model) in told.alone.items()},
        }
    return Report(records, columns, "costs", notes, extra=extra)


def _contention_notes(told: ContentionFit) -> list[str]:
    """What growing runs show of contention, and what they leave open."""
    from faultreplay.faulttrace.units import format_ns

    notes = []
    if len(told.costs):
        notes.append(
            f"contention, fitted with up to {told.costs.fitted_to} accessors: {', '.join(told.costs)} (the runs "
            f"are met within {told.worst_percent:.0f} %); a replay of more says that it is extrapolated"
        )
    by_reason: dict[str, list[str]] = {}
    for name, why in told.not_told.items():
        by_reason.setdefault(why, []).append(name)
    notes += [f"contention, not fitted, so foreign: {', '.join(names)}: {why}" for why, names in by_reason.items()]
    notes += [f"contention, left out: {what}: {why}" for what, why in told.refused.items()]
    notes += [
        f"{series}: one accessor takes {format_ns(round(ns))} a fault, {format_ns(round(model))} by the costs"
        for series, (ns, model) in told.alone.items()
    ]
    return notes


def _host_notes(measured: HostFit) -> list[str]:
    """What the figures are worth."""
    notes = ["low and high: the mean is between them nine times in ten, by how two passes differ"]
    notes += [f"pass {n}: {conditions}" for n, conditions in enumerate(measured.conditions, 1)]
    if measured.unsteady:
        names = ", ".join(f"{name} {percent:.0f} %" for name, percent in measured.unsteady.items())
        notes.insert(0, f"unsteady, the passes differ by: {names}")
    if measured.problems:
        notes.insert(0, f"spoiled: {'; '.join(measured.problems)}")
    return notes
