"""A Parquet file written row group by row group; it gets its final name when it is complete."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.files import Marks, disk_errors, parquet_writer, replacing
from faultreplay.faulttrace.meta import FileEntry
from faultreplay.faulttrace.seal import seal_parquet


class GrowingFile:
    """Compresses and writes each added table at once. Before `finish` there is no file at `path`.

    Args:
        path: where the file will be.
        schema: of all tables.
        options: arguments of ParquetWriter.

    Raises:
        FaultreplayError, NoPermission: the disk is full, or the directory is not writable; the methods raise them too.
    """

    def __init__(self, path: Path, schema: pa.Schema, **options: Any) -> None:
        self._path = path
        self.rows = 0
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(path))
            self._temporary = stack.enter_context(replacing(path))
            self._writer = stack.enter_context(parquet_writer(self._temporary, schema, **options))
            self._stack = stack.pop_all()

    def add(self, table: pa.Table) -> None:
        """Write `table` as a row group."""
        try:
            with disk_errors(self._path):
                self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        except BaseException:
            self.abandon()
            raise
        self.rows += table.num_rows

    def finish(self, marks: Marks) -> FileEntry:
        """Write the footer with `marks` and give the file its final name."""
        try:
            with disk_errors(self._path):
                self._writer.add_key_value_metadata(marks.as_metadata())
                self._writer.close()
                sha256 = seal_parquet(self._temporary)
        except BaseException:
            self.abandon()
            raise
        self._stack.close()
        return FileEntry(self.rows, self._path.stat().st_size, sha256)

    def abandon(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(_Abandoned, FaultreplayError), self._stack:
            raise _Abandoned


class _Abandoned(Exception):
    """Raised inside `replacing` to make it remove the temporary file."""
