"""What several runs of one guest touched, and `inspect --working-set`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from made_traces import BEGIN_NS, uffd_faults, write_trace

from faultreplay.analysis.compare.working_sets import compare_sets, load_set
from faultreplay.cli.main import _exit_code, main
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import MapEntry, Memslot, Meta, Target
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.workload.guest_memory import OUTSIDE, guest_memory_of
from faultreplay.replay.workload.synth import SynthSpec, Think, synthesize, write_synthetic
from faultreplay.replay.workload.synth_restore import Restore, parse_ramp
from faultreplay.replay.workload.working_set import WorkingSet, in_order, jaccard, working_set

MS = 1_000_000
HVA, GPA = 0x7F00_0000_0000, 0x1_0000_0000


def one_set(*pages: int, name: str = "a") -> WorkingSet:
    page = np.array(pages, np.int64)
    return WorkingSet(name, "addresses", page, np.arange(page.size), 0.0, 4096)


@given(st.lists(st.sets(st.integers(0, 40), max_size=30), min_size=1, max_size=6))
def test_of_many_sets_every_two_are_compared(many: list[set[int]]) -> None:
    sets = [one_set(*pages, name=str(number)) for number, pages in enumerate(many)]
    assert list(compare_sets(sets).pairs) == [
        (a.name, b.name, jaccard(a.page, b.page)) for a, b in itertools.combinations(sets, 2)
    ]


def run_trace(path: Path, pages: list[int], *, hva: int, slots: bool = True) -> Path:
    """Faults on these pages of guest memory, a millisecond apart, where the guest's memory lies at `hva`."""
    rows = uffd_faults(vcpus=1, each=len(pages))
    for n, (row, page) in enumerate(zip(rows, pages, strict=True)):
        row |= {"page": hva + page * 4096, "start_ns": BEGIN_NS + n * MS, "end_ns": BEGIN_NS + n * MS + 100_000}
    target = Target(100, "vmm", role="vm")
    if slots:
        target.memslots = [Memslot(0, 1, GPA, hva, 1 << 20)]
    return write_trace(path, rows, targets=[target])


