"""perf.data and trace.dat: read by the tool that wrote them, where it is installed, through a pipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from faultreplay.collect.importers.files import Progress, magic
from faultreplay.collect.importers.layouts import FTRACE, PERF, lex
from faultreplay.collect.importers.raw import Item, LostEvents, Source
from faultreplay.collect.importers.text import read_text
from faultreplay.faulttrace.errors import IncompleteData, MissingFeature

_PERF_DATA: Final = (b"PERFILE2", b"PERFFILE", b"2ELIFREP")
_TRACE_DAT: Final = b"\x17\x08Dtracing"
_COLUMNS: Final = "comm,pid,tid,cpu,time,event,trace"
_PERF: Final = ("perf", "script", "--ns", "--show-lost-events", "--header", "-F", _COLUMNS, "-i")
_TRACE_CMD: Final = ("trace-cmd", "report", "-t", "-i")


def read_through_tool(kind: str, path: Path, source: Source, progress: Progress | None) -> Iterator[Item] | None:
    """Events of a data file as its tool prints them; None where the file is not one.

    Raises:
        IncompleteData: a data file of the other tool, or one that the tool cannot read.
        MissingFeature: the tool is not installed.
    """
    start = magic(path)
    if start.startswith(_PERF_DATA):
        mine, command, layout = "perf-script", [*_PERF, str(path)], PERF
    elif start.startswith(_TRACE_DAT):
        mine, command, layout = "trace-cmd", [*_TRACE_CMD, str(path)], FTRACE
    else:
        return None
    if kind != mine:
        raise IncompleteData(f"{path}: {'perf.data' if layout is PERF else 'trace.dat'}: give it with --from {mine}")
    if shutil.which(command[0]) is None:
        raise MissingFeature(
            f"{path}: only {command[0]} reads this and it is not installed here: install it "
            f"({'linux-perf' if layout is PERF else 'trace-cmd'}), or run where it was recorded: "
            f"{' '.join(command[:-2])} -i {path.name} > {path.name}.txt"
        )
    return _piped(command, path, source, progress)


def _piped(command: list[str], path: Path, source: Source, progress: Progress | None) -> Iterator[Item]:
    layout = PERF if command[0] == "perf" else FTRACE
    with tempfile.TemporaryFile() as errors:
        environment = os.environ | {"PERF_CONFIG": os.devnull, "PERF_PAGER": "cat", "LC_ALL": "C"}
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as tool:
            try:
                yield from read_text(layout, path, source, progress, stream=tool.stdout)
            except BaseException:
                tool.kill()
                raise
        if tool.returncode:
            raise IncompleteData(f"{path}: {command[0]} cannot read it: {_last_words(errors)}")
        yield from _losses_said(errors)


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read(1 << 16).decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


def _losses_said(errors: IO[bytes]) -> Iterator[LostEvents]:
    """perf warns of lost chunks on its error output only."""
    errors.seek(0)
    for line in errors.read(1 << 20).decode(errors="replace").splitlines():
        lost = lex(PERF, line)
        if isinstance(lost, LostEvents):
            yield lost
