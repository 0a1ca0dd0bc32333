"""Restores in the lab: a snapshot file hot and cold, a handler in another process, fault-around, prefetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.setup import Used
from faultreplay.analysis.judge.sides import as_missing, of_start_up
from faultreplay.analysis.judge.validate import open_for, pair
from faultreplay.cli import validate_view
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.lists import first_touches, make_lists
from faultreplay.lab.matrix_spec import RESTORE_MECHANISMS, RESTORE_WORKLOADS, MatrixSpec
from faultreplay.lab.restore import touched_in, working_set, working_set_of
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabResult, LabSpec
from faultreplay.replay.workload.workload import Workload

PAGES = 1009
ALIKE: dict[str, Any] = {"vcpus": 2, "pages": PAGES, "order": "alike", "access": "mixed:0.3", "fetch": "0"}


def sets_of(*seeds: int) -> list[set[int]]:
    return [set(first_touches(make_lists(LabSpec(seed=seed, **ALIKE))[0]).tolist()) for seed in seeds]


def test_runs_alike_share_most_of_their_pages_and_nearly_their_order() -> None:
    one, other = sets_of(1, 2)
    assert abs(len(one) - PAGES) <= 16  # half of two vCPUs' pages, in blocks of four
    jaccard = len(one & other) / len(one | other)
    assert 0.72 < jaccard < 0.85  # 85 % are every run's, of the rest some meet by chance
    first, second = (make_lists(LabSpec(seed=seed, **ALIKE))[0][0].page for seed in (1, 2))
    place = {page: at for at, page in enumerate(second.tolist())}
    both = [(at, place[page]) for at, page in enumerate(first.tolist()) if page in place]
    assert np.corrcoef(np.array(both).T)[0, 1] > 0.9


def test_first_touches_are_in_the_order_of_time_over_all_vcpus() -> None:
    spec = LabSpec(**ALIKE, seed=3, think="exp:20us")
    lists, _ = make_lists(spec)
    order = first_touches(lists)
    assert len(order) == len(set(order.tolist()))
    assert set(order.tolist()) == {page for a in lists for page in a.page.tolist()}
    at_ns: dict[int, int] = {}
    for a in lists:
        for page, when in zip(a.page.tolist(), np.cumsum(a.think_ns + 1).tolist(), strict=True):
            at_ns[page] = min(at_ns.get(page, when), when)
    assert [at_ns[page] for page in order.tolist()] == sorted(at_ns.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mechanism": "prefetch-before"}, "which pages"),
        ({"mechanism": "prefetch-beside", "base": "kvm-exit", "working_set_seed": 1}, "can be over"),
        ({"page_cache": "cold"}, "--snapshot disk"),
        ({"page_cache": "warm"}, "hot or cold"),
        ({"mechanism": "prefetch-before", "working_set_seed": 1, "prefetchers": 0}, "--prefetchers 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LabSpec(**options)


def test_a_matrix_of_restores_prefetches_a_third_run_s_pages() -> None:
    matrix = MatrixSpec(mechanisms=RESTORE_MECHANISMS, vcpus=(1,), fetch=("0",), workloads=RESTORE_WORKLOADS)
    runs = list(matrix.runs())
    assert len({item.name for item in runs}) == len(runs) == len(RESTORE_MECHANISMS) * 2 * 2
    for item in runs:
        assert item.spec.page_cache == ("cold" if item.mechanism.endswith(":cold") else "hot")
        if item.spec.prefetch:
            assert item.spec.working_set_seed not in (None, *(other.seed for other in runs))
    sizes = {(item.spec.pages, item.spec.accesses) for item in runs}
    assert all(accesses == pages // 2 for pages, accesses in sizes if accesses)


def run_or_skip(spec: LabSpec, out: Path | None = None, record: bool = False) -> LabResult:
    try:
        return run(spec, out, record=record)
    except FaultreplayError as error:
        if error.exit_code == 5 or "tmpfs" in str(error):
            pytest.skip(f"needs what this host has not: {error}")
        raise


@pytest.mark.lab
@pytest.mark.parametrize("target", ["kvm", "process"])
def test_a_cold_file_is_read_and_a_hot_one_is_not(target: str) -> None:
    hot = run_or_skip(LabSpec(mechanism="file-private", target=target, snapshot="disk", **ALIKE))
    cold = run_or_skip(LabSpec(mechanism="file-private", target=target, snapshot="disk", page_cache="cold", **ALIKE))
    pages = hot.lab["data_pages"]
    assert (hot.problem, hot.lab["cached_pages"]) == ("", pages)
    assert (cold.problem, cold.lab["cached_pages"]) == ("", 0)
    assert cold.lab["verified"]["pages_touched"] == len(sets_of(0)[0])


@pytest.mark.lab
def test_a_copy_is_start_up_and_in_no_access() -> None:
    result = run_or_skip(LabSpec(mechanism="restore-copy", **ALIKE))
    assert result.problem == ""
    assert result.lab["startup_ns"] > 0
    assert result.lab["verified"]["pages_present"] == result.lab["data_pages"]
    assert result.lab["services"]["resolved"] == 0


@pytest.mark.lab
def test_fault_around_brings_whole_granules() -> None:
    spec = LabSpec(mechanism="uffd-fault-around", granule_bytes=32 << 10, **ALIKE)
    result = run_or_skip(spec)
    assert result.problem == ""
    granules = {page * 4096 // (32 << 10) for page in sets_of(0)[0]}
    assert result.lab["services"]["resolved"] == len(granules)
    assert result.lab["verified"]["pages_present"] == len(granules) * 8


@pytest.mark.lab
@pytest.mark.parametrize("fetch", ["0", "200us", "snapshot"])
def test_a_handler_in_another_process_serves_every_page_and_is_in_the_trace(tmp_path: Path, fetch: str) -> None:
    out = tmp_path / "x.trace"
    result = run_or_skip(LabSpec(mechanism="uffd-handler-process", **ALIKE | {"fetch": fetch}), out, record=True)
    assert result.problem == ""
    touched = result.lab["verified"]["pages_touched"]
    assert result.lab["services"]["resolved"] == touched
    trace = open_trace(out)
    assert trace.meta.losses.total == 0
    vmm, other = trace.meta.targets
    assert vmm.tgid != other.tgid
    missing = trace.faults().filter(pl.col("cause") == "missing")
    assert missing.height == touched
    handlers = [thread.tid for thread in other.threads if thread.role == "handler"]
    assert missing["handler_tid"].unique().to_list() == handlers


@pytest.mark.lab
def test_a_handler_process_that_dies_leaves_a_reason() -> None:
    spec = LabSpec(
        mechanism="uffd-handler-process", pages=100, fail="handler-exit@50", timeout_ns=700_000_000, fetch="0"
    )
    result = run_or_skip(spec)
    assert "never resolved" in result.problem
    assert result.truth.num_rows in (50, 51)


@pytest.mark.lab
@pytest.mark.parametrize("base", ["uffd-missing", "uffd-sharded", "uffd-minor"])
def test_prefetch_before_leaves_the_pages_of_no_earlier_run(base: str) -> None:
    seen, now = sets_of(2, 1)
    spec = LabSpec(mechanism="prefetch-before", base=base, working_set_seed=2, prefetchers=2, seed=1, **ALIKE)
    result = run_or_skip(spec)
    assert result.problem == ""
    assert result.lab["prefetch"]["set_pages"] == result.lab["prefetch"]["placed"] == len(seen)
    assert result.lab["services"]["resolved"] == len(now - seen)
    assert result.lab["startup_ns"] >= result.lab["prefetch"]["end_ns"] - result.lab["prefetch"]["from_ns"]


@pytest.mark.lab
@pytest.mark.parametrize("base", ["uffd-missing", "file-private"])
def test_prefetch_beside_and_faults_place_each_page_once(base: str) -> None:
    seen, now = sets_of(2, 1)
    spec = LabSpec(mechanism="prefetch-beside", base=base, working_set_seed=2, seed=1, **ALIKE)
    result = run_or_skip(spec)
    assert result.problem == ""
    prefetch = result.lab["prefetch"]
    assert prefetch["placed"] + prefetch["already_there"] <= len(seen)
    if base == "uffd-missing":
        placed = prefetch["placed"] + result.lab["services"]["resolved"]
        assert placed == result.lab["verified"]["pages_present"]
        assert len(now) <= placed <= len(now | seen)


@pytest.mark.lab
def test_the_working_set_of_a_trace_is_what_its_run_touched(tmp_path: Path) -> None:
    earlier = tmp_path / "a.trace"
    assert run_or_skip(LabSpec(mechanism="host-lazy", seed=2, **ALIKE), earlier).problem == ""
    pages = touched_in(earlier)
    assert set(pages.tolist()) == sets_of(2)[0]
    spec = LabSpec(mechanism="prefetch-before", working_set=earlier, seed=1, **ALIKE)
    assert (working_set(spec) == pages).all()
    assert run_or_skip(spec).lab["prefetch"]["placed"] == len(pages)
    with pytest.raises(UsageError, match="has page"):
        run(LabSpec(mechanism="prefetch-before", working_set=earlier, pages=10), None)


@pytest.mark.lab
@pytest.mark.parametrize("mechanism", ["prefetch-before", "host-lazy"])
def test_a_trace_tells_which_pages_its_run_prefetched(tmp_path: Path, mechanism: str) -> None:
    out = tmp_path / "x.trace"
    spec = LabSpec(mechanism=mechanism, working_set_seed=5, seed=1, **ALIKE)
    assert run_or_skip(spec, out).problem == ""
    pages = working_set_of(open_trace(out).meta)
    if mechanism == "host-lazy":
        assert pages is None
    else:
        assert pages is not None
        assert (pages == working_set(spec)).all()


@pytest.mark.lab
def test_a_prediction_of_a_prefetch_knows_the_run_that_the_real_one_knew(tmp_path: Path) -> None:
    """Not its own pages, which would leave no fault: what it lacks is what the earlier run did not touch."""
    seen, now = sets_of(5, 1)
    one, other = tmp_path / "a.trace", tmp_path / "b.trace"
    assert run_or_skip(LabSpec(mechanism="uffd-missing", seed=1, **ALIKE), one, record=True).problem == ""
    spec = LabSpec(mechanism="prefetch-before", working_set_seed=5, seed=2, **ALIKE)
    assert run_or_skip(spec, other, record=True).problem == ""
    cell = pair(*(open_for(open_trace(path), Setup()) for path in (one, other)))
    # All but these are first touches of pages that are there, each a stage-2 fault of a few us.
    missing = len(now - seen)
    assert cell.predicted.total > (len(now) + 4 * missing) * cell.predicted.p50


@pytest.mark.lab
def test_a_copy_predicts_what_brings_pages_one_by_one(tmp_path: Path) -> None:
    """What the VMM copied before the guest ran is no access of the guest, and the other rows keep their places."""
    one, other = tmp_path / "a.trace", tmp_path / "b.trace"
    assert run_or_skip(LabSpec(mechanism="restore-copy", seed=1, **ALIKE), one, record=True).problem == ""
    assert run_or_skip(LabSpec(mechanism="uffd-missing", seed=2, **ALIKE), other, record=True).problem == ""
    source, target = (open_for(open_trace(path), Setup()) for path in (one, other))
    assert of_start_up(source.running, source.used).any()
    cell = pair(source, target)
    assert cell.predicted.faults >= len(sets_of(1)[0])
    assert cell.predicted.total == pytest.approx(cell.measured.total, rel=1)


def test_a_page_that_came_unasked_is_missing_to_who_brings_nothing_unasked() -> None:
    """A vCPU's first touch of a mapped neighbour is a stage-2 fault; its second fault on a page stays what it was."""
    cause = np.array([CAUSES.index(name) for name in ("stage2", "stage2", "stage2", "missing", "stage2")])
    none, five = np.zeros(0, np.int64), np.arange(5)
    work = Workload(
        accessor_start=np.array([0, 5]), think_ns=np.full(5, 10), page=np.array([7, 8, 7, 9, 9]),
        access=np.zeros(5, np.uint8), cause=cause.astype(np.uint8), recorded_stall_ns=none,
        recorded_start_ns=20 * five, accessor_kind=np.zeros(1, np.uint8), accessor_name=("vcpu0",),
        tail_ns=np.zeros(1, np.int64),
    )  # fmt: skip
    for name in ("file-private", "uffd-fault-around", "prefetch-beside", "restore-copy"):
        read = as_missing(work, Used(name, {}, inferred=False))
        assert [CAUSES[code] for code in read.cause] == ["missing", "missing", "stage2", "missing", "stage2"]
    assert as_missing(work, Used("uffd-missing", {}, inferred=False)) is work


