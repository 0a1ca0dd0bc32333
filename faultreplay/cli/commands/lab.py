"""`faultreplay lab`: real guests and processes under each real mechanism."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.options import SEED, NewPath
from faultreplay.cli.render import say
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.units import format_ns, parse_duration_ns, parse_size_bytes

if TYPE_CHECKING:
    from faultreplay.lab.spec import LabResult


ORDERS = ("seq", "random", "uniform", "zipf", "chase", "bursts", "phases", "coalesce", "alike")


@click.group()
def command() -> None:
    """Run real guests under each real mechanism and keep the guest's own clock."""


@command.command()
@click.option("-m", "--mechanism", default="uffd-missing", show_default=True, help="`faultreplay lab list` names all.")
@click.option("--target", type=click.Choice(("kvm", "process")), default="kvm", show_default=True)
@click.option("--vcpus", type=int, default=1, show_default=True, help="vCPUs, or threads of a process.")
@click.option("--handlers", type=int, help="Handler threads. Default: what the mechanism needs.")
@click.option("--pages", type=int, default=1000, show_default=True, help="Pages of each vCPU; of all with --shared.")
@click.option("--shared", is_flag=True, help="All vCPUs use the same pages.")
@click.option("--accesses", type=int, help="Of each vCPU. Default: each page once, four times where pages repeat.")
@click.option("--order", type=click.Choice(ORDERS), default="seq", show_default=True)
@click.option("--access", default="r", show_default=True, help="r, w, rmw, mixed or mixed:SHARE_OF_WRITES.")
@click.option("--think", default="20us", show_default=True, help="Before each access: 20us, exp:20us or file:PATH.")
@click.option(
    "--fetch",
    default="200us",
    show_default=True,
    help="Until content is there: 200us, exp:200us, lognormal:200us:SIGMA; unix or tcp: from a page server; snapshot: "
    "from the file.",
)
@click.option("--rate", default="0", metavar="BYTES/S", help="Limit of the page server's link, as 100M.")
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="START+LENGTH:KIND",
    help="pause, freeze or memslot-destroy, as 20ms+10ms:freeze.",
)
@click.option("--base", default="populated", show_default=True, help="Below a window, or below a prefetch.")
@click.option("--snapshot", default="tmpfs", show_default=True, help="The snapshot file: tmpfs, disk or a folder.")
@click.option("--page-cache", type=click.Choice(("hot", "cold")), default="hot", show_default=True)
@click.option("--readahead/--no-readahead", default=True, show_default=True, help="Of a private mapping.")
@click.option("--working-set", type=click.Path(path_type=Path), help="A lab trace: what it touched is prefetched.")
@click.option("--working-set-seed", type=SEED, help="Prefetch what a run with this seed would touch.")
@click.option("--prefetchers", type=int, default=1, show_default=True, help="Threads that prefetch.")
@click.option("--workload", type=click.Path(path_type=Path), help="A trace whose accesses are done again.")
@click.option("--granule", metavar="SIZE", help="mmio-exit: bytes of one memslot; uffd-fault-around: of a fetch.")
@click.option("--dirty-interval", default="10ms", show_default=True, help="dirty-log: from bitmap to bitmap.")
@click.option("--spin-below", default="60us", show_default=True, help="A shorter fetch spins, a longer one sleeps.")
@click.option("--timeout", default="10s", show_default=True, help="Give up when no access ends for so long.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--pin/--no-pin", default=None, help="A core for each thread. Default: when there are enough.")
@click.option("--nice", type=click.IntRange(-20, 19), default=-20, show_default=True, help="0: like other work.")
@click.option("--fail", default="", help="Break something: handler-exit@MESSAGES, source-exit@PAGES, hugetlb-enomem.")
@click.option("-o", "--output", type=NewPath(), help="Trace to write. Default: none is kept.")
@click.option("--no-record", is_flag=True, help="Truth only: attach no probes.")
@click.option("--force", is_flag=True, help="Write over an existing trace.")
def run(output: Path | None, no_record: bool, force: bool, **options: Any) -> int:
    """Run one guest (or process) under a mechanism, recorded together with its own clock."""
    from faultreplay.lab.runner import run as lab_run

    result = lab_run(make_spec(**options), output, record=not no_record, force=force)
    _say(result)
    if output:
        say(f"wrote {output}")
    if result.problem:
        raise FaultreplayError(result.problem)
    return 0


@command.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Directory; what is there stays.")
@click.option("-m", "--mechanisms", multiple=True, help="Comma-separated. Default: eight of them.")
@click.option("--vcpus", default="1,2,4", show_default=True)
@click.option("--handlers", default="1", show_default=True)
@click.option("--fetch", default="0,50us,200us,1ms", show_default=True)
@click.option("--workload", "workloads", multiple=True, metavar="ORDER/ACCESS/THINK", help="Default: two of them.")
@click.option("--base", default="uffd-missing", show_default=True, help="What fills in memory under a window.")
@click.option("--run-time", default="500ms", show_default=True, help="About how long one run takes.")
@click.option(
    "--repeats", type=click.IntRange(1, 1000), default=1, show_default=True, help="Each has a run A and a run B."
)
@click.option("--budget", help="Start no run after so long, as 10m; the same command goes on later.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--no-record", is_flag=True, help="Truth only: attach no probes.")
@click.option(
    "--validate/--no-validate",
    default=True,
    show_default=True,
    help="When all runs stand: fit costs.toml on side A, compare predictions with side B.",
)
def matrix(output: Path, budget: str | None, no_record: bool, validate: bool, **axes: Any) -> int:
    """Run mechanisms x vCPUs x handlers x fetch x workloads, twice each (A and B), into a directory.

    Leaves traces, results.parquet, costs.toml and the validation (validation.parquet, validation.md). Each thread is
    pinned to a CPU: vCPU n to CPU n modulo their number, then the handlers.
    """
    from faultreplay.cli.progress import bar
    from faultreplay.lab.matrix import run_matrix

    spec = make_matrix(**axes)
    with bar() as show:
        done = run_matrix(
            spec,
            output,
            budget_ns=parse_duration_ns(budget) if budget else None,
            record=not no_record,
            on_run=lambda item, number, total: show(item.name, number, total),
        )
    for problem in done.problems:
        say(problem)
    say(f"{done.done + done.skipped - len(done.problems)} of {done.runs} runs stand ({done.done} new)")
    say(f"wrote {done.results}")
    stand = done.done + done.skipped - len(done.problems)
    if validate and not no_record and stand > 0 and done.done + done.skipped == done.runs:
        _judge(output)
    return 0


