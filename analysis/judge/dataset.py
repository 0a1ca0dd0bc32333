"""A sweep's results on disk: Parquet files of many cells each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import FaultreplayError, NoPermission, UsageError
from faultreplay.faulttrace.files import check_digest, put_tables

_MARK: Final = "_faultreplay_sweep.json"
_BATCH_ROWS: Final = 512
_BATCH_AGE_S: Final = 30.0


def is_data_set(directory: Path) -> bool:
    """Whether a sweep made the directory."""
    return (directory / _MARK).is_file()


class DataSet:
    """The directory's files ``cells-HASH.parquet``, many cells each, with the columns ``trace`` and ``mechanism``.

    A file is written whole and renamed: what is there is done. Only the process that runs the sweep writes. Files of
    one cell each, as older versions wrote them (``trace=T/mechanism=M/KEY.parquet``), are read, too.

    Raises (constructor):
        UsageError: the directory holds something else.
    """

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.directory = directory
        self.schema = schema
        names = (pa.field("trace", pa.string()), pa.field("mechanism", pa.string()))
        self._stored = pa.schema([*names, *schema])
        self._waiting: dict[str, dict[str, Any]] = {}
        self._since_s = 0.0  # when the oldest of them came
        mark = directory / _MARK
        if directory.exists() and not mark.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory}: exists and is not a sweep's data set: choose another directory")
        with _errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not mark.exists():
                mark.write_text(json.dumps({"file": "cells-HASH.parquet"}) + "\n")
        self._rows: dict[str, dict[str, Any]] = {}
        self._file: dict[str, Path] = {}
        self._keys: dict[Path, list[str]] = {}
        for path in sorted(directory.rglob("*.parquet")):
            self._read_file(path)

    def read(self, trace: str, mechanism: str, key: str) -> dict[str, Any] | None:
        """A cell's row; None where it was not run yet or its file is damaged."""
        row = self._rows.get(key)
        if row is None or row.get("trace", trace) != trace or row.get("mechanism", mechanism) != mechanism:
            return None
        return {name: row.get(name) for name in self.schema.names}

    def write(self, trace: str, mechanism: str, key: str, row: Mapping[str, Any]) -> None:
        """Add a cell's row; it is on disk after `flush`, or when many or old rows wait."""
        if not self._waiting:
            self._since_s = time.monotonic()
        self._waiting[key] = {"trace": trace, "mechanism": mechanism, **row}
        if len(self._waiting) >= _BATCH_ROWS or time.monotonic() - self._since_s > _BATCH_AGE_S:
            self.flush()

    def flush(self) -> None:
        """Put the rows that wait into one file; rows of the same cells elsewhere go."""
        rows, self._waiting = self._waiting, {}
        if not rows:
            return
        old = {self._file[key] for key in rows if key in self._file}
        rows = {key: self._rows[key] for path in old for key in self._keys[path]} | rows
        path = self._put(rows)
        with _errors(self.directory):
            for other in old - {path}:
                other.unlink(missing_ok=True)
                self._keys.pop(other, None)

    def _put(self, rows: Mapping[str, dict[str, Any]]) -> Path:
        keys = sorted(rows)
        path = self.directory / f"cells-{hashlib.blake2b(' '.join(keys).encode(), digest_size=12).hexdigest()}.parquet"
        part = path.with_name(f".{path.name}.part")
        with _errors(path):
            try:
                put_tables(part, self._stored, [pa.Table.from_pylist([rows[key] for key in keys], self._stored)])
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        self._note(path, rows)
        return path

    def _read_file(self, path: Path) -> None:
        folders = dict(part.split("=", 1) for part in path.relative_to(self.directory).parts[:-1] if "=" in part)
        try:
            check_digest(path)
            rows = pq.read_table(path, partitioning=None, page_checksum_verification=True).to_pylist()
        except (OSError, ValueError, FaultreplayError):
            return
        self._note(path, {str(row["key"]): folders | row for row in rows if row.get("key")})

    def _note(self, path: Path, rows: Mapping[str, dict[str, Any]]) -> None:
        self._rows.update(rows)
        self._file.update(dict.fromkeys(rows, path))
        self._keys[path] = list(rows)


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