def test_only_the_lab_s_traces_have_a_working_set_for_it() -> None:
    sample = Path(__file__).parent.parent / "sample-traces" / "process-stress-ng.trace"
    with pytest.raises(IncompleteData, match="no lab trace"):
        touched_in(sample)


@pytest.mark.lab
@pytest.mark.parametrize("mechanism", ["restore-copy", "uffd-fault-around", "prefetch-before", "file-private"])
def test_each_page_s_first_touch_is_a_fault_whatever_lies_beside_it(tmp_path: Path, mechanism: str) -> None:
    """Else a trace of memory that was there would hide touches: shadow paging maps up to eight pages with a fault."""
    spec = LabSpec(mechanism=mechanism, working_set_seed=5 if mechanism == "prefetch-before" else None, **ALIKE)
    assert run_or_skip(spec, tmp_path / "x.trace", record=True).problem == ""
    trace = open_trace(tmp_path / "x.trace")
    mapped = trace.meta.memory_map[0]
    touched = trace.faults().filter((pl.col("page") >= mapped.start) & (pl.col("page") < mapped.end))
    vcpus = touched.filter(touched["accessor"] == "vcpu")
    assert (vcpus["page"] - mapped.start).unique().len() == len(sets_of(0)[0])


@pytest.mark.lab
def test_a_cold_run_tells_its_device(tmp_path: Path) -> None:
    alike = ALIKE | {"snapshot": "disk", "page_cache": "cold"}
    told = {}
    for readahead in (True, False):
        spec = LabSpec(mechanism="file-private", readahead=readahead, **alike)
        path = tmp_path / f"{readahead}.trace"
        assert run_or_skip(spec, path, record=True).problem == ""
        meta = open_trace(path).meta
        told[readahead] = meta.mechanism.params["readahead"]  # type: ignore[union-attr]
        assert 10**6 < meta.lab.get("storage_bytes_per_s", 10**9) < 10**12
    assert told[False] == 0
    assert told[True] % 4096 == 0


