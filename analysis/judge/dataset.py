"""A sweep's results on disk: one small Parquet file a cell, partitioned by trace and mechanism."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import FaultreplayError, NoPermission, UsageError
from faultreplay.faulttrace.files import check_digest, put_tables

_MARK: Final = "_faultreplay_sweep.json"


class DataSet:
    """The directory ``trace=T/mechanism=M/KEY.parquet``; any reader of hive-partitioned Parquet takes it.

    A file is written whole and renamed: what is there is done. Only the process that runs the sweep writes.

    Raises (constructor):
        UsageError: the directory holds something else.
    """

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.directory = directory
        self.schema = schema
        mark = directory / _MARK
        if directory.exists() and not mark.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory}: exists and is not a sweep's data set: choose another directory")
        with _errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            mark.write_text(json.dumps({"partitions": ["trace", "mechanism"], "file": "KEY.parquet"}) + "\n")

    def path(self, trace: str, mechanism: str, key: str) -> Path:
        """Where a cell's file is or will be."""
        return self.directory / f"trace={trace}" / f"mechanism={mechanism}" / f"{key}.parquet"

    def read(self, trace: str, mechanism: str, key: str) -> dict[str, Any] | None:
        """A cell's row; None where it was not run yet or its file is damaged."""
        try:
            path = self.path(trace, mechanism, key)
            check_digest(path)
            rows = pq.read_table(path, partitioning=None, page_checksum_verification=True).to_pylist()
        except (OSError, ValueError, FaultreplayError):
            return None
        if len(rows) != 1 or rows[0].get("key") != key:
            return None
        row: dict[str, Any] = {name: rows[0].get(name) for name in self.schema.names}
        return row

    def write(self, trace: str, mechanism: str, key: str, row: Mapping[str, Any]) -> None:
        """Put a cell's row in its place, whole."""
        path = self.path(trace, mechanism, key)
        part = path.with_name(f".{path.name}.part")
        with _errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                put_tables(part, self.schema, [pa.Table.from_pylist([dict(row)], self.schema)])
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)


class _errors:
    """One line instead of a traceback when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PermissionError):
            raise NoPermission(f"{self.path}: may not be written: choose another directory") from None
        if isinstance(error, OSError):
            raise FaultreplayError(f"{self.path}: {error.strerror or error}") from None
