"""`sweep --plot`: the curves along an axis, or of two axes the map of which mechanism is best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faultreplay.cli.render import check_output
from faultreplay.cli.sweep_view import ranked_words
from faultreplay.faulttrace.errors import UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.explore.axes import Axis
    from faultreplay.analysis.explore.sweep import Sweep

ENDINGS = (".svg", ".png")


def check(path: Path, axes: Sequence[Axis], *, force: bool) -> None:
    """Refuse early, before long work.

    Raises:
        UsageError: not one or two axes of several values, another ending, or the file exists.
        MissingFeature: the libraries are not installed.
    """
    from faultreplay.cli.report.charts import altair
    from faultreplay.cli.report.runtime import vl_convert

    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot {path}: the name must end in {' or '.join(ENDINGS)}")
    if not 1 <= len(axes) <= 2 or any(len(axis.values) < 2 for axis in axes):
        raise UsageError("--plot draws one or two --vary, of several values each")
    check_output(path, force=force)
    altair()
    vl_convert()


def draw(done: Sweep, path: Path) -> list[Path]:
    """Write the picture of each trace: to `path`, of several traces to `path` with the trace's name in it."""
    from faultreplay.cli.report.charts_sweep import Swept, sweep_pictures
    from faultreplay.cli.report.pictures import write_picture

    labels = list(done.plan.traces)
    written = []
    for label in labels:
        values = {point: at for point, at in done.values(label).items() if at}
        if not values:
            continue
        crossings = [crossing for crossing in done.crossings if crossing.trace == label]
        swept = Swept(done.plan.common.axes, values, crossings, ranked_words(done), label)
        to = path if len(labels) == 1 else path.with_name(f"{path.stem}-{label}{path.suffix}")
        written.append(write_picture(sweep_pictures(swept)[0], to))
    return written
