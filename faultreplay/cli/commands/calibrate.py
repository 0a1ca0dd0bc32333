"""`faultreplay calibrate`: a cost file from traces, or from small lab runs on this host."""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.options import Finite
from faultreplay.cli.render import FORMATS, Column, Report, check_output, emit, say
from faultreplay.faulttrace.errors import IncompleteData, UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.calibrate.calibrate import Fit
    from faultreplay.faulttrace.store import Trace


@click.command("calibrate", short_help="Fit a cost file.")
@click.argument("traces", metavar="[TRACE]...", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The cost file to make: NAME.toml."
)
@click.option("--lab", is_flag=True, help="Also make small lab runs on this host (half a minute; needs root and KVM).")
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
    help="Lab traces: take starts and ends from the accessors' own clock, so that trap, wake and re-entry hold the "
    "world switch that no tracepoint shows.",
)
@click.option("--min-samples", type=click.IntRange(2), default=30, show_default=True, help="Refuse costs with fewer.")
@click.option("--require", metavar="COSTS", default="", help="Fail (exit 4) unless these costs, by commas, are fitted.")
@click.option("--format", "fmt", type=click.Choice(FORMATS[:-1]), default="table", show_default=True)
@click.option("--force", is_flag=True, help="Write over an existing cost file.")
def command(
    *,
    traces: tuple[Path, ...],
    output: Path | None,
    lab: bool,
    split: float,
    with_truth: bool,
    min_samples: int,
    require: str,
    fmt: str,
    force: bool,
) -> None:
    """Fit the costs that TRACEs show, as distributions with their number of samples, and write them with -o.

    A cost is the interval that `faultreplay models` gives for its name. Without -o the table is only shown.
    """
    from faultreplay.analysis.calibrate.calibrate import calibrate
    from faultreplay.faulttrace.store import open_trace
    from faultreplay.replay.language.costs import save_costs

    if not traces and not lab:
        raise UsageError("nothing to calibrate from: name traces, or give --lab")
    if output is not None:
        check_output(output, force=force)
    wanted = _wanted(require)
    with ExitStack() as stack:
        opened: list[Trace] = [open_trace(path) for path in traces]
        contended: list[Trace] = []
        if lab:
            from faultreplay.analysis.calibrate.microruns import micro_traces

            made = stack.enter_context(micro_traces(say))
            opened += made.quiet
            contended = made.contended
        # The lab's own runs wait for content that does not exist: the environment's fetch is not theirs to tell.
        left_out = () if traces else ("fetch",)
        fit = calibrate(
            opened,
            first_share=split,
            with_truth=with_truth,
            min_samples=min_samples,
            left_out=left_out,
            contended=contended,
        )
    absent = [name for name in wanted if name not in fit.costs]
    if absent:
        why = ", ".join(f"{name} ({fit.refused.get(name, 'no samples')})" for name in absent)
        raise IncompleteData(f"not fitted: {why}: record more, or lower --min-samples")
    costs = fit.some()
    emit(_report(fit), fmt)
    if output is not None:
        flavours = {trace.meta.host.kvm_flavour for trace in opened} - {"none", "unknown"}
        save_costs(
            costs,
            output,
            title=_title(opened, lab),
            host=platform.node(),
            date=time.strftime("%Y-%m-%d"),
            kvm_flavour=flavours.pop() if len(flavours) == 1 else "",
        )
        say(f"wrote {output}")


def _wanted(require: str) -> list[str]:
    from faultreplay.replay.language.names import COST_NAMES

    names = [name.strip() for name in require.split(",") if name.strip()]
    for name in names:
        if name not in COST_NAMES:
            raise UsageError(f"--require {name}: no such cost; they are {', '.join(COST_NAMES)}")
    return names


def _title(traces: list[Trace], lab: bool) -> str:
    host = traces[0].meta.host
    made_of = "lab runs" if lab else f"{len(traces)} trace{'s' if len(traces) > 1 else ''}"
    cpu = host.cpu_model or "an unknown CPU"
    return f"measured on {cpu}, kernel {host.kernel}, KVM {host.kvm_flavour}, from {made_of}"


def _report(fit: Fit) -> Report:
    records: list[dict[str, Any]] = []
    for name, cost in fit.costs.items():
        shape = cost.distribution
        record: dict[str, Any] = {"cost": name, "n": cost.n, "mean_ns": shape.mean}
        record |= {f"p{level}_ns": shape.quantile(level / 100) for level in (10, 50, 90, 99)}
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
    sources = dict.fromkeys(cost.source for cost in fit.costs.values())
    notes = [*sources, *(f"refused: {name}: {why}" for name, why in fit.refused.items())]
    return Report(records, columns, "costs", notes, extra={"refused": dict(fit.refused)})
