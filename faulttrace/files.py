"""The files of a trace on disk: written whole or not at all, read with one line for each way of being damaged.

Text files of users (mechanisms, costs): `faulttrace.regular.read_text_file`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, NoPermission
from faultreplay.faulttrace.schema import EVENTS, STITCH_VERSION

META: Final = "meta.json"
_FILE_MODE: Final = 0o600  # addresses of a production guest are nobody else's business
_TIMES: Final = {"ts_ns", "start_ns", "end_ns"}


def part_paths(path: Path) -> list[Path]:
    """The event parts of the trace at `path`, in order."""
    return sorted((path / "events").glob("part-*.parquet"))


def write_parquet(path: Path, table: pa.Table) -> int:
    """Write whole or not at all; the file's size in bytes."""
    if table.schema.equals(EVENTS):
        # Times and addresses grow slowly: deltas take a fifth of plain pages.
        encodings = {f.name: "DELTA_BINARY_PACKED" for f in table.schema if not pa.types.is_uint8(f.type)}
        options: dict[str, Any] = {"column_encoding": encodings, "use_dictionary": ["kind"]}
    else:
        options = {}
        table = table.replace_schema_metadata({"stitch_version": str(STITCH_VERSION)})
    with disk_errors(path), replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3, **options)
    return path.stat().st_size


def write_file(path: Path, data: bytes) -> None:
    """Write whole or not at all."""
    with disk_errors(path), replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that replaces `path` when the body ends well: data first, then the name."""
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


def check_footer(path: Path, schema: pa.Schema) -> None:
    """See that a file is whole and has the columns of `schema`.

    Raises:
        IncompleteData: it is not, or has not.
    """
    try:
        stored = pq.read_schema(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise IncompleteData(f"{path}: not a whole Parquet file (truncated?): copy the trace again") from None
    for column in schema:
        index = stored.get_field_index(column.name)
        if index < 0 and column.nullable:
            continue  # it came later than the file
        if index < 0:
            raise IncompleteData(f"{path}: column {column.name} is missing")
        if stored.field(index).type != column.type:
            raise IncompleteData(
                f"{path}: column {column.name} is {stored.field(index).type}, the schema says {column.type}"
            )


def read_parquet(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's columns, checked against `schema`.

    Raises:
        IncompleteData: it cannot be read or holds impossible values.
    """
    check_footer(path, schema)
    try:
        stored = set(pq.read_schema(path).names)
        wanted = list(columns or schema.names)
        table = pq.read_table(path, columns=[name for name in wanted if name in stored], partitioning=None)
        for at, name in enumerate(wanted):
            if name not in stored:
                empty = pa.nulls(table.num_rows, schema.field(name).type)
                table = table.add_column(at, schema.field(name), empty)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise IncompleteData(f"{path}: damaged: {str(error).splitlines()[0][:200]}") from None
    for field in schema:
        if field.name not in table.column_names:
            continue
        column = table[field.name]
        if not field.nullable and column.null_count:
            raise IncompleteData(f"{path}: column {field.name} has {column.null_count} empty values")
        if field.name in _TIMES and len(column) and (low := pc.min(column).as_py()) is not None and low < 0:
            raise IncompleteData(f"{path}: column {field.name} has the impossible time {low} ns")
    if columns is None:
        return table.cast(schema)
    return table.cast(pa.schema([schema.field(name) for name in columns]))
