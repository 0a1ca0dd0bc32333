"""The README's picture: where the stall of the demo's trace goes under each mechanism (make examples).

python scripts/docs/picture.py [docs/assets/demo.svg]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

import faultreplay
from faultreplay.faulttrace.units import format_ns
from faultreplay.replay.language.time_words import TIME_WORDS

ROOT = Path(__file__).resolve().parent.parent.parent
TRACE = ROOT / "sample-traces/guest-uffd-missing.trace"
MECHANISMS = ("uffd-missing", "uffd-missing:handlers=2", "kvm-exit", "kvm-userfault", "kvm-notify-wait")
# Okabe and Ito's colours: told apart by colour-blind readers, and by their lightness in print.
COLOURS = ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#999999")


def draw(out: Path) -> None:
    """Bars of total stall, stacked by where it goes, with the 90 % interval of the difference in words."""
    done = faultreplay.compare(TRACE, list(MECHANISMS))
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "faultreplay", "font.size": 10}
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    rows = list(reversed(done.rows))
    lefts = [0.0] * len(rows)
    for word, colour in zip(TIME_WORDS, COLOURS, strict=True):
        widths = [row.metrics.where_ns.get(word, 0) / 1e9 for row in rows]
        axes.barh([row.mechanism for row in rows], widths, left=lefts, color=colour, label=word, height=0.62)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for place, row in enumerate(rows):
        sure = row.uncertainty
        words = format_ns(row.metrics.total_stall_ns)
        if sure and sure.change and sure.change_percent is not None and not row.leaves_out:
            words += f"   {sure.change_percent:+.0f} % ({sure.change.low:+.0f} to {sure.change.high:+.0f})"
        axes.text(lefts[place] + 0.03, place, words, va="center", bbox={"fc": "white", "ec": "none", "pad": 1})
    measured_s = done.measured.total_stall_ns / 1e9
    axes.axvline(measured_s, color="black", linestyle=":", linewidth=1, zorder=0)
    axes.text(measured_s + 0.03, len(rows) - 0.45, f"measured {format_ns(done.measured.total_stall_ns)}", va="bottom")
    axes.set_xlim(0, 4.4)
    axes.set_ylim(-0.6, len(rows))
    axes.set_xlabel("total stall of 2 vCPUs, s; 90 % interval against the recorded mechanism")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(TIME_WORDS), loc="upper center", bbox_to_anchor=(0.4, 1.16), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    out.write_text("\n".join(line.rstrip() for line in out.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/assets/demo.svg")
