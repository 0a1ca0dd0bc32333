"""Faults that are stored with the events: written table by table, with the report of the stitch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa

from faultreplay.faulttrace.files import Marks, write_tables
from faultreplay.faulttrace.meta import WindowSpan
from faultreplay.faulttrace.place import Location
from faultreplay.faulttrace.schema import FAULTS
from faultreplay.faulttrace.stitch.report import StitchReport
from faultreplay.faulttrace.stitch.run import STRETCH_ROWS, Run

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.stitch.source import Source

Progress = Callable[[int, int], None]
NOT_KEPT: Final = "faults not kept, so they are stitched anew each time: {}"


@dataclass(frozen=True)
class StitchFacts:
    """What a stitch returns besides the faults: its report, and the windows inferred from the ioctls."""

    report: StitchReport
    windows: list[WindowSpan]

    def to_json(self) -> str:
        """JSON on one line."""
        return msgspec.json.encode(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> StitchFacts | None:
        """Decode the output of `to_json`; None for anything else."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            return None


def stitch_into(path: Path, source: Source, meta: Meta, marks: Marks, progress: Progress | None = None) -> StitchFacts:
    """Stitch, and write the faults to the file `path`, completely or not at all.

    Raises:
        NoPermission: it may not be written there.
        FaultreplayError: no space left.
        IncompleteData: the events are damaged.
    """
    run = Run(source, meta, STRETCH_ROWS, directory=str(path.parent), progress=progress)

    def told() -> Marks:
        facts = StitchFacts(run.report, run.windows).to_json()
        return Marks(marks.recording, marks.file, marks.made_from, marks.stitch_version, facts)

    write_tables(path, FAULTS, run.faults(), told)
    return StitchFacts(run.report, run.windows)


def stitched_tables(source: Source, meta: Meta, progress: Progress | None = None) -> tuple[list[pa.Table], StitchFacts]:
    """Stitch in memory; returns the faults and the facts of the stitch."""
    run = Run(source, meta, STRETCH_ROWS, progress=progress)
    tables = list(run.faults())
    return tables, StitchFacts(run.report, run.windows)


def may_write(directory: Location) -> bool:
    """Whether a file may be created in `directory`."""
    return isinstance(directory, Path) and os.access(directory, os.W_OK | os.X_OK)
