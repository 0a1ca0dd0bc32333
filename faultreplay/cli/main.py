"""The command line's door: verbs are imported only when called, errors become one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

import click

from faultreplay import __version__
from faultreplay.cli.manners import own_process, quiet_option, with_quiet
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.plain_text import plain

# verb -> (module, what `--help` says of it). Kept here so that --help imports no verb.
VERBS: dict[str, tuple[str, str]] = {
    "record": ("record", "Record page faults, userfaults and KVM exits of a process or VM with eBPF."),
    "inspect": ("inspect", "Show what a trace holds: host, probes, losses, faults, stalls."),
    "replay": ("replay", "Run a trace's faults through mechanisms; write the rows or the summary."),
    "explain": ("explain", "One fault's life: measured and replayed, stage by stage."),
    "compare": ("compare", "One table: a trace under each mechanism, beside what was measured."),
    "validate": ("validate", "Compare predictions with measurements, beside the A/A floor."),
    "calibrate": ("calibrate", "Fit a cost file from traces or from this host."),
    "sweep": ("sweep", "Vary parameters over traces and mechanisms; find where the ranking changes."),
    "report": ("report", "A self-contained HTML page of a comparison."),
    "models": ("models", "List, draw and check mechanisms and cost files."),
    "synth": ("synth", "Make a synthetic trace, marked as such."),
    "lab": ("lab", "Run real guests under each real mechanism and keep the guest's own clock."),
    "import": ("import_", "Make a trace from perf, trace-cmd, bpftrace or QEMU output."),
    "export": ("export", "Write a trace for Perfetto, as CSV or as one Parquet file."),
    "doctor": ("doctor", "Say what this host can record, and how to fix what it cannot."),
}


class Interrupted(Exception):
    """Ctrl-C."""


class _Verbs(click.Group):
    """A group whose commands are modules of `faultreplay.cli.commands`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"faultreplay.cli.commands.{VERBS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)
        return with_quiet(command)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would print an empty line, also into a file
            raise Interrupted from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(cls=_Verbs, params=[quiet_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="faultreplay")
def main() -> None:
    """Record guest-memory faults, replay them through other mechanisms, compare with what was measured.

    Exit codes: 0 ok, 1 run-time error, 2 usage, 3 a threshold was exceeded, 4 incomplete data,
    5 missing kernel feature or tool, 77 no permission. Data goes to stdout, words to stderr.
    """


def run(argv: list[str] | None = None) -> None:
    """Entry point of the console script; never lets a traceback reach the user (FAULTREPLAY_DEBUG=1 does)."""
    own_process()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        sys.exit(_exit_code(argv))


def _exit_code(argv: list[str] | None) -> int:  # noqa: PLR0911 (one return an error class)
    try:
        result = main.main(args=argv, prog_name="faultreplay", standalone_mode=False)
    except FaultreplayError as error:
        _say(str(error))
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        error.message = plain(error.message)  # type: ignore[misc]
        error.show()
        return 2
    except click.ClickException as error:
        _say(error.format_message())
        return 1
    except (Interrupted, click.Abort, KeyboardInterrupt):
        click.echo(err=True, nl=sys.stderr.isatty())  # a terminal has written ^C
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # `| head` closed stdout: not an error, and nothing more may be written there at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _say(f"{error.filename or 'operating system'}: {error.strerror or error}")
        return 77 if isinstance(error, PermissionError) else 1
    except MemoryError:
        _say("out of memory: use a smaller part of the trace (-d, --until) or a larger machine")
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("faultreplay") or os.environ.get("FAULTREPLAY_DEBUG"):
            raise
        _say(
            f"this needs {error.name}, which is not installed here: this installation records, and shows what it "
            "recorded with 'inspect --header'; pip install faultreplay brings the rest"
        )
        return 5
    except Exception as error:
        if os.environ.get("FAULTREPLAY_DEBUG"):
            raise
        place = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        _say(f"internal error: {place} (a bug in faultreplay: run again with FAULTREPLAY_DEBUG=1 and report it)")
        return 1
    return result if isinstance(result, int) else 0


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_more: Any) -> None:
    """A warning of the library is a note for the user; where in Python it arose is for FAULTREPLAY_DEBUG=1."""
    where = f" ({place[0]}:{place[1]})" if os.environ.get("FAULTREPLAY_DEBUG") and place else ""
    click.echo(f"note: {plain(str(message))}{where}", err=True)


def _say(message: str) -> None:
    click.echo(f"error: {plain(message)}", err=True)
