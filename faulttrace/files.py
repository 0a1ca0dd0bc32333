"""The files of a trace on disk: written completely or not at all; damage is reported in one line.

Every Parquet file has page checksums, a digest of itself and the number of its recording (`Marks`). For text files of
users (mechanisms, costs) see `faulttrace.regular.read_text_file`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from faultreplay.faulttrace import limits
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, NoPermission
from faultreplay.faulttrace.meta import FileEntry
from faultreplay.faulttrace.place import Location, Place
from faultreplay.faulttrace.regular import check_regular
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.seal import BLANK, SEAL_KEY, Digest, digest_parquet, seal_parquet
from faultreplay.faulttrace.units import format_ns

_FILE_MODE: Final = 0o600  # addresses of a production guest are private
_TIMES: Final = {"ts_ns", "start_ns", "end_ns"}
_PREFIX: Final = "faultreplay."

EVENTS_OPTIONS: Final[dict[str, Any]] = {
    "compression_level": 1,
    # Most bytes of a number equal those of the row before. Against deltas at level 3: half the time, 1/4 smaller.
    "column_encoding": {f.name: "BYTE_STREAM_SPLIT" for f in EVENTS if not pa.types.is_uint8(f.type)}
    | {"ts_ns": "DELTA_BINARY_PACKED"},
    "use_dictionary": ["kind"],
    "write_statistics": ["ts_ns"],  # the only ones that are read
}
"""How events are written (arguments of ParquetWriter)."""

Source: TypeAlias = Location | pa.BufferReader


@dataclass(frozen=True)
class Marks:
    """What a Parquet file states about itself in its footer (keys ``faultreplay.*``); empty: not stated."""

    recording: str = ""
    """`Integrity.recording` of the trace it belongs to"""
    file: str = ""
    """its name within the trace, as ``events/part-000000.parquet``"""
    made_from: str = ""
    """of derived files: a digest of all that they were derived from"""
    stitch_version: str = ""
    """of stitched faults"""
    stitch: str = ""
    """of stitched faults: how the stitch went (`faulttrace.kept.StitchFacts`)"""

    def as_metadata(self) -> dict[str, str]:
        """For the footer; the placeholder of the digest is last."""
        told = {f"{_PREFIX}{key}": value for key, value in vars(self).items() if value}
        return told | {SEAL_KEY: BLANK}


@dataclass(frozen=True)
class Footer:
    """A Parquet file's footer, checked against a schema."""

    rows: int
    names: frozenset[str]
    """of its columns"""
    marks: Marks
    sealed: bool
    """it holds a digest of itself, and its pages have checksums"""


def write_parquet(path: Path, table: pa.Table, marks: Marks | None = None) -> FileEntry:
    """Write completely or not at all, with checksums and `marks`."""
    options = EVENTS_OPTIONS if table.schema.equals(EVENTS) else {"compression_level": 3}
    return write_tables(path, table.schema, [table], marks, **options)


def write_tables(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    marks: Marks | Callable[[], Marks] | None = None,
    **options: Any,
) -> FileEntry:
    """Write tables of `schema` one after the other into one file; `options` are those of ParquetWriter.

    `marks` may be a function: it is called after the last table.
    """
    with disk_errors(path), replacing(path) as temporary:
        rows, sha256 = put_tables(temporary, schema, tables, marks, **options)
    return FileEntry(rows, path.stat().st_size, sha256)


def put_tables(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    marks: Marks | Callable[[], Marks] | None = None,
    **options: Any,
) -> tuple[int, str]:
    """As `write_tables`, directly into `path`, which the caller renames; returns rows and digest."""
    rows = 0
    with parquet_writer(path, schema, **options) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
        told = marks() if callable(marks) else marks or Marks()
        writer.add_key_value_metadata(told.as_metadata())
    return rows, seal_parquet(path)


