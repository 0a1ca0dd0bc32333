"""QEMU's answers to query-migrate (tests/cases): sides, half-way and failed ones, and where the figures are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faultreplay.analysis.judge.qemu_figures import answers, latencies, vcpu_figures
from faultreplay.cli.commands.inspect import command as inspect
from faultreplay.cli.commands.report import command as report
from faultreplay.cli.commands.validate import command as validate
from faultreplay.collect.importers import import_file, import_qemu
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.store import open_trace

CASES = Path(__file__).parent / "cases"
SOURCE, DEST_7, DEST_10 = (
    CASES / f"13{name}.json"
    for name in ("a-qmp-libvirt-5.2-source", "b-qmp-7.2-dest-blocktime", "c-qmp-10.1-dest-full")
)
HALF_WAY, FAILED = CASES / "13g-qmp-active-postcopy.json", CASES / "13h-qmp-failed.json"


def kept(folder: Path, *paths: Path) -> tuple[Meta, tuple[str, ...]]:
    summary = import_qemu(list(paths), folder / "q.trace", force=True)
    return open_trace(folder / "q.trace").meta, summary.notes


def written(folder: Path, name: str, answer: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(answer))
    return path


def test_source_and_destination_are_told_apart_by_content(tmp_path: Path) -> None:
    meta, notes = kept(tmp_path, DEST_7, SOURCE)
    sides = {answer.side: answer for answer in answers(meta)}
    assert set(sides) == {"source", "destination"}
    assert ("downtime", 257, "ms") in sides["source"].counters and sides["source"].finished
    assert [row.blocktime_ns for row in vcpu_figures(meta)][-2:] == [1214 * 10**6, 712 * 10**6]
    assert len(notes) == 1  # that there are no events


def test_two_answers_of_one_side_are_both_kept(tmp_path: Path) -> None:
    other = json.loads(SOURCE.read_text())
    other["return"]["downtime"] = 1
    meta, notes = kept(tmp_path, SOURCE, written(tmp_path, "b.json", other), SOURCE)
    assert [answer.side for answer in answers(meta)] == ["source", "source-2"]
    assert meta.extra["qemu"]["source"]["downtime"] == 257 and meta.extra["qemu"]["source-2"]["downtime"] == 1
    assert any("another answer of the source: kept as source-2" in note for note in notes)


def test_two_answers_of_no_known_side_are_both_kept(tmp_path: Path) -> None:
    one, two = ({"return": {"status": status}} for status in ("completed", "cancelled"))
    meta, notes = kept(tmp_path, written(tmp_path, "1.json", one), written(tmp_path, "2.json", two))
    assert [(a.side, a.status) for a in answers(meta)] == [
        ("unknown side", "completed"),
        ("unknown side-2", "cancelled"),
    ]
    assert any("was cancelled" in note for note in notes)


def test_distribution_of_latencies(tmp_path: Path) -> None:
    meta, _ = kept(tmp_path, DEST_10)
    found = latencies(meta)
    assert found is not None
    assert found.total == 73_618
    assert found.edges_ns(7) == (128_000, 256_000) and round(found.share_below(8), 3) == 0.819  # below 256 us
    rows = {row.vcpu: row for row in vcpu_figures(meta)}
    assert (rows[0].blocktime_ns, rows[0].latency_ns) == (1310 * 10**6, 224730)
    assert (rows[-1].blocktime_ns, rows[-1].latency_ns, rows[-2].latency_ns) == (134 * 10**6, 236000, 214743)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (HALF_WAY, "taken before the end, status postcopy-active"),
        (FAILED, "the migration failed: Unable to write to socket: Broken pipe"),
    ],
)
def test_unfinished_and_failed_migrations_are_said(path: Path, words: str, tmp_path: Path) -> None:
    _, notes = kept(tmp_path, path)
    assert sum(words in note for note in notes) == 1
    shown = CliRunner().invoke(inspect, [str(tmp_path / "q.trace")])
    assert words.split(",", maxsplit=1)[0].split(":", maxsplit=1)[0] in " ".join(shown.output.split())


def test_half_way_is_the_source(tmp_path: Path) -> None:
    (answer,) = answers(kept(tmp_path, HALF_WAY)[0])
    assert (answer.side, answer.finished) == ("source", False)
    assert ("post-copy requests", 1652, "count") in answer.counters


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("13d-hmp-10.1-info-migrate.txt", "the text of the monitor's 'info migrate'.*query-migrate"),
        ("13f-qmp-session.txt", "a whole QMP session"),
        ("13i-qmp-error.json", "QEMU answered with an error: The command query-migrate has not been found"),
        ("13j-none.json", "an empty answer"),
        ("30b-bpftrace-hist.json", "not JSON|session"),
        ("19-function-graph.txt", "not JSON"),
    ],
)
def test_what_is_no_answer(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=words) as error:
        kept(tmp_path, CASES / name)
    assert "\n" not in str(error.value) and not (tmp_path / "q.trace").exists()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"return":' * 100_000, '{"a":1e999999}', '{"status": 1}', "[]", "\ufeff{}"]
)
def test_hostile_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(IncompleteData):
        kept(tmp_path, path)


@pytest.mark.parametrize("key", ["postcopy-blocktime", "postcopy-vcpu-blocktime", "postcopy-latency-dist", "ram"])
@pytest.mark.parametrize("value", [None, "x", -1, [1, "x"], {"a": 1}, 1e300, [[[]]]])
def test_figures_of_a_wrong_type_are_no_traceback(key: str, value: Any, tmp_path: Path) -> None:
    answer = {"return": {"status": "completed", "postcopy-blocktime": 1, key: value}}
    try:
        kept(tmp_path, written(tmp_path, "x.json", answer))
    except IncompleteData as error:
        assert key in str(error)
        return
    done = CliRunner().invoke(inspect, [str(tmp_path / "q.trace")])
    assert done.exception is None, done.exception


@pytest.mark.parametrize("show", [inspect, validate])
def test_figures_are_shown_without_a_recording(show: Any, tmp_path: Path) -> None:
    kept(tmp_path, DEST_10, SOURCE)
    done = CliRunner().invoke(show, [str(tmp_path / "q.trace")])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "latencies of 73,618 faults" in words
    assert "128 us - 256 us 50,151 81.9%" in words
    assert "source: completed; total 7.52 s" in words and "destination: completed" in words
    as_json = CliRunner().invoke(show, [str(tmp_path / "q.trace"), "--format", "json"])
    assert json.loads(as_json.output)


def test_report_without_a_recording(tmp_path: Path) -> None:
    kept(tmp_path, DEST_10)
    done = CliRunner().invoke(report, [str(tmp_path / "q.trace"), "-o", str(tmp_path / "q.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "q.html").read_text()
    assert "73,618 faults" in page and "no recording" in page and ">1.31 s</td>" in page


def test_vcpus_by_order_and_by_option(tmp_path: Path) -> None:
    lines = "".join(f"  q 10/{tid} [000] {n}.5: kvm:kvm_entry: vcpu {vcpu}, rip 0x1\n" for n, (tid, vcpu) in
                    enumerate([(13, 0), (12, 1)]))  # fmt: skip
    text = tmp_path / "x.txt"
    text.write_text(lines)
    import_file("perf-script", text, tmp_path / "x.trace")
    answer = written(
        tmp_path,
        "d.json",
        {"return": {"status": "completed", "postcopy-blocktime": 1, "postcopy-vcpu-blocktime": [1, 2]}},
    )
    import_qemu([answer], tmp_path / "x.trace", into=True)
    assert [vcpu["tid"] for vcpu in open_trace(tmp_path / "x.trace").meta.extra["qemu"]["vcpus"]] == [13, 12]
    import_qemu([answer], tmp_path / "x.trace", into=True, vcpus=[12, 13])
    assert [vcpu["tid"] for vcpu in open_trace(tmp_path / "x.trace").meta.extra["qemu"]["vcpus"]] == [12, 13]
    done = CliRunner().invoke(inspect, [str(tmp_path / "x.trace")])
    assert "stitched stalls beside QEMU's blocktime" in done.output
