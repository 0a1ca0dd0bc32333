"""A trace in one file: a zip that stores the directory's files unchanged, with their digests."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from faultreplay.faulttrace.anonymous import Anonymiser
from faultreplay.faulttrace.cut import Cut, Span
from faultreplay.faulttrace.directory import (
    EVENTS_DIR,
    FILES,
    META,
    check_free,
    make_trace_dir,
    part_name,
    part_numbers,
    remove_trace,
)
from faultreplay.faulttrace.files import disk_errors, replacing
from faultreplay.faulttrace.meta import Losses, Meta
from faultreplay.faulttrace.place import Location
from faultreplay.faulttrace.regular import open_regular
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.writer import whole_trace, write_truth

_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the same trace gives the same file
_MODE: Final = 0o100600
_CHUNK_BYTES: Final = 1 << 20


def pack(source: Location, output: Path, *, force: bool = False) -> int:
    """Write the checked trace at `source` into the single file `output`; returns its size in bytes.

    Raises:
        UsageError: `output` exists and is not a trace, or it is one and `force` is off.
    """
    check_free(output, force=force)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name in _files(source):
                    member = zipfile.ZipInfo(name, _DATE)
                    member.external_attr = _MODE << 16
                    with archive.open(member, "w", force_zip64=True) as into, open_regular(source / name) as stream:
                        shutil.copyfileobj(stream, into, _CHUNK_BYTES)
            if output.is_dir():
                remove_trace(output)
    return output.stat().st_size


def copy(source: Location, output: Path, *, force: bool = False) -> None:
    """Write the checked trace at `source` as the directory `output`.

    Raises:
        UsageError: `output` exists and is not a trace, or it is one and `force` is off.
    """
    make_trace_dir(output, force=force)
    try:
        with disk_errors(output):
            for name in sorted(_files(source), key=lambda name: name == META):  # meta.json last: copy is complete
                with (
                    replacing(output / name) as temporary,
                    open_regular(source / name) as stream,
                    temporary.open("wb") as into,
                ):
                    shutil.copyfileobj(stream, into, _CHUNK_BYTES)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


@contextlib.contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A path beside `output` for an intermediate trace, which is removed at the end."""
    made = output.with_name(f".{output.name}.making")
    try:
        remove_trace(made)
        yield made
    finally:
        remove_trace(made)


def _files(source: Location) -> list[str]:
    """Names of all files of a trace, meta.json first; temporary files of a killed writer are not included."""
    named = [name for name in FILES if (source / name).exists()]
    return (
        [*named, *(part_name(number) for number in part_numbers(source))] if (source / EVENTS_DIR).exists() else named
    )


def reduced(
    trace: Trace, into: Path, *, span: Span | None = None, vcpus: Sequence[int] = (), anonymise: bool = False
) -> Meta:
    """Write `trace`, cut or anonymised or both, as the directory `into`; returns the new meta.json.

    Raises:
        UsageError: the trace has no such vCPU, or `into` exists.
        IncompleteData: nothing is left, or a file is damaged.
        MissingFeature: a cut needs the stitcher, which the single-file recorder does not contain.
    """
    cut = Cut(trace, span or Span(), vcpus) if span is not None or vcpus else None
    hidden = Anonymiser(trace) if anonymise else None
    losses = trace.losses_table().to_pylist()
    kept = cut.losses(losses) if cut else losses

    def changed(table: pa.Table, *, events: bool) -> pa.Table:
        for step in (cut, hidden):
            if step is not None:
                table = step.events(table) if events else step.rows(table)
        return table

    with whole_trace(into, Meta()) as writer:
        for table in trace.event_tables():
            writer.append_events(changed(table, events=True))
        meta = cut.meta(kept, sum(row["lost"] for row in losses)) if cut else trace.meta
        meta = hidden.meta(meta) if hidden else meta
        extra = dict(meta.extra)
        if not trace.meta.complete:
            extra["notes"] = [*extra.get("notes", ()), "made from a trace whose recorder did not finish"]
        writer.meta = dataclasses.replace(meta, integrity=writer.meta.integrity, losses=Losses(), extra=extra)
        writer.append_losses(kept)
        faults = trace.original_faults()
        if faults is not None:
            writer.write_faults([changed(faults, events=False)])
    truth = trace.truth_table()
    if truth is not None:
        write_truth(into, changed(truth, events=False))
    return Meta.read(into / META)


def send(
    trace: Trace,
    output: Path,
    *,
    packed: bool,
    span: Span | None = None,
    vcpus: Sequence[int] = (),
    anonymise: bool = False,
    force: bool = False,
) -> Meta:
    """Write `trace` as a directory or one file, optionally cut and anonymised; returns the meta.json written.

    A packed trace contains its faults, so that the receiver need not stitch. Without polars (in the single-file
    recorder) it contains them only if they were stitched before.

    Raises:
        UsageError, IncompleteData, MissingFeature: see `pack`, `reduced`.
    """
    check_free(output, force=force)
    put = pack if packed else copy
    sealed = bool(trace.meta.integrity.recording)  # an older trace is rewritten, to get checksums
    if span is None and not vcpus and not anonymise and sealed:
        _stitch(trace)
        put(trace.path, output, force=force)
        return trace.meta
    with beside(output) as made:
        reduced(trace, made, span=span, vcpus=vcpus, anonymise=anonymise)
        opened = open_trace(made)
        _stitch(opened)
        put(made, output, force=force)
        return opened.meta


def _stitch(trace: Trace) -> None:
    if trace.event_rows and importlib.util.find_spec("polars") is not None:
        trace.faults()