def _judge(output: Path) -> None:
    """Costs from side A and the validation beside the traces; files of an earlier call are overwritten."""
    from faultreplay.analysis.compare.predict import Setup
    from faultreplay.analysis.judge.matrix import costs_of_side_a, validate_matrix
    from faultreplay.cli import validate_view
    from faultreplay.cli.progress import bar
    from faultreplay.cli.render import emit
    from faultreplay.replay.language.costs import save_costs

    with bar() as show:
        show("costs of side A", 0, 1)
        costs = costs_of_side_a(output)
        whole = validate_matrix(output, Setup(), progress=show)
    save_costs(costs, output / "costs.toml", title=f"side A of {output.name}")
    say(f"wrote {output / 'costs.toml'}")
    emit(validate_view.matrix(whole, shown="cells"), "parquet", output / "validation.parquet", force=True)
    emit(validate_view.matrix(whole, shown="parts"), "md", output / "validation.md", force=True)


def make_matrix(mechanisms: tuple[str, ...], workloads: tuple[str, ...], run_time: str, **axes: Any) -> Any:
    """A `MatrixSpec` from the command line's words."""
    from faultreplay.cli.options import parse_names
    from faultreplay.lab.matrix_spec import DEFAULT_MECHANISMS, DEFAULT_WORKLOADS, MatrixSpec

    return MatrixSpec(
        mechanisms=tuple(parse_names(mechanisms)) or DEFAULT_MECHANISMS,
        vcpus=_numbers("--vcpus", axes.pop("vcpus")),
        handlers=_numbers("--handlers", axes.pop("handlers")),
        fetch=tuple(axes.pop("fetch").split(",")),
        workloads=workloads or DEFAULT_WORKLOADS,
        run_ns=parse_duration_ns(run_time),
        **axes,
    )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: write whole numbers with commas, as 1,2,4") from None


@command.command("list")
def list_mechanisms() -> int:
    """Name the mechanisms and windows that a run can have."""
    from faultreplay.cli.render import put, table_width
    from faultreplay.lab.spec import MECHANISMS, PREFETCH_TITLES, WINDOW_TITLES

    titles = {name: m.title + ("" if m.process else " (guests only)") for name, m in MECHANISMS.items()}
    width = table_width(sys.stdout.isatty())
    for name, title in {**titles, **PREFETCH_TITLES, **WINDOW_TITLES}.items():
        for line in textwrap.wrap(f"{name:20} {title}", width, subsequent_indent=21 * " ", break_on_hyphens=False):
            put(line)
    return 0


def make_spec(windows: tuple[str, ...], rate: str, granule: str | None, **options: Any) -> Any:
    """A `LabSpec` from the command line's words."""
    from faultreplay.cli.options import parse_window
    from faultreplay.lab.spec import LabSpec, Window

    for name in ("dirty_interval", "spin_below", "timeout"):
        options[f"{name}_ns"] = parse_duration_ns(options.pop(name))
    return LabSpec(
        windows=tuple(Window(*parse_window(text)) for text in windows),
        rate_bytes=parse_size_bytes(rate),
        granule_bytes=parse_size_bytes(granule) if granule else None,
        **options,
    )


def _say(result: LabResult) -> None:
    lab = result.lab
    if not lab:
        return
    say(f"{result.spec.mechanism}: {lab['accesses']} accesses in {format_ns(lab['run_time_ns'])}, "
               f"clock within {format_ns(lab['clock_error_ns'])}")  # fmt: skip
    if "startup_ns" in lab:
        say(f"before the start: {format_ns(lab['startup_ns'])}")
    if prefetch := lab.get("prefetch"):
        say(f"prefetch: {prefetch['placed']} of {prefetch['set_pages']} pages placed "
                   f"in {format_ns(prefetch['end_ns'] - prefetch['from_ns'])}")  # fmt: skip
    fetch = lab["services"]["fetch_ns"]
    if fetch["n"]:
        say(f"{lab['services']['resolved']} resolved: fetch {format_ns(fetch['p50'])} (median), "
                   f"placed in {format_ns(lab['services']['resolve_ns']['p50'])}")  # fmt: skip
    for window, waiters in zip(lab["windows"], lab["waiters"], strict=True):
        length = format_ns(window["end_ns"] - window["begin_from_ns"])
        changed = f"{window['pages_changed']} of {window['pages_checked']} pages changed"
        say(f"{window['kind']}: {length}, {waiters['accesses']} accesses waited, {changed}")
