"""Real KVM guests and processes under each real mechanism, recorded together with their own clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faultreplay.lab.spec import LabResult, LabSpec


def run(spec: LabSpec, out: Path | None = None, record: bool = True, force: bool = False) -> LabResult:
    """Run `spec` for real; see `lab.runner.run`. Imported when called: the command line's help needs none of it."""
    from faultreplay.lab.runner import run as real_run

    return real_run(spec, out, record, force)
