"""Counts of a stitch: faults of each cause, how they were joined, which a group of probes explains that was off."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from faultreplay.faulttrace.stitch.keys import NEVER
from faultreplay.faulttrace.stitch.report import StitchReport
from faultreplay.faulttrace.stitch.shed import ShedSpans


class Summary:
    """Counts of faults that come in order, table by table."""

    def __init__(self, shed: ShedSpans) -> None:
        self._shed = shed
        self._causes: Counter[str] = Counter()
        self._unjoined: Counter[str] = Counter()
        self._joins: Counter[str] = Counter()
        self._unjoined_shed: Counter[str] = Counter()
        self._waiting: dict[int, tuple[int, str]] = {}  # thread id -> (start, cause) of its last fault, without an end

    def add(self, table: pa.Table) -> None:
        """The next faults (columns of `FAULTS`)."""
        unended = table.filter(table["end_ns"].is_null())
        for counter, column in (
            (self._causes, table["cause"]),
            (self._unjoined, unended["cause"]),
            (self._joins, table["join"]),
        ):
            for one in column.value_counts().to_pylist():
                counter[one["values"]] += one["counts"]
        if self._shed.any:
            self._add_shed(table)

    def fill(self, report: StitchReport) -> None:
        """Put them into the report."""
        for start_ns, cause in self._waiting.values():
            self._count_shed(cause, start_ns, NEVER)
        report.faults_by_cause = dict(sorted(self._causes.items()))
        report.unjoined_by_cause = dict(sorted(self._unjoined.items()))
        report.unjoined_shed_by_cause = dict(sorted(self._unjoined_shed.items()))
        report.joins = dict(sorted(self._joins.items()))

    def _add_shed(self, table: pa.Table) -> None:
        """A fault without an end may have been open until its thread's next one began."""
        rows = zip(
            *(table[name].to_pylist() for name in ("tid", "start_ns", "cause")),
            table["end_ns"].is_null().to_pylist(),
            strict=True,
        )
        for tid, start_ns, cause, unended in rows:
            if tid in self._waiting:
                before, its_cause = self._waiting.pop(tid)
                self._count_shed(its_cause, before, start_ns)
            if unended:
                self._waiting[tid] = (start_ns, cause)

    def _count_shed(self, cause: str, start_ns: int, until_ns: int) -> None:
        if self._shed.touch(np.array([start_ns], np.int64), np.array([until_ns], np.int64))[0]:
            self._unjoined_shed[cause] += 1
