"""All pictures of a comparison, and as files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faultreplay.cli.report import charts
from faultreplay.cli.report.charts import Picture
from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison


def pictures_of(comparison: Comparison, case: Case) -> list[Picture]:
    """What the page shows, in its order.

    Raises:
        MissingFeature: altair is not installed.
    """
    from faultreplay.analysis.picture.pages import heat
    from faultreplay.analysis.picture.spread import distributions
    from faultreplay.analysis.picture.stages import stall_by_stage
    from faultreplay.analysis.picture.times import stalled_over_time
    from faultreplay.analysis.picture.waits import who_waited

    measured = comparison.workload.measured
    recorded = [(w.start_ns, w.start_ns + w.length_ns, w.kind or "default window") for w in case.windows if w.kind]
    return charts.known(
        [
            charts.total_stall(stall_by_stage(comparison, case)) if comparison.rows or measured else None,
            charts.distribution(distributions(comparison)),
            charts.over_time(stalled_over_time(comparison, case), recorded),
            charts.waits(who_waited(case.faults, case.trace.meta)) if measured else None,
            *charts.page_heat(heat(case.faults, case.workload.clock_start_ns)),
        ]
    )


def vl_convert() -> Any:
    """The library.

    Raises:
        MissingFeature: it is not installed.
    """
    try:
        import vl_convert as vlc
    except ImportError:
        raise MissingFeature("a report needs altair and vl-convert: pip install 'faultreplay[report]'") from None
    return vlc


def runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    text: str = vl_convert().javascript_bundle()
    return text.replace("</script", "<\\/script")


def write_pictures(pictures: list[Picture], directory: Path, ending: str) -> list[Path]:
    """Write each picture as `NAME.png` or `NAME.svg`, on white; a file of that name is written over.

    Raises:
        FaultreplayError: a file cannot be written.
    """
    vlc = vl_convert()
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = directory / f"{picture.name}.{ending}"
            spec = _alone(picture)
            if ending == "png":
                path.write_bytes(vlc.vegalite_to_png(spec, scale=2, allowed_base_urls=[]))
            else:
                path.write_text(vlc.vegalite_to_svg(spec, allowed_base_urls=[]), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise FaultreplayError(f"cannot write {directory}: {error.strerror or error}") from error
    return written


def _alone(picture: Picture) -> dict[str, Any]:
    """The picture with its title, on white."""
    spec = copy.deepcopy(dict(picture.spec))
    spec["background"] = "white"
    spec["title"] = {"text": picture.title, "anchor": "start", "fontSize": 14}
    spec["config"]["font"] = "sans-serif"
    spec["config"]["padding"] = 12
    return spec
