"""All pictures of a comparison, and as files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.compare_view import labels_of, served_words
from faultreplay.cli.report import charts_pages, charts_stalls
from faultreplay.cli.report.charts import Picture, known
from faultreplay.cli.report.charts_sweep import Swept, sweep_pictures
from faultreplay.cli.report.runtime import vega_lite, vl_convert
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.plain_text import plain

QUICK_FAULTS: Final = 3_000_000
"""A sweep that replays more faults is made only when asked for."""

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison
    from faultreplay.analysis.explore.stored import Kept
    from faultreplay.cli.render import Report


def pictures_of(comparison: Comparison, case: Case) -> list[Picture]:
    """What the page shows of a comparison, in its order.

    Raises:
        MissingFeature: altair is not installed.
    """
    from faultreplay.analysis.picture.pages import heat
    from faultreplay.analysis.picture.spread import distributions
    from faultreplay.analysis.picture.stages import stall_by_stage
    from faultreplay.analysis.picture.still import standstills
    from faultreplay.analysis.picture.times import by_cause, series_of, stalled_over_time
    from faultreplay.analysis.picture.waits import who_waited

    measured, begin_ns = comparison.workload.measured, case.workload.clock_start_ns
    labels, served = labels_of(comparison), served_words(comparison)
    series = series_of(comparison, case)
    seeds = f"Of {case.setup.seeds} seeds the first is drawn." if case.setup.seeds > 1 else ""
    windows = [(w.start_ns, w.start_ns + w.length_ns, w.kind) for w in case.windows if w.kind]
    return known(
        [
            charts_stalls.total_stall(stall_by_stage(comparison, case), labels, served),
            charts_stalls.standstill(standstills(comparison), labels),
            charts_stalls.distribution(distributions(series), labels, seeds),
            charts_stalls.over_time(stalled_over_time(series), windows, labels, seeds),
            charts_stalls.phases(by_cause(case.faults, begin_ns), windows) if measured else None,
            charts_stalls.waits(who_waited(case.faults, case.trace.meta)) if measured else None,
            *charts_pages.page_heat(heat(case.faults, begin_ns)),
        ]
    )


def swept_pictures(
    comparison: Comparison, case: Case, mechanisms: Sequence[str], vary: str = ""
) -> tuple[list[Picture], list[str]]:
    """The comparison's mechanisms along an axis, and words to it; neither where there is nothing to choose.

    Args:
        comparison: what the page is on.
        case: what it was made from.
        mechanisms: as they were asked for; none: the default ones.
        vary: the axis as `sweep` names it; by default fetch, where replaying that many faults is quick.

    Raises:
        UsageError: no such axis.
    """
    from faultreplay.analysis.compare.case import REFERENCES
    from faultreplay.analysis.compare.compare import default_names
    from faultreplay.analysis.explore.along import along, fetch_axis
    from faultreplay.analysis.explore.axes import parse_axis
    from faultreplay.analysis.explore.crossover import crossings

    rows = [row for row in comparison.rows if row.mechanism not in REFERENCES]
    names = list(mechanisms or default_names(case))
    axis = parse_axis(vary, names) if vary else fetch_axis(case)
    if not vary and (len(rows) < 2 or not any(axis.name in row.costs for row in rows)):
        return [], []
    replays = comparison.faults * len(axis.values) * len(rows)
    if not vary and replays > QUICK_FAULTS:
        return [], [f"Not drawn: stall over fetch would replay {replays:,} faults. Ask with --vary fetch=LOW..HIGH."]
    values, unranked = along(case, names, axis)
    found = crossings(case.trace.name, [axis], values)
    words = [f"Only {axis.key} varies; everything else is as in the table. The curves have no intervals."]
    words += [f"Not drawn, as less stall of it is no gain: {name} {why}." for name, why in unranked.items()]
    here = [row.cost_means_ns[axis.name] for row in rows if axis.name in row.cost_means_ns]
    if here and axis.unit == "ns":
        words.append(f"In the table the mean of {axis.key} is {axis.show(here[0])}.")
    return sweep_pictures(Swept([axis], values, found, labels=labels_of(comparison))), words


def stored_pictures(kept: Kept) -> tuple[list[Picture], Report]:
    """The curves of a stored sweep, and its table with the answer in sentences and where it comes from."""
    from faultreplay.cli.sweep_view import ranked_words, trace_table

    done, label = kept.sweep, kept.label
    axes = done.plan.common.axes
    values = {point: at for point, at in done.values(label).items() if at}
    crossings = [crossing for crossing in done.crossings if crossing.trace == label]
    swept = Swept(axes, values, crossings, ranked_words(done), tolerance=done.tolerance)
    table = trace_table(done, label)
    words = f"Stored in {kept.file} on {kept.made} UTC by faultreplay {kept.tool}, seed {kept.seed}: {kept.command}"
    drawn = sweep_pictures(swept) if values and axes else []
    below = " ".join(picture.words for picture in drawn)
    notes = [note for note in table.notes if plain(note) not in below]
    return drawn, replace(table, title=f"Sweep: {ranked_words(done)}", notes=[*notes, words])


def write_pictures(pictures: Sequence[Picture], directory: Path, ending: str) -> list[Path]:
    """Write each picture into `directory` as ``NAME.png`` or ``NAME.svg``; a file of that name is written over.

    Raises:
        FaultreplayError: a file cannot be written.
        MissingFeature: vl-convert is not installed.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaultreplayError(f"cannot write {directory}: {error.strerror or error}") from error
    return [write_picture(picture, directory / f"{picture.name}.{ending}") for picture in pictures]


def write_picture(picture: Picture, path: Path) -> Path:
    """Write one picture, on white and with its title, as PNG or (by the ending of `path`) SVG.

    Raises:
        FaultreplayError: the file cannot be written.
        MissingFeature: vl-convert is not installed.
    """
    vlc, spec = vl_convert(), _alone(picture)
    how: dict[str, Any] = {"vl_version": vega_lite(), "allowed_base_urls": []}
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(vlc.vegalite_to_svg(spec, **how), encoding="utf-8")
        else:
            path.write_bytes(vlc.vegalite_to_png(spec, scale=2, **how))
    except OSError as error:
        raise FaultreplayError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _alone(picture: Picture) -> dict[str, Any]:
    """The picture as a file of its own: black ink on white, whatever shows it."""
    spec: dict[str, Any] = _inked(copy.deepcopy(dict(picture.spec)))
    spec["background"] = "white"
    spec["title"] = {"text": picture.title, "anchor": "start", "fontSize": 14}
    spec["config"]["font"] = "sans-serif"
    spec["config"]["padding"] = 12
    return spec


def _inked(part: Any) -> Any:
    """Black in place of the page's own ink, which a viewer may take for anything."""
    if isinstance(part, dict):
        return {key: _inked(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_inked(value) for value in part]
    return "black" if part == "currentColor" else part
