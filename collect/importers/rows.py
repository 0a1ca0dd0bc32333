"""Rows of a trace from single events and from many at once, in the order of the file."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from faultreplay.collect.importers.raw import Raw, RawColumns
from faultreplay.faulttrace.schema import EVENTS, Kind

_COLUMNS: Final = tuple(field.name for field in EVENTS)
_U64: Final = (1 << 64) - 1
_LINE: Final = "line"
_UNSIGNED: Final = ("addr", "ip", "code", "size")
_DTYPES: Final = {field.name: field.type.to_pandas_dtype() for field in EVENTS}
_LIMITS: Final = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in _DTYPES.items()}


class Rows:
    """Collects rows of `EVENTS`. `tgid`: thread -> process as far as it is known; the owner may add to it."""

    def __init__(self) -> None:
        self.tgid: dict[int, int] = {}
        self._single: list[dict[str, int]] = []
        self._tables: list[dict[str, Any]] = []

    def __len__(self) -> int:
        """Rows that were added one by one and not taken yet."""
        return len(self._single)

    def add(self, raw: Raw, kind: Kind, *, tid: int | None = None, owner: int = 0, **columns: int) -> None:
        """Add a row of thread `tid` (default: who raised the event), of the process of `owner` (default: its own).

        Raises:
            ValueError: a number fits no column.
        """
        who = raw.tid if tid is None else tid
        owner = owner or who
        if who <= 0:
            return  # the idle thread
        row: dict[str, int] = dict.fromkeys(_COLUMNS, 0) | {_LINE: raw.line}
        row |= {"ts_ns": raw.ts_ns, "cpu": raw.cpu, "tgid": self.tgid.get(owner, owner), "tid": who, "kind": int(kind)}
        row |= {"fd": -1, "vcpu": -1}
        row |= {name: value & _U64 if name in _UNSIGNED else value for name, value in columns.items()}
        for name, value in row.items():
            least, most = _LIMITS.get(name, (-(1 << 63), _U64))
            if not least <= value <= most:
                raise ValueError(f"a number does not fit into its column: {name} {value}")
        self._single.append(row)

    def add_many(
        self, raw: RawColumns, kind: Kind, *, tid: npt.NDArray[Any] | None = None, **columns: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_]:
        """Add rows as `add` does; which of them are of a thread that is not the idle one."""
        who = raw.tid if tid is None else tid
        kept = who > 0
        people = np.sort(pl.Series(who).unique().to_numpy())
        tgid = np.array([self.tgid.get(one, one) for one in people.tolist()])[np.searchsorted(people, who)]
        rows: dict[str, Any] = {_LINE: raw.line, "ts_ns": raw.ts_ns, "cpu": raw.cpu, "tgid": tgid, "tid": who}
        rows |= {"kind": np.full(len(who), int(kind)), "fd": np.full(len(who), -1), "vcpu": np.full(len(who), -1)}
        for name in ("addr", "ip", "code", "size", "value", "dur_ns"):
            rows[name] = np.zeros(len(who), dtype=np.uint64 if name in _UNSIGNED else np.int64)
        for name, values in columns.items():
            rows[name] = values.astype(np.uint64) if name in _UNSIGNED else values
        self._tables.append({name: values[kept].astype(_dtype(name)) for name, values in rows.items()})
        return kept

    def take(self) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The rows so far in the order of the file (columns of `EVENTS`) and their lines; they are forgotten here.

        Raises:
            ValueError: a number does not fit into its column.
        """
        parts = {
            name: [np.array([row[name] for row in self._single], dtype=_dtype(name))] for name in (_LINE, *_COLUMNS)
        }
        for table in self._tables:
            for name, values in table.items():
                parts[name].append(values)
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        self._single, self._tables = [], []
        order = np.argsort(whole[_LINE], kind="stable")
        columns = [pa.array(whole[field.name][order], field.type) for field in EVENTS]
        return pa.Table.from_arrays(columns, schema=EVENTS), whole[_LINE][order]


def _dtype(name: str) -> Any:
    return _DTYPES.get(name, np.int64)