def test_places_are_guest_physical_where_slots_are_known() -> None:
    meta = Meta(targets=[Target(1, role="vm", memslots=[Memslot(0, 0, 0, HVA, 8192), Memslot(1, 0, GPA, HVA, 8192)])])
    memory = guest_memory_of(meta)
    assert (memory.by, memory.size_bytes) == ("guest physical", 8192)  # the slot as it was last
    pages = np.array([HVA // 4096, HVA // 4096 + 1, HVA // 4096 + 2, 5])
    assert memory.places(pages, 4096).tolist() == [GPA // 4096, GPA // 4096 + 1, OUTSIDE, OUTSIDE]


def test_places_are_offsets_in_what_was_registered_without_slots() -> None:
    map_ = [MapEntry(0, 1, HVA + (1 << 30), HVA + (1 << 30) + 8192, uffd="missing"), MapEntry(0, 1, 0, 4096)]
    map_ += [MapEntry(0, 1, HVA, HVA + 8192, uffd="missing")]
    memory = guest_memory_of(Meta(memory_map=map_))
    assert memory.by == "registered memory"
    assert memory.places(np.array([HVA // 4096 + 1, (HVA + (1 << 30)) // 4096, 0]), 4096).tolist() == [1, 2, OUTSIDE]
    assert guest_memory_of(Meta()).places(np.array([7]), 4096).tolist() == [7]


def test_runs_at_other_addresses_are_the_same_pages(tmp_path: Path) -> None:
    a = run_trace(tmp_path / "a.trace", [0, 1, 2, 9], hva=HVA)
    b = run_trace(tmp_path / "b.trace", [2, 1, 5, 9], hva=HVA + (1 << 33))
    found = compare_sets([load_set(open_trace(path)) for path in (a, b)])
    assert [value for _, _, value in found.pairs] == [3 / 5]
    assert (found.union_pages, found.by_all_pages, found.by) == (5, 3, "guest physical")
    first, second = found.sets
    assert (first.pages, first.next_page_share, second.next_page_share) == (4, pytest.approx(2 / 3), 0.0)
    assert (first.t50_ns, first.t90_ns) == (1 * MS, 3 * MS)


def test_the_second_touch_of_a_page_is_no_touch(tmp_path: Path) -> None:
    found = load_set(open_trace(run_trace(tmp_path / "a.trace", [4, 3, 4, 3, 8], hva=HVA)))
    assert found.page.tolist() == [GPA // 4096 + n for n in (4, 3, 8)]
    assert found.at_ns.tolist() == [0, MS, 4 * MS]


def test_pages_that_cannot_be_told_to_be_the_same_are_refused(tmp_path: Path) -> None:
    a = run_trace(tmp_path / "a.trace", [0], hva=HVA)
    b = run_trace(tmp_path / "b.trace", [0], hva=HVA, slots=False)
    with pytest.raises(UsageError, match=r"known by guest physical, those of b by addresses"):
        compare_sets([load_set(open_trace(path)) for path in (a, b)])


def test_a_range_is_worth_a_huge_page_from_half_on() -> None:
    half, less = range(256), range(512, 512 + 255)
    (facts,) = compare_sets([one_set(*half, *less)]).sets
    assert (facts.ranges, facts.ranges_worth) == (2, 1)
    assert facts.in_worth_share == pytest.approx(256 / 511)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_jaccard_is_of_sets(a: set[int], b: set[int]) -> None:
    arrays = [np.array(sorted(one), np.int64) for one in (a, b)]
    assert jaccard(*arrays) == (len(a & b) / len(a | b) if a | b else 1.0)
    together = in_order([one_set(*a), one_set(*b)])
    assert sorted(together.tolist()) == sorted(a | b)
    assert together[: len(a)].tolist() == list(a)


@pytest.mark.parametrize(("jaccard_of", "next_page"), [(0.927, 0.086), (0.5, 0.6), (1.0, 0.0)])
def test_made_restores_are_what_was_asked_for(jaccard_of: float, next_page: float) -> None:
    sets = []
    for run in (1, 2):
        spec = SynthSpec("restore", 3, 2000, Think(0), seed=4, restore=Restore(run, jaccard_of, next_page))
        sets.append(working_set(f"r{run}", synthesize(spec), guest_memory_of(Meta())))
    found = compare_sets(sets)
    assert found.pairs[0][2] == pytest.approx(jaccard_of, abs=0.001)
    for facts in found.sets:
        assert facts.pages == 6000
        assert facts.next_page_share == pytest.approx(next_page, abs=0.02)


def test_a_made_restore_keeps_to_its_ramp(tmp_path: Path) -> None:
    path = tmp_path / "r.trace"
    restore = Restore(ramp=parse_ramp("10ms:0.5,40ms:0.9,100ms:1"), writes=0.25)
    write_synthetic(SynthSpec("restore", 2, 500, Think(0), restore=restore), path)
    (facts,) = compare_sets([load_set(open_trace(path))]).sets
    assert facts.t50_ns == pytest.approx(10 * MS, rel=0.02)
    assert facts.t90_ns == pytest.approx(40 * MS, rel=0.02)
    assert open_trace(path).faults()["access"].eq("w").mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ramp", "3ms"], "write TIME:SHARE"),
        (["--ramp", "3ms:0.5"], "ends with all of it"),
        (["--ramp", "3ms:0.5,2ms:1"], "times rise"),
        (["--pages", "100000", "--memory", "1G"], "too small for run 1"),
    ],
)
def test_a_restore_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert _exit_code(["synth", "restore", *options, "-o", str(tmp_path / "x.trace")]) == 2
    assert message in capsys.readouterr().err


def test_inspect_prints_sets_and_what_they_have_in_common(tmp_path: Path) -> None:
    paths = []
    for run in (1, 2):
        paths.append(str(tmp_path / f"r{run}.trace"))
        words = ["synth", "restore", "--vcpus", "2", "--pages", "500", "--run", str(run), "-o", paths[-1]]
        assert CliRunner().invoke(main, words).exit_code == 0
    shown = CliRunner().invoke(main, ["inspect", "--working-set", *paths])
    assert shown.exit_code == 0
    assert "Jaccard of r1 and r2: 0.92" in shown.output
    data = json.loads(CliRunner().invoke(main, ["inspect", "--working-set", *paths, "--format", "json"]).output)
    assert [record["pages"] for record in data["records"]] == [1000, 1000]
    assert data["jaccard_median"] == pytest.approx(0.927, abs=0.001)
    assert data["union_pages"] == 2000 - data["by_all_pages"]