def parquet_writer(path: Path, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """With the options of all our files."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, **options)


def write_file(path: Path, data: bytes) -> None:
    """Write completely or not at all."""
    with disk_errors(path), replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that replaces `path` if the body succeeds: sync the data, then rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        temporary.chmod(_FILE_MODE)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An error of the operating system as one line about `path`."""
    try:
        yield
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}: choose a directory you may write") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FaultreplayError(f"{path}: no space left: what was written before is whole and readable") from None
        raise FaultreplayError(f"{path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _damage(where: object, what: str) -> Iterator[None]:
    """Any error of Arrow on damaged bytes (in names: UnicodeDecodeError), as one line."""
    try:
        yield
    except (FaultreplayError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise NoPermission(f"{where}: {error.strerror}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IncompleteData(f"{where}: {what.format(reason)}") from None


def check_footer(path: Location, schema: pa.Schema) -> Footer:
    """Check that a regular file is a complete Parquet file with the columns of `schema`.

    Raises:
        IncompleteData: it is not.
        NoPermission: it may not be read.
    """
    check_regular(path, IncompleteData)
    return footer_of(path, path, schema)


def _stream(source: Source, *, whole: bool) -> Any:
    """What Arrow reads from; `whole`: all of it will be read, else the footer only."""
    if not isinstance(source, Place):
        return source
    if not whole:
        return pa.PythonFile(source.open(), mode="r")
    with source.open() as stream:  # Arrow's threads must not read a Python stream: it can crash at exit
        return pa.BufferReader(stream.read())


def footer_of(source: Source, where: object, schema: pa.Schema) -> Footer:
    """As `check_footer`, also of bytes in memory; `where` names them."""
    with _damage(where, "not a whole Parquet file (truncated?): copy it again"):
        with pq.ParquetFile(_stream(source, whole=False)) as file:
            metadata, stored = file.metadata, file.schema_arrow
        rows = sum(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
        told = {
            key.decode(): value.decode() for key, value in (metadata.metadata or {}).items() if key != b"ARROW:schema"
        }
    for column in schema:
        index = stored.get_field_index(column.name)
        if index < 0 and column.nullable:
            continue  # added after the file was written
        if index < 0:
            raise IncompleteData(f"{where}: column {column.name} is missing")
        if stored.field(index).type != column.type:
            raise IncompleteData(
                f"{where}: column {column.name} is {stored.field(index).type}, the schema says {column.type}"
            )
    if rows != metadata.num_rows or rows < 0:
        raise IncompleteData(f"{where}: damaged: its footer counts {metadata.num_rows} rows, its parts {rows}")
    marks = {name: told.get(f"{_PREFIX}{name}", "") for name in Marks.__dataclass_fields__}
    marks["stitch_version"] = marks["stitch_version"] or told.get("stitch_version", "")  # as older files name it
    return Footer(rows, frozenset(stored.names), Marks(**marks), SEAL_KEY in told)


def check_digest(path: Location, expected: str | None = None) -> str:
    """Check that a file is unchanged; returns its digest.

    Args:
        path: a Parquet file.
        expected: the digest that meta.json lists; None: the one that the file states, if any.

    Raises:
        IncompleteData: it was changed, or is not the expected file.
    """
    return checked(digest_parquet(path), path, expected)


def checked(digest: Digest, where: object, expected: str | None = None) -> str:
    """The digest, if it is the expected one; see `check_digest`."""
    if digest.told and not digest.holds:
        raise IncompleteData(f"{where}: damaged: its bytes have changed since it was written: copy it again")
    if expected is not None and digest.found != expected:
        raise IncompleteData(f"{where}: not the file that meta.json lists (edited, or of another trace): copy it again")
    return digest.found


def read_parquet(path: Location, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's columns, checked against `schema`; checksums of pages are verified where it has them.

    Raises:
        IncompleteData: it cannot be read, needs too much memory or holds impossible values.
    """
    check_regular(path, IncompleteData)
    return read_source(path, path, schema, columns)


def read_source(source: Source, where: object, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read_parquet`, also of bytes in memory; `where` names them."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    footer = footer_of(source, where, schema)
    limits.check_memory(str(where), footer.rows, wanted)
    with _damage(where, "damaged: {}"):
        # Pages of older files have no checksum and are read unverified.
        stored = [name for name in wanted.names if name in footer.names]
        stream = _stream(source, whole=True)
        table = pq.read_table(stream, columns=stored, partitioning=None, page_checksum_verification=True)
        for name in set(wanted.names) - footer.names:  # a nullable column added after the file was written
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    if table.num_rows != footer.rows:
        raise IncompleteData(f"{where}: damaged: {table.num_rows} rows, its footer says {footer.rows}")
    return _checked(where, table, wanted)


def read_groups(
    path: Location, schema: pa.Schema, columns: Sequence[str] | None = None, kinds: Iterable[int] | None = None
) -> Iterator[pa.Table]:
    """As `read_parquet`, row group by row group; if `kinds` is given, only rows of these kinds."""
    import pyarrow.compute as pc  # 9 MB of memory that a recorder does not need

    check_regular(path, IncompleteData)
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    footer = footer_of(path, path, schema)
    stored = [name for name in wanted.names if name in footer.names]
    codes = None if kinds is None else pa.array(list(kinds), pa.uint8())
    with (
        _damage(path, "damaged: {}"),
        pq.ParquetFile(_stream(path, whole=True), page_checksum_verification=True) as file,
    ):
        for number in range(file.metadata.num_row_groups):
            limits.check_memory(str(path), file.metadata.row_group(number).num_rows, wanted)
            mask = None
            if codes is not None:
                mask = pc.is_in(file.read_row_group(number, columns=["kind"])["kind"], codes)
                if not pc.any(mask).as_py():
                    continue
            table = file.read_row_group(number, columns=stored)
            for name in set(wanted.names) - footer.names:
                table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
            table = _checked(path, table, wanted)
            yield table if mask is None else table.filter(mask)


def begin_ns(path: Location) -> int:
    """A lower bound of the times in an event part."""
    with pq.ParquetFile(_stream(path, whole=False)) as file:
        groups = [file.metadata.row_group(n).column(0).statistics for n in range(file.metadata.num_row_groups)]
    if any(told is None or not told.has_min_max for told in groups):
        return 0
    return min((int(told.min) for told in groups), default=0)


def _checked(where: object, table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The columns of `wanted`, checked for impossible values."""
    import pyarrow.compute as pc

    for field in wanted:
        column = table[field.name]
        if not field.nullable and column.null_count:
            raise IncompleteData(f"{where}: column {field.name} has {column.null_count} empty values")
        if field.name in _TIMES and len(column):
            _check_times(where, field.name, column)
    if {"start_ns", "end_ns"} <= set(wanted.names) and pc.any(pc.less(table["end_ns"], table["start_ns"])).as_py():
        raise IncompleteData(f"{where}: damaged: something ends before it starts")
    with _damage(where, "damaged: {}"):
        return table.select(wanted.names).cast(wanted)


def _check_times(where: object, name: str, column: pa.ChunkedArray) -> None:
    import pyarrow.compute as pc

    found = pc.min_max(column).as_py()
    low, high = found["min"], found["max"]
    if low is None:
        return
    if low < 0 or high > limits.MAX_TIME_NS:
        raise IncompleteData(f"{where}: column {name} has the impossible time {low if low < 0 else high} ns")
    if high - low > limits.MAX_SPAN_NS:
        raise IncompleteData(
            f"{where}: column {name} spans {format_ns(high - low)}, more than the {format_ns(limits.MAX_SPAN_NS)} "
            "that a trace may span"
        )
