"""The files of an opened trace. The digest of each is checked before its content is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from faultreplay.faulttrace.belonging import Part, made_from
from faultreplay.faulttrace.directory import FAULTS_FILE
from faultreplay.faulttrace.files import check_digest, read_parquet
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.place import Location
from faultreplay.faulttrace.reading import PartsSource
from faultreplay.faulttrace.schema import Kind

if TYPE_CHECKING:
    import polars as pl


class CheckedFiles:
    """The files of the trace at `path`, which has these event `parts`."""

    def __init__(self, path: Location, meta: Meta, parts: Sequence[Part]) -> None:
        self.path = path
        self.meta = meta
        self.parts = parts
        self._digests: dict[str, str] = {}  # of files whose bytes were checked, by name

    def source(self, kinds: Iterable[Kind] | None) -> PartsSource:
        """Events of these kinds (None: all), for reading in time order without holding all of them in memory."""
        return PartsSource(self.parts, kinds, self.check)

    def made_from(self) -> str:
        """A digest of all that faults are stitched from."""
        for part in self.parts:
            self.check(part.name)
        return made_from(self.meta, self._digests)

    def check(self, name: str) -> None:
        """Check once that the bytes of a file are those that were written."""
        if name not in self._digests:
            entry = self.meta.integrity.files.get(name)
            self._digests[name] = check_digest(self.path / name, entry.sha256 if entry else None)

    def frame(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """As `table`, but a polars frame."""
        import polars as pl

        frame = pl.from_arrow(self.table(name, schema, columns))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def table(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """The checked rows of a file: all columns of `schema`, or only `columns`. Empty if there is no such file."""
        path = self.path / name
        if not path.exists():
            return schema.empty_table()
        if name != FAULTS_FILE or not self.parts:  # kept faults: see `faults_are_kept`
            self.check(name)
        return read_parquet(path, schema, columns)