@pytest.mark.lab
def test_hot_and_cold_files_are_told_apart(tmp_path: Path) -> None:
    alike = ALIKE | {"mechanism": "file-private", "snapshot": "disk"}
    for seed, cache in ((0, "hot"), (1, "cold")):
        assert run_or_skip(LabSpec(page_cache=cache, seed=seed, **alike), tmp_path / f"{cache}.trace", record=True)
    cases = [open_for(open_trace(tmp_path / f"{cache}.trace"), Setup()) for cache in ("hot", "cold")]
    cell = pair(*cases)
    assert (cell.source_mechanism, cell.mechanism) == ("file-private", "file-private:cold")


@pytest.mark.lab
def test_what_a_prefetch_leaves_and_wastes_is_what_a_real_one_did(tmp_path: Path) -> None:
    """The set of run A, replayed on run B, beside a real run that prefetched A's pages for B's accesses."""
    a, b, real = (tmp_path / f"{name}.trace" for name in ("a", "b", "real"))
    for path, seed in ((a, 1), (b, 2)):
        assert run_or_skip(LabSpec(mechanism="uffd-missing", seed=seed, **ALIKE), path, record=True).problem == ""
    spec = LabSpec(mechanism="prefetch-before", working_set=a, seed=2, **ALIKE)
    assert run_or_skip(spec, real, record=True).problem == ""
    cell = pair(*(open_for(open_trace(path), Setup()) for path in (b, real)))
    first, second = sets_of(1, 2)
    assert cell.predicted.left == cell.measured.left == len(second - first)
    assert cell.predicted.unused == cell.measured.unused == len(first - second)
    assert cell.predicted.waste == pytest.approx(len(first - second) / len(first))
    assert cell.measured.startup > 0
    assert cell.predicted.startup > 0
    rows = {row["what"]: row for row in validate_view.one(cell).rows}
    assert rows["faults left"]["error"] == 0
    assert rows["prefetched in vain"]["measured"].endswith(" %")
