"""What is stitched of recorded traces stays what it was, column by column, or the stitcher's version is raised.

Kept faults are bound to `STITCH_VERSION`: a stitcher that gives other faults under the same version leaves users with
two truths. After a change that is meant: raise the version, say why in its log, and run

    python tests/test_stitch_pinned.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from faultreplay.faulttrace.schema import STITCH_VERSION
from faultreplay.faulttrace.stitch import stitch_trace
from faultreplay.faulttrace.store import open_trace

HERE: Final = Path(__file__).parent
PINNED: Final = HERE / "golden" / "stitched.json"
TRACES: Final = [
    *sorted((HERE.parent / "sample-traces").glob("*.trace")),
    *sorted(path for path in (HERE / "golden").iterdir() if path.is_dir()),
]
_NO_VALUE: Final = -(1 << 62)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _column(column: pl.Series) -> str:
    values = column.to_physical()
    if values.dtype == pl.String:
        return _digest("\0".join(f"{value}" for value in values).encode())
    return _digest(values.cast(pl.Int64).fill_null(_NO_VALUE).to_numpy().tobytes())


def stitched(path: Path) -> dict[str, str | int]:
    """A digest of each column of a trace's faults, of the report and of the windows."""
    result = stitch_trace(open_trace(path))
    found: dict[str, str | int] = {"rows": result.faults.height}
    found |= {name: _column(result.faults[name]) for name in result.faults.columns}
    found["report"] = _digest(json.dumps(asdict(result.report), sort_keys=True, default=str).encode())
    found["windows"] = _digest(repr(result.windows).encode())
    return found


def pinned() -> dict[str, Any]:
    return dict(json.loads(PINNED.read_text()))


def test_the_pinned_version_is_the_stitchers() -> None:
    assert pinned()["stitch_version"] == STITCH_VERSION, f"run: python {Path(__file__).name}"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_recorded_traces_are_stitched_as_before(path: Path) -> None:
    before, now = pinned()["traces"][path.name], stitched(path)
    assert {name: value for name, value in now.items() if before.get(name) != value} == {}, (
        "these columns changed: if that is meant, raise STITCH_VERSION and run this file"
    )
    assert before.keys() == now.keys()


def main() -> int:
    """Write what is stitched today; refused where it changed and the version did not."""
    traces = {path.name: stitched(path) for path in TRACES}
    if PINNED.exists():
        old = pinned()
        changed = [name for name, value in traces.items() if old["traces"].get(name, value) != value]
        if changed and old["stitch_version"] == STITCH_VERSION:
            print(f"error: {', '.join(changed)} changed: raise STITCH_VERSION first", file=sys.stderr)
            return 1
    PINNED.write_text(json.dumps({"stitch_version": STITCH_VERSION, "traces": traces}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
