"""The HTML page: whole, harmless, and with the same numbers as the table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.compare.svg import Curve, cdf, round_values
from faultreplay.cli.main import _exit_code

VOID = {"meta", "line", "path", "polyline", "br"}


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not [n for n, v in attrs if n in ("src", "href") or n.startswith("on")], (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_trace(tmp_path / "a<b>&.trace", uffd_faults(each=60))
    out = tmp_path / "x.html"
    arguments = ["report", str(trace), "-m", "as-recorded,uffd-missing,kvm-exit", "-o", str(out)]
    assert _exit_code(arguments) == 0
    assert f"wrote {out}" in capsys.readouterr().err
    text = out.read_text()
    page = _Checker()
    page.feed(text)
    assert not page.open
    assert "script" not in page.seen
    assert "a<b>&.trace" in page.text  # shown, not obeyed
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert _exit_code(["compare", str(trace), "-m", "uffd-missing", "--format", "md"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| uffd-missing"))
    for cell in row.split("|")[2:7]:
        assert cell.strip() in page.text
    assert _exit_code(arguments) == 2


def test_costs_stand_once_with_their_value(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=60, fetch_ns=200_000))
    out = tmp_path / "x.html"
    assert _exit_code(["report", str(trace), "-m", "uffd-missing,kvm-exit", "-o", str(out)]) == 0
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in out.read_text().splitlines() if "<td" in line]
    (fetch,) = [row for row in rows if row[0] == "fetch"]
    assert 190 < float(fetch[1].removesuffix(" us")) < 215
    assert fetch[2:] == ["this trace", "uffd-missing, kvm-exit"]


def test_a_synthetic_page_does_not_claim_a_measurement(tmp_path: Path) -> None:
    trace, out = tmp_path / "s.trace", tmp_path / "s.html"
    assert _exit_code(["synth", "demand-paging", "--vcpus", "2", "--pages", "50", "-o", str(trace)]) == 0
    assert _exit_code(["report", str(trace), "-m", "uffd-missing", "-o", str(out)]) == 0
    text = out.read_text()
    assert "a synthetic trace: faultreplay synth demand-paging --vcpus 2" in text
    assert "nothing was measured" in text
    assert ">measured<" not in text


def test_cdf_sets_apart_what_was_measured_and_more_curves_than_colours() -> None:
    stalls = np.arange(1, 100)
    root = ET.fromstring(cdf([Curve("m", stalls, dashed=True), *(Curve(f"p{n}", stalls + n) for n in range(9))]))
    lines = {e[0].text: e.attrib for e in root.iter() if e.tag.endswith("polyline")}
    styles = {name: (a["stroke"], a.get("stroke-dasharray")) for name, a in lines.items()}
    assert styles["m"][0] == "currentColor"
    assert len(set(styles.values())) == 10


def test_a_long_label_is_cut_in_the_legend_alone() -> None:
    name = "x" * 80
    root = ET.fromstring(cdf([Curve(name, np.arange(1, 9))]))
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("text")]
    assert max(map(len, texts)) < 60
    assert name in [e.text for e in root.iter() if e.tag.endswith("title")]


def test_cdf_is_well_formed_and_monotone() -> None:
    rng = np.random.default_rng(1)
    drawn = cdf([Curve("a & b", rng.integers(1, 10**7, 500)), Curve("zero", np.zeros(5, dtype=np.int64))])
    root = ET.fromstring(drawn)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 1  # no stall, no curve
    points = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
    assert all(b[0] >= a[0] and b[1] <= a[1] for a, b in pairwise(points))
    assert "No stalls" in cdf([])


@pytest.mark.parametrize(("low", "high"), [(1, 2), (90, 110_000), (1e3, 1e9), (123, 456)])
def test_axis_values_are_few_and_inside(low: float, high: float) -> None:
    values = round_values(low, high)
    assert 1 <= len(values) <= 6
    assert all(low <= v <= high for v in values)
