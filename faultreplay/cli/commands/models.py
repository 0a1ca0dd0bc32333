"""`faultreplay models`: list, draw and check mechanisms and cost files."""

from __future__ import annotations

from pathlib import Path

import click

from faultreplay.cli import completion


@click.group(name="models")
def command() -> None:
    """List, draw and check mechanisms and cost files."""


@command.command(name="list")
@click.option("--format", "fmt", type=click.Choice(["table", "json", "csv", "md"]), default="table", show_default=True)
def list_(fmt: str) -> None:
    """Mechanisms and cost files that ship with faultreplay."""
    from faultreplay.cli.render import Column, Report, emit
    from faultreplay.replay.language.costs import list_costs
    from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism

    records = []
    for name in list_mechanisms():
        mechanism = load_mechanism(name)
        records.append(
            {
                "name": name,
                "title": mechanism.title,
                "status": mechanism.status.state,
                "granule_bytes": mechanism.granule_bytes,
                "params": ", ".join(mechanism.params) or "-",
                "serves": ", ".join(mechanism.serves),
                "fallback": ", ".join(f"{k}: {m.name}" for k, m in mechanism.fallback.items()) or "-",
            }
        )
    columns = [
        Column("name", "mechanism"),
        Column("title", "stands for", keep=7),
        Column("status", "upstream", keep=6),
        Column("granule_bytes", "granule", "bytes", keep=5),
        Column("params", "parameters", keep=4),
        Column("serves", "serves", keep=2),
        Column("fallback", "falls back", keep=1),
    ]
    notes = [f"cost files: {', '.join(list_costs())}", "faultreplay models show NAME draws one"]
    emit(Report(records, columns, notes=notes), fmt)


@command.command()
@click.argument("name", shell_complete=completion.mechanisms)
@click.option(
    "--costs",
    default="default",
    show_default=True,
    metavar="FILE",
    shell_complete=completion.cost_files,
    help="Cost file, by name or path.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PARAM=VALUE",
    help="As handlers=4.",
)
def show(name: str, costs: str, settings: tuple[str, ...]) -> None:
    """Draw the mechanism NAME (or a .toml file): its paths step by step, its costs and their provenance."""
    import sys

    from faultreplay.cli.models_view import draw
    from faultreplay.cli.render import put, table_width
    from faultreplay.faulttrace.errors import UsageError
    from faultreplay.replay.language.costs import load_costs
    from faultreplay.replay.language.mechanism import load_mechanism

    changes = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"'{text}' sets nothing: write PARAM=VALUE, as handlers=4")
        changes[key] = value
    mechanism = load_mechanism(name).with_params(changes)
    for line in draw(mechanism, load_costs(costs), max(table_width(sys.stdout.isatty()), 80)):
        put(line)


@command.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Check mechanism or cost FILES: exit code 2 and line, key and reason of what is wrong."""
    from faultreplay.cli.render import say
    from faultreplay.faulttrace.errors import UsageError
    from faultreplay.replay.language.checks import check_mechanism
    from faultreplay.replay.language.costs import load_costs
    from faultreplay.replay.language.mechanism import load_mechanism
    from faultreplay.replay.language.reading import TomlFile

    for path in files:
        try:
            is_costs = "costs" in TomlFile.read(path).data
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        full = path.absolute()
        if is_costs:
            table = load_costs(full)
            say(f"{path}: {len(table)} costs, sound")
        else:
            mechanism = load_mechanism(full)
            check_mechanism(mechanism)
            paths = ", ".join(mechanism.paths)
            say(f"{path}: mechanism '{mechanism.title}', paths {paths}, sound")
