"""A row that leaves out what another one does is never called better: compare, report, sweep, curves, many traces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_mechanisms import HEAD, write_mechanism
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.compare.alike import Question, all_of, left_out, less_than, question_of
from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.compare import Comparison, Row, compare
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.records import as_records
from faultreplay.analysis.explore.along import along
from faultreplay.analysis.explore.axes import parse_axis
from faultreplay.cli import compare_view
from faultreplay.cli.main import main
from faultreplay.cli.report.answers import answers
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

SAMPLE = Path(__file__).parent.parent / "sample-traces/guest-uffd-missing.trace"
LESS = ["uffd-wp", "host-lazy"]
"""Less stall on the sample than any that brings the content: the first stops its writes alone."""


@pytest.fixture(scope="module")
def case() -> Case:
    return open_case(open_trace(SAMPLE), Setup())


@pytest.fixture(scope="module")
def done(case: Case) -> Comparison:
    return compare(case, ["uffd-wp", "uffd-missing", "kvm-exit", "host-lazy", "ideal"])


def row(done: Comparison, name: str) -> Row:
    return next(row for row in done.rows if row.mechanism == name)


def two_accesses() -> Workload:
    pages = list(range(8))
    return make_workload([{"think_ns": [1000] * 8, "page": pages, "access": [0, 1] * 4, "cause": "missing"}])


# what a mechanism answers


def test_what_a_mechanism_stops_and_brings_is_found_in_its_file(case: Case) -> None:
    found = {name: question_of(case.read, load_mechanism(name)) for name in list_mechanisms()}
    assert [name for name, one in found.items() if one.passes] == ["ideal", "uffd-wp"]
    assert [name for name, one in found.items() if not one.brings] == ["host-lazy", "ideal", "uffd-wp"]
    reads = int((case.read.access == 0).sum())
    assert found["uffd-wp"].passes == {"missing read by vcpu": reads}
    assert 0 < reads < case.read.faults
    assert sum(found["ideal"].passes.values()) == case.read.faults


def test_own_file_that_stops_writes_alone_is_found_too(tmp_path: Path) -> None:
    share = '[params.share]\ndefault = 1\nmin = 0\nmax = 1\nunit = "sources"\nhelp = "h"\n'
    text = HEAD + f'serves = ["vcpu"]\n{share}[[paths.missing]]\ndelay = "fetch"\ntimes = "$share"\n'
    plain = write_mechanism(tmp_path, text + '[[paths.missing]]\nwake = "wake"\n', "all.toml")
    writes = text.replace("times", 'when = "write"\ntimes') + '[[paths.missing]]\nwake = "0ns"\n'
    some = question_of(two_accesses(), load_mechanism(str(write_mechanism(tmp_path, writes, "some.toml"))))
    every = question_of(two_accesses(), load_mechanism(str(plain)))
    assert (every.passes, every.brings) == ({}, True)
    assert (some.passes, some.brings) == ({"missing read by vcpu": 4}, True)
    assert less_than(every, some, "some") == ""
    assert "4 of the 8 faults that all stops (missing read by vcpu)" in less_than(some, every, "all")
    none = question_of(two_accesses(), load_mechanism(str(plain)).with_params({"share": 0}))
    assert less_than(none, every, "all") == "leaves out the content that all brings"


@pytest.mark.parametrize("waits", ['read = "disk"', 'transfer = "net"', 'delay = "30us"\nasleep = true'])
def test_content_comes_from_storage_over_a_link_or_in_a_delay_that_is_slept_through(tmp_path: Path, waits: str) -> None:
    resources = '[resources.disk]\nkind = "storage"\nlatency = "storage_read"\n'
    resources += '[resources.net]\nkind = "link"\nbandwidth = "1G"\n'
    path = f'[[paths.missing]]\n{waits}\n[[paths.missing]]\nwake = "wake"\n'
    text = HEAD + 'serves = ["vcpu"]\n' + resources + path
    mechanism = load_mechanism(str(write_mechanism(tmp_path, text)))
    assert question_of(two_accesses(), mechanism).brings


def test_who_leaves_something_out_is_not_ranked_whoever_came_first() -> None:
    whole, none = Question({}, 10, brings=True), Question({}, 10, brings=False)
    some = Question({"missing read by vcpu": 4}, 10, brings=True)
    assert set(left_out({"a": none, "b": whole, "c": some})) == {"a", "c"}
    assert set(left_out({"b": whole, "d": whole})) == set()
    assert set(left_out({"a": none, "e": none})) == set()
    assert set(left_out({"ideal": none, "b": whole}, never=["ideal"])) == set()
    assert all_of([whole, some]) == some
    assert Question.of_text(some.as_text()) == some
    rule = Question({}, 10, brings=True, window=True)
    assert set(left_out({"freeze": rule, "b": whole})) == {"freeze"}


# compare and report


def test_compare_calls_no_row_better_that_leaves_something_out(done: Comparison) -> None:
    least = min(done.rows, key=lambda one: (one.mechanism == "ideal", one.metrics.total_stall_ns))
    assert least.mechanism in LESS  # else nothing is tried here
    assert {one.mechanism for one in done.rows if one.leaves_out} == set(LESS)
    shown = {r["mechanism"].removesuffix(" *"): r.get("change_text") for r in compare_view.report(done).rows or ()}
    assert [shown[name] for name in LESS] == ["not alike"] * 2
    assert shown["kvm-exit"].startswith("-")
    lead = " ".join(compare_view.report(done).lead)
    assert "uffd-wp does not stop 4,077 of the 8,000 faults that uffd-missing stops (missing read by vcpu)" in lead
    assert "host-lazy leaves out the content that uffd-missing brings" in lead
    records = {r["mechanism"]: r for r in as_records(done) if r["row"] == "predicted"}
    assert records["uffd-wp"]["passes_faults"] == 4077
    assert (records["kvm-exit"]["leaves_out"], records["kvm-exit"]["brings_content"]) == ("", True)


def test_answers_of_the_page_put_it_last_and_claim_no_gain(done: Comparison) -> None:
    said = [words for words in answers(done) if words.startswith(("uffd-wp", "host-lazy", "kvm-exit"))]
    assert said[0].startswith("kvm-exit would cut the stall")
    for words in said[1:]:
        assert "is not alike: it " in words
        assert words.endswith(("are no gain.", "no gain; it depends on costs not measured on this host."))
        assert "would cut" not in words


def test_baseline_that_leaves_something_out_is_said_in_the_answer(case: Case) -> None:
    got = compare(case, ["kvm-exit"], baseline="host-lazy")
    assert row(got, "kvm-exit").leaves_out == ""
    assert "host-lazy leaves out the content that kvm-exit brings" in answers(got)[0]
    lead = " ".join(compare_view.report(got).lead)
    assert "host-lazy leaves out the content that kvm-exit brings. More stall than it has is no loss there." in lead


@pytest.mark.parametrize("reference", ["ideal", "as-recorded"])
def test_against_a_reference_the_recorded_mechanism_says_what_is_asked(case: Case, reference: str) -> None:
    got = compare(case, ["kvm-exit", "uffd-wp"], baseline=reference)
    assert bool(row(got, "uffd-wp").leaves_out)
    assert not row(got, "kvm-exit").leaves_out


def test_all_alike_and_nothing_is_said(case: Case) -> None:
    got = compare(case, ["uffd-missing", "kvm-exit"])
    assert "Not alike" not in " ".join(compare_view.report(got).lead)


# sweep


def swept(*more: str) -> dict[str, Any]:
    arguments = ["sweep", str(SAMPLE), "-m", "uffd-wp,uffd-missing,kvm-exit", "--vary", "fetch=50us..200us:2"]
    got = CliRunner().invoke(main, [*arguments, *more, "--format", "json"])
    assert got.exit_code == 0, got.output
    record: dict[str, Any] = json.loads(got.stdout)
    return record


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("alike") / "cells"
    swept("-o", str(path))
    yield path


def test_sweep_does_not_rank_it_also_from_a_data_set(stored: Path) -> None:
    got = swept("-o", str(stored))
    assert any("6 taken from the data set" in note for note in got["notes"])
    totals = {(r["mechanism"], r["fetch"]): r["total_stall_ns"] for r in got["records"]}
    assert totals["uffd-wp", 200e3] < min(totals["kvm-exit", 200e3], totals["uffd-missing", 200e3])
    (course,) = got["courses"]
    assert course["mechanisms"] == ["kvm-exit", "uffd-missing"]
    assert {stretch["best"] for stretch in course["stretches"]} == {"kvm-exit"}
    assert all("uffd-wp" not in (c["first"], c["second"]) for c in got["crossings"])
    assert list(got["unranked"]["guest-uffd-missing"]) == ["uffd-wp"]


def test_sweep_says_so_and_the_column_best_has_another(stored: Path) -> None:
    arguments = ["sweep", str(SAMPLE), "-m", "uffd-wp,uffd-missing,kvm-exit", "--vary", "fetch=50us..200us:2"]
    got = CliRunner().invoke(main, [*arguments, "-o", str(stored)], env={"COLUMNS": "200"})
    rows = [line for line in got.stdout.splitlines() if line.startswith(("50.0 us", "200 us"))]
    assert len(rows) == 2
    assert all(" kvm-exit " in line for line in rows)
    assert "Not ranked: uffd-wp does not stop 4,077" in got.stdout


def test_curves_of_the_page_leave_it_out_and_return_why(case: Case) -> None:
    axis = parse_axis("fetch=50us,200us", ["uffd-missing"])
    values, unranked = along(case, ["uffd-wp", "uffd-missing", "kvm-exit"], axis)
    assert [set(at) for at in values.values()] == [{"uffd-missing", "kvm-exit"}] * 2
    assert "does not stop" in unranked["uffd-wp"]


# many traces


def test_over_many_traces_it_is_compared_with_nothing(tmp_path: Path) -> None:
    traces = [str(write_trace(tmp_path / f"{n}.trace", uffd_faults(each=80 + 10 * n))) for n in range(2)]
    names = "host-lazy,uffd-missing,kvm-exit"
    got = CliRunner().invoke(main, ["compare", *traces, "-m", names, "--format", "json"])
    over = json.loads(got.stdout)["over_traces"]
    assert [one["mechanism"] for one in over] == ["kvm-exit"]
    both = CliRunner().invoke(main, ["sweep", *traces, "-m", names], env={"COLUMNS": "200"})
    _, _, table = both.stdout.partition("over all traces: total stall against uffd-missing")
    assert table, both.output
    assert "not in it, as at some trace it leaves something out: host-lazy" in table
