"""Options that several verbs share: spelled, parsed and explained once."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from faultreplay.cli import completion
from faultreplay.cli.render import FORMATS
from faultreplay.cli.restore_options import restore_options, restore_setup
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns, parse_rate_bytes

if TYPE_CHECKING:
    from faultreplay.analysis.compare.predict import Setup

F = TypeVar("F", bound=Callable[..., Any])

MOST_CPUS: Final = 8192
"""Of a host: what Linux can be built for."""
SEED: Final = click.IntRange(0, (1 << 62) - 1)
"""What the engine's 64-bit hash takes, with room for --seeds."""


def gathered(record: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command is called with one `record`, a dataclass, of the options it has fields for; the rest by keyword."""
    names = {field.name for field in dataclasses.fields(record)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**options: Any) -> None:
            given = record(**{name: options.pop(name) for name in names})
            command(given, **options)

        return call

    return decorate


class Finite(click.FloatRange):
    """A finite number within bounds. `FloatRange` lets nan through, which compares false with every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class NewPath(click.Path):
    """What is made under a name of its own: "", ".", ".." and "/" have none."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error."""
        path = Path(str(super().convert(value, param, ctx)))
        if path.name in ("", ".."):
            self.fail(f"'{value}' names no file that could be made.", param, ctx)
        return path


_WINDOW = re.compile(r"(?P<start>[^+:]+)\+(?P<length>[^+:]+):(?P<kind>[a-z][a-z-]*)")
_SETTING = re.compile(r"(?P<mechanism>[^=]+)\.(?P<param>[A-Za-z_][\w-]*)=(?P<value>.+)")


def trace_argument(function: F) -> F:
    """TRACE, a directory."""
    return click.argument("trace", type=click.Path(path_type=Path), shell_complete=completion.traces)(function)


def mechanisms_option(function: F) -> F:
    """-m NAMES, with a default."""
    return _mechanisms(
        "By name or .toml file. Default: uffd-missing, kvm-exit, freeze, the recorded one, two references."
    )(function)


def named_mechanisms_option(function: F) -> F:
    """-m NAMES, without a default."""
    return _mechanisms("By name or .toml file; `faultreplay models list` lists them.")(function)


def _mechanisms(words: str) -> Callable[[F], F]:
    return click.option(
        "-m",
        "--mechanisms",
        "mechanisms",
        multiple=True,
        metavar="NAME,...",
        help=words,
        shell_complete=completion.mechanisms,
    )


def output_options(function: F) -> F:
    """--format, -o, --force."""
    function = click.option("--force", is_flag=True, help="Write over an existing output file.")(function)
    function = click.option("-o", "--output", type=NewPath(dir_okay=False), help="Write here, not to stdout.")(function)
    return click.option(
        "--format", "fmt", type=click.Choice(FORMATS), default=None, help="Default: table, or what -o's name ends in."
    )(function)


def pool_options(default: str) -> Callable[[F], F]:
    """-j, --dask: where many replays run; `default` names the default number of processes."""

    def decorate(function: F) -> F:
        function = click.option(
            "--dask", metavar="ADDRESS", help="Scheduler of a dask cluster to run on, as tcp://HOST:8786."
        )(function)
        return click.option("-j", "--jobs", type=click.IntRange(1, 1024), help=f"Processes. Default: {default}.")(
            function
        )

    return decorate


def output_format(fmt: str | None, output: Path | None) -> str:
    """The format asked for, or the one that the file's name ends in, or a table."""
    if fmt:
        return fmt
    suffix = output.suffix.removeprefix(".") if output else ""
    return suffix if suffix in FORMATS else "table"


def question_options(function: F) -> F:
    """What the replay asks beside the mechanism: the environment, how faults are read, who is a vCPU."""
    for option in reversed(
        (
            click.option(
                "--fetch",
                metavar="TIME",
                help="How long content takes to come, bytes included, as 30us: for every row. "
                "Default: as the trace shows, else as the cost files say.",
            ),
            click.option(
                "--link",
                metavar="RATE",
                help="Bandwidth of the link that content comes over, as 10Gbit or 1.2GB/s: for every row. "
                "Default: as recorded; where that is not known, rows that depend on it have no numbers.",
            ),
            click.option(
                "--reading",
                type=click.Choice(("auto", "recorded", "first-touch")),
                default="auto",
                show_default=True,
                help="Faults of memory that was there: as recorded, or the first touch of each page as missing memory. "
                "auto: first-touch where no fault was one of missing memory.",
            ),
            click.option(
                "--vcpu-threads",
                "vcpu_threads",
                metavar="TID|NAME,...",
                help="Threads that are vCPUs though they never call KVM_RUN; * in a NAME stands for anything. "
                "Default: QEMU's TCG threads (CPU n/TCG).",
            ),
        )
    ):
        function = option(function)
    return restore_options(function)


def weighing_options(function: F) -> F:
    """What rows are compared with, and how much is printed about their uncertainty."""
    for option in reversed(
        (
            click.option(
                "--baseline",
                shell_complete=completion.mechanisms,
                metavar="NAME",
                default="",
                help="Compare every row with this mechanism (or file, or NAME:PARAM=VALUE). "
                "Default: the recorded one as it was recorded.",
            ),
            click.option(
                "--bounds/--no-bounds",
                default=True,
                show_default=True,
                help="Also replay the other extreme of what the trace does not show (host CPUs without --cpus, what is "
                "touched again without --retouch), and give both where they differ.",
            ),
            click.option("-v", "--verbose", is_flag=True, help="All notes under the table, not the first three."),
        )
    ):
        function = option(function)
    return function


def replay_options(function: F) -> F:
    """What decides how a trace is replayed."""
    for option in reversed(
        (
            click.option(
                "--set",
                "settings",
                shell_complete=completion.settings,
                multiple=True,
                metavar="MECH.PARAM=VALUE",
                help="Set a mechanism's parameter, as uffd-missing.handlers=4. `faultreplay models` lists them.",
            ),
            click.option(
                "--costs",
                "costs",
                shell_complete=completion.cost_files,
                multiple=True,
                metavar="FILE",
                help="Cost file (name or path) on top of the shipped one; several: the later wins.",
            ),
            click.option(
                "--loop",
                type=click.Choice(("closed", "open")),
                default="closed",
                show_default=True,
                help="closed: think times are kept, a longer stall delays the rest; open: recorded starts are kept.",
            ),
            click.option(
                "--window",
                "windows",
                multiple=True,
                metavar="START+LENGTH:KIND",
                help="A window after the start of the recording, as 2s+50ms:freeze. "
                "Default: those that were recorded, else 50ms (a tenth of a shorter trace) in its middle.",
            ),
            click.option(
                "--retouch",
                type=click.Choice(("recorded", "working-set")),
                default="recorded",
                show_default=True,
                help="What touches memory that is there already, of which a trace shows nothing: "
                "nothing (lower bound), or all of it at once (upper bound).",
            ),
            click.option(
                "--fit/--no-fit",
                default=True,
                show_default=True,
                help="Take the costs that the trace itself shows; they win over all files.",
            ),
            click.option(
                "--cpus",
                type=click.IntRange(1, MOST_CPUS),
                help="Host CPUs that vCPUs and handlers have to share. Default: see the table's notes.",
            ),
            click.option(
                "--pinned",
                is_flag=True,
                help="With --cpus: vCPU n on CPU n modulo N, then the handlers likewise. Default: on any of them.",
            ),
            click.option("--seed", type=SEED, default=0, show_default=True),
            click.option(
                "--seeds",
                type=click.IntRange(1, 1000),
                default=1,
                show_default=True,
                help="Replay with this many seeds; means and intervals over them.",
            ),
            click.option(
                "--max-loss",
                "max_loss_percent",
                type=Finite(0, 100),
                default=1.0,
                show_default=True,
                metavar="PERCENT",
                help="Refuse (exit 4) a trace that lost a greater share of its events.",
            ),
        )
    ):
        function = option(function)
    return function


def parse_names(texts: tuple[str, ...]) -> list[str]:
    """Names given as `-m a,b -m c`, each once, in order."""
    names = [name.strip() for text in texts for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def parse_settings(texts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """`MECH.PARAM=VALUE` as mechanism -> parameter -> value.

    Raises:
        UsageError: not of that form.
    """
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        match = _SETTING.fullmatch(text)
        if not match:
            raise UsageError(f"--set {text}: write MECHANISM.PARAMETER=VALUE, as uffd-missing.handlers=4")
        mechanism, param = match["mechanism"], match["param"].replace("-", "_")
        if mechanism.endswith(".fallback"):
            mechanism, param = mechanism.removesuffix(".fallback"), f"fallback.{param}"
        settings.setdefault(mechanism, {})[param] = match["value"]
    return settings


def parse_window(text: str) -> tuple[int, int, str]:
    """`2s+50ms:freeze` as (start after the beginning of the recording, length, kind), times in ns.

    Raises:
        UsageError: not of that form, or no length.
    """
    match = _WINDOW.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--window {text}: write START+LENGTH:KIND, as 2s+50ms:freeze")
    length_ns = parse_duration_ns(match["length"])
    if length_ns == 0:
        raise UsageError(f"--window {text}: it has no length")
    return parse_duration_ns(match["start"]), length_ns, match["kind"]


def _pinned(options: Mapping[str, Any]) -> bool:
    if options["pinned"] and options["cpus"] is None:
        raise UsageError("--pinned: to how many CPUs? Give --cpus N")
    return bool(options["pinned"])


def setup_from(options: Mapping[str, Any]) -> tuple[Setup, dict[str, Any]]:
    """The values of `replay_options` as a `Setup` and the further arguments of `open_case`."""
    from faultreplay.analysis.compare.predict import Setup
    from faultreplay.replay.engine.windows import WINDOW_KINDS

    windows = [parse_window(text) for text in options["windows"]]
    for text, (_, _, kind) in zip(options["windows"], windows, strict=True):
        if kind not in WINDOW_KINDS:
            raise UsageError(f"--window {text}: '{kind}' is no kind of window: they are {', '.join(WINDOW_KINDS)}")
    setup = Setup(
        settings=parse_settings(options["settings"]),
        cost_files=options["costs"],
        loop=options["loop"],
        retouch=options["retouch"],
        cpus=options["cpus"],
        pinned=_pinned(options),
        reading=options.get("reading", "auto"),
        fetch_ns=parse_duration_ns(options["fetch"]) if options.get("fetch") else None,
        link_bytes_per_s=parse_rate_bytes(options["link"]) if options.get("link") else 0,
        vcpu_threads=tuple(t for t in (options.get("vcpu_threads") or "").split(",") if t),
        **restore_setup(options),
        seed=options["seed"],
        seeds=options["seeds"],
        bounds=_bounds(options),
    )
    return setup, {
        "windows": windows,
        "fit": options["fit"],
        "max_loss_percent": options["max_loss_percent"],
    }


def _bounds(options: Mapping[str, Any]) -> frozenset[str]:
    """The options for which both extremes are replayed: those that were not given."""
    if not options.get("bounds"):
        return frozenset()
    asked = click.get_current_context().get_parameter_source("retouch") is not ParameterSource.DEFAULT
    return frozenset({"cpus"} if options["cpus"] is None else ()) | frozenset(() if asked else {"retouch"})
