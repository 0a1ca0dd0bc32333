"""The HTML page: whole, harmless, small, and with the same numbers and words as the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.cli.main import _exit_code
from faultreplay.cli.manners import without_folder
from faultreplay.cli.render import Column, Report
from faultreplay.cli.report import answers as answering
from faultreplay.cli.report import charts_pages, charts_stalls
from faultreplay.cli.report.assets import policy
from faultreplay.cli.report.tables import table, without_folders
from faultreplay.faulttrace.meta import Target, Thread

VOID = {"meta", "br"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"


class _Checker(HTMLParser):
    """What is on a page: elements are closed, nothing is loaded, no handler is hung on anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        bad = [
            n for n, v in attrs if n == "src" or n.startswith("on") or (n == "href" and not (v or "").startswith("#"))
        ]
        assert not bad, (tag, attrs)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if self.cells and {"td", "th"} & set(self.open):
            self.cells[-1] += data


def specs(text: str) -> dict[str, Any]:
    """The pictures' specifications, by the names of their elements."""
    found = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', text, re.S)
    assert found
    whole: dict[str, Any] = json.loads(found[1])
    return whole


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes the page of a trace, once for each trace and options."""
    kept: dict[tuple[str, ...], str] = {}

    def page(trace: Path, *options: str) -> str:
        key = (str(trace), *options)
        if key not in kept:
            out = tmp_path_factory.mktemp("page") / "x.html"
            assert _exit_code(["report", str(trace), *options, "-o", str(out)]) == 0
            kept[key] = out.read_text()
        return kept[key]

    return page


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("t") / "small.trace", uffd_faults(each=60, fetch_ns=200_000))


def test_the_page_is_whole_loads_nothing_and_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_trace(tmp_path / "a<b>&.trace", uffd_faults(each=60))
    out = tmp_path / "x.html"
    arguments = ["report", str(trace), "-m", "as-recorded,uffd-missing,kvm-exit", "-o", str(out)]
    assert _exit_code(arguments) == 0
    assert f"wrote {out}" in capsys.readouterr().err
    text = out.read_text()
    page = _Checker(text)
    assert "a<b>&.trace" in page.text  # shown, not obeyed
    assert str(tmp_path) not in text  # whose folders they are is nobody's business
    assert "default-src 'none'" in text and "unsafe-eval" not in text
    assert _exit_code(["compare", str(trace), "-m", "uffd-missing", "--format", "md"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| uffd-missing"))
    for cell in row.split("|")[2:7]:
        assert cell.strip() in page.text
    assert _exit_code(arguments) == 2


def test_scripts_are_those_of_the_policy_alone(made: Callable[..., str], small: Path) -> None:
    text = made(small, "-m", "uffd-missing,kvm-exit")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    assert f'content="{policy(scripts)}"' in text
    assert "unsafe" not in policy(scripts).split("script-src")[1]


def test_hostile_names_are_text_on_the_page(tmp_path: Path, made: Callable[..., str]) -> None:
    rows = [row | {"accessor": "vmm", "vcpu": -1} for row in uffd_faults(each=40)]
    threads = [Thread(200, HOSTILE, "vmm"), Thread(201, "x\"]}'{{7*7}}", "vmm")]
    trace = write_trace(tmp_path / "h.trace", rows, targets=[Target(tgid=100, comm=HOSTILE, threads=threads)])
    text = made(trace, "-m", "uffd-missing,kvm-userfault")
    page = _Checker(text)
    assert page.seen.count("script") == 3 and "img" not in page.seen
    assert "\x1b" not in text and "\u202e" not in text
    whole = json.dumps(specs(text)["who-waited"])
    assert "alert(1)" in whole  # it is there, as the name that it is
    assert "</script><script>alert" not in text


def test_answer_comes_first_and_says_what_the_table_says(made: Callable[..., str], small: Path) -> None:
    text = made(small, "-m", "uffd-missing,kvm-exit")
    first = re.search(r'<p class="first">(.*?)</p>', text)
    assert first and first.start() < text.index("<table")
    said = re.fullmatch(
        r"kvm-exit would cut the stall of this trace by (\d+)&nbsp;% \((\d+) to (\d+)\), to .*", first[1]
    )
    assert said, first[1]
    change, low, high = map(int, said.groups())
    assert low <= change <= high
    assert f">-{change} % (-{high} to -{low})<" in text  # the cell of the table
    assert "Verdict: " in text
    assert ">kvm-exit *<" in text and "it depends on costs not measured on this host" in first[1]
    bars = json.dumps(specs(text)["total-stall"])
    assert '"kvm-exit *"' in bars  # marked in the pictures as in the table


def test_what_is_held_against_another_row_is_not_called_the_traces_stall(made: Callable[..., str], small: Path) -> None:
    for options in (("--baseline", "kvm-exit"), ("--fetch", "1ms")):
        text = made(small, "-m", "uffd-missing,kvm-exit", *options)
        first = re.search(r'<p class="first">(.*?)</p>', text)
        assert first and "of this trace" not in first[1]
        assert re.search("would (cut|lengthen) stall, against (kvm-exit|uffd-missing), by", first[1])


def test_stages_of_a_picture_add_up_to_the_table(made: Callable[..., str], small: Path) -> None:
    import faultreplay

    text = made(small, "-m", "uffd-missing,kvm-exit")
    comparison = faultreplay.compare(small, ["uffd-missing", "kvm-exit"])
    bars = specs(text)["total-stall"]["layer"][0]["data"]["values"]
    found: dict[str, int] = {}
    for bar in bars:
        name = bar["mechanism"].removesuffix(" *")
        found[name] = found.get(name, 0) + bar["stall_ns"]
    totals = {row.mechanism: row.metrics.total_stall_ns for row in comparison.rows}
    assert found == totals | {"measured": comparison.measured.total_stall_ns}
    sure = {
        row["mechanism"]: row for layer in specs(text)["total-stall"]["layer"][1:2] for row in layer["data"]["values"]
    }
    row = next(row for row in comparison.rows if row.mechanism == "kvm-exit")
    assert row.uncertainty
    assert sure["kvm-exit *"]["low_ns"] == round(row.uncertainty.total_ns.low)


def test_what_a_mechanism_does_not_serve_is_said_in_words(tmp_path: Path, made: Callable[..., str]) -> None:
    rows = uffd_faults(each=60)
    other = [
        row | {"accessor": "vmm", "vcpu": -1, "tid": 250, "start_ns": row["start_ns"] + 7, "fault_id": 1000 + n}  # type: ignore[operator]
        for n, row in enumerate(rows[::6])
    ]
    trace = write_trace(tmp_path / "part.trace", sorted([*rows, *other], key=lambda row: (row["start_ns"], row["tid"])))  # type: ignore[arg-type,return-value]
    text = made(trace, "-m", "uffd-missing,kvm-exit")
    page = _Checker(text.replace("&nbsp;", " "))
    served = re.search(r"kvm-exit serves (\d+ %) of the faults itself", page.text)
    assert served and served[1] in page.cells  # as in the table
    assert re.search(rf"it serves {served[1]} of the faults itself", page.text)


def test_a_mechanism_without_numbers_has_a_reason(tmp_path: Path, made: Callable[..., str]) -> None:
    rows = [row | {"accessor": "vmm", "vcpu": -1} for row in uffd_faults(each=40)]
    text = made(write_trace(tmp_path / "novcpu.trace", rows), "-m", "uffd-missing,kvm-exit")
    assert "kvm-exit has no numbers for this trace: no vCPU in this trace" in text
    assert "kvm-exit" not in json.dumps(specs(text))


def test_costs_stand_once_with_their_value(made: Callable[..., str], small: Path) -> None:
    text = made(small, "-m", "uffd-missing,kvm-exit")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in text.split("<tbody>") if "<td" in line]
    (fetch,) = [row for row in rows if row[0] == "fetch"]
    assert 190 < float(fetch[1].removesuffix(" us")) < 215
    assert fetch[4:6] == ["this trace", "uffd-missing, kvm-exit"]
    assert fetch[6] == "measured in this trace: small"


def test_a_synthetic_page_does_not_claim_a_measurement(tmp_path: Path, made: Callable[..., str]) -> None:
    trace = tmp_path / "s.trace"
    assert _exit_code(["synth", "demand-paging", "--vcpus", "2", "--pages", "50", "-o", str(trace)]) == 0
    text = made(trace, "-m", "uffd-missing")
    assert "a synthetic trace: faultreplay synth demand-paging --vcpus 2" in text
    assert "nothing was measured" in text
    assert ">measured<" not in text
    assert '"measured"' not in json.dumps(specs(text))


def test_how_it_was_made_can_be_made_again(
    tmp_path: Path, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = write_trace(tmp_path / "here.trace", uffd_faults(each=40))
    monkeypatch.setattr("sys.argv", ["faultreplay", "report", str(trace), f"--costs={tmp_path}/x.toml", "--seed", "7"])
    text = made(trace, "-m", "uffd-missing", "--seed", "7")
    assert "faultreplay report here.trace --costs=x.toml --seed 7" in text
    assert re.search(r"<dt>seed</dt><dd><code>7</code>", text)
    assert re.search(r"<dt>trace id</dt><dd><code>[0-9a-f]{32}</code>", text)


def test_losses_are_on_the_page(tmp_path: Path, made: Callable[..., str]) -> None:
    trace = write_trace(tmp_path / "lost.trace", uffd_faults(each=60), lost=3)
    page = _Checker(made(trace, "-m", "uffd-missing", "--max-loss", "10"))
    assert "3 events were lost, 2.9\xa0% of all." in page.text
    assert page.cells[page.cells.index("made") + 1] == "3"


def test_a_large_recording_makes_a_small_page(tmp_path: Path) -> None:
    """Whatever the number of faults: what is drawn are bins and quantiles."""
    sizes = {}
    for each in (200, 20_000):
        trace, out = tmp_path / f"{each}.trace", tmp_path / f"{each}.html"
        options = ["--vcpus", "2", "--pages", str(each), "-o", str(trace)]
        assert _exit_code(["synth", "demand-paging", *options]) == 0
        assert _exit_code(["report", str(trace), "-m", "uffd-missing,kvm-exit", "-o", str(out)]) == 0
        sizes[each] = out.stat().st_size
    assert sizes[20_000] < 3_000_000
    drawn = json.dumps(specs(out.read_text()))
    assert len(drawn) < 1_500_000
    marks = {name: drawn.count('"from_ns"') for name in ("x",)}
    assert marks["x"] < 20_000 * 2 / 4


def test_pictures_as_files(tmp_path: Path, small: Path) -> None:
    png, svg = tmp_path / "png", tmp_path / "svg"
    arguments = ["report", str(small), "-m", "uffd-missing,kvm-exit", "-o", str(tmp_path / "x.html")]
    assert _exit_code([*arguments, "--png", str(png), "--svg", str(svg)]) == 0
    names = {path.stem for path in png.iterdir()}
    assert {"total-stall", "distribution", "over-time", "who-waited", "pages-missing", "sweep-fetch"} <= names
    assert names == {path.stem for path in svg.iterdir()} == set(specs((tmp_path / "x.html").read_text()))
    for path in png.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    drawn = (svg / "total-stall.svg").read_text()
    assert "kvm-exit *" in drawn and "currentColor" not in drawn
    assert str(tmp_path) not in drawn


def test_the_axis_to_draw_along_may_be_chosen(
    made: Callable[..., str], small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = made(small, "-m", "uffd-missing,kvm-exit", "--vary", "uffd-missing.handlers=1,2,4")
    drawn = specs(text)["sweep-uffd-missing-handlers"]["data"]["values"]
    by = {name: [row["number"] for row in drawn if row["series"] == name] for name in ("uffd-missing", "kvm-exit *")}
    assert by["uffd-missing"][0] > by["uffd-missing"][1]
    assert len(set(by["kvm-exit *"])) == 1  # not touched by it
    assert _exit_code(["report", str(small), "-m", "uffd-missing", "--vary", "nonsense=1", "-o", "y.html"]) == 2
    assert "'nonsense' is no cost" in capsys.readouterr().err


def test_a_missing_library_is_one_line(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "altair", None)
    assert _exit_code(["report", str(small), "-o", "never.html"]) == 5
    assert "faultreplay[report]" in capsys.readouterr().err


def test_without_noise_nothing_is_claimed() -> None:
    def row(change: float, low: float, high: float) -> Any:
        interval = SimpleNamespace(low=low, high=high, level=0.9)
        sure = SimpleNamespace(
            change_percent=change, change=interval, baseline="base", within_noise=low <= 0 <= high, foreign=None
        )
        served = SimpleNamespace(whole=True)
        metrics = SimpleNamespace(total_stall_ns=1_000, startup_ns=None)
        what = {"leaves_out": "", "adds": "", "marked": False, "served": served}
        return SimpleNamespace(mechanism="m", metrics=metrics, uncertainty=sure, **what)

    assert (
        answering._row(row(-20, -45, 18), "stall")
        == "m: the difference to base is within noise (-45 to +18); 1.00 us of stall."
    )
    assert "would lengthen stall by 20 % (5 to 40)" in answering._row(row(20, 5, 40), "stall")
    assert "would cut stall by 37 % (33 to 41)" in answering._row(row(-37, -41, -33), "stall")


def test_a_table_keeps_a_rows_further_lines_with_it() -> None:
    records = [{"name": "a", "n": 2}, {"name": "b", "n": 1}]
    rows = [{"name": "a", "n": "1-3"}, {"name": "  measured", "n": 5}, {"name": "b", "n": 1}]
    text = table(Report(records, [Column("name", "name"), Column("n", "n", "count")], rows=rows), "t")
    assert text.count("<tbody>") == 2
    assert 'data-v="2">1-3<' in text  # a span is sorted by the row's own number


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("costs from your files (/home/me/a.toml): fetch", "costs from your files (a.toml): fetch"),
        ("km/h, 3 / 4 and and/or stay", "km/h, 3 / 4 and and/or stay"),
        ("sample-traces/x.trace stays", "sample-traces/x.trace stays"),
    ],
)
def test_folders_are_nobodys_business(words: str, said: str) -> None:
    assert without_folders(words) == said


def test_an_argument_with_blanks_loses_its_folders_too() -> None:
    assert without_folder("/home/a b/c d.trace") == "c d.trace"
    assert without_folder("--costs=/home/a b/c.toml") == "--costs=c.toml"
    assert without_folder("fetch=10us..1ms") == "fetch=10us..1ms"


def test_a_cause_with_few_faults_is_named_and_not_drawn() -> None:
    place = {"from_ns": 0, "until_ns": 5, "first": 0, "beyond": 1, "address": 4096, "stall_ns": 1}
    frame = pl.DataFrame([{"cause": "missing", "faults": 90, **place}, {"cause": "minor", "faults": 3, **place}])
    (picture,) = charts_pages.page_heat(frame)
    assert picture.name == "pages-missing" and "they are few: 3 of minor" in picture.words


def test_nothing_to_draw_is_no_picture() -> None:
    none = pl.DataFrame(schema={"series": pl.String, "nines": pl.Float64, "share": pl.Float64, "stall_ns": pl.Int64})
    assert charts_stalls.distribution(none, {}) is None
    assert charts_pages.page_heat(pl.DataFrame(schema={"cause": pl.String, "faults": pl.Int64})) == []


def test_a_limit_on_addresses_is_a_line_and_not_a_signal(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "faultreplay", "report", str(small), "-o", str(tmp_path / "r.html")]
    limited = ["/bin/sh", "-c", 'ulimit -v 33554432; exec "$@"', "sh", *command, "-m", "uffd-missing", "--no-fit"]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 5, done.stderr
    assert "error: a picture needs 128 GiB of addresses (not of memory), and this process may have 32.0 GiB" in (
        done.stderr.replace("\n", " ")
    )
