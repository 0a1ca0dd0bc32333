"""A guest in Debian's 6.1 and 6.12 under nested SVM, recorded by several tools at once: counts, faults, stalls agree.

The first run of each is by `record`, ftrace and trace-cmd, the second by perf (twice) and ftrace (scripts/kernels).
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import polars as pl
import pytest

from faultreplay.collect.importers import import_file
from faultreplay.collect.importers.printed import parse_fields
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace, open_trace

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
PAGES = 23
CAUSES = {"svm-6.1-lazy": {"stage2": PAGES + 1}, "svm-6.12-uffd": {"stage2": 1, "missing": PAGES}}
OF_KVM = (
    *(Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_PAGE_FAULT, Kind.KVM_MMU_SET_SPTE, Kind.KVM_USERSPACE_EXIT, Kind.KVM_PIO),
)
OF_CALLS = (
    *(Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT, Kind.KVM_SET_MEMSLOT, Kind.UFFD_API, Kind.UFFD_REGISTER, Kind.UFFD_COPY),
)
NEAR_NS = 40_000
"""So far two tools' times of one event are apart under emulation, unless an interrupt or QEMU's own wait is between."""


@pytest.fixture(params=sorted(CAUSES))
def run(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def imported(run: str, tool: str, folder: Path) -> Trace:
    kind = "perf-script" if tool.startswith("perf") else "trace-cmd"
    out = folder / f"{tool}.trace"
    import_file(kind, GOLDEN / f"{run}.{tool}.txt.gz", out)
    return open_trace(out)


def own(run: str, folder: Path) -> Trace:
    shutil.copytree(GOLDEN / f"{run}-own", folder / "own.trace")  # its faults are kept beside it
    return open_trace(folder / "own.trace", allow_incomplete=False)


def vcpu(trace: Trace) -> int:
    return int(trace.events().filter(pl.col("kind") == Kind.KVM_EXIT)["tid"][0])


def counts(trace: Trace, kinds: tuple[Kind, ...]) -> dict[int, int]:
    events = trace.events()
    return {int(kind): events.filter(pl.col("kind") == kind).height for kind in kinds}


def of_guest(trace: Trace) -> pl.DataFrame:
    return trace.faults().filter(pl.col("tid") == vcpu(trace), pl.col("cause").is_in(["stage2", "missing", "exit"]))


def beyond(first: pl.DataFrame, second: pl.DataFrame) -> int:
    """How many stalls are further apart than usual."""
    apart = (first["stall_ns"] - second["stall_ns"]).abs()
    return int((apart > NEAR_NS).sum())


def test_every_number_of_our_own_recording(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    check = importlib.import_module("check").check
    trace = own(run, tmp_path)
    (facts,) = trace.meta.extra["guests"]
    assert [item for item in check(trace, facts) if not item.holds] == []
    assert trace.meta.host.kernel.startswith(run.split("-")[1])


@pytest.mark.parametrize(("tool", "far"), [("trace-cmd", (2, 2)), ("trace-cmd-R", (2, 2)), ("ftrace-own", (7, 1))])
def test_trace_cmd_and_ftrace_beside_our_own_recording(
    run: str, tool: str, far: tuple[int, int], tmp_path: Path
) -> None:
    mine, theirs = own(run, tmp_path), imported(run, tool, tmp_path)
    assert vcpu(mine) == vcpu(theirs)
    assert counts(mine, OF_KVM) == counts(theirs, OF_KVM)
    if tool == "ftrace-own":  # with system calls
        assert counts(mine, OF_CALLS) == counts(theirs, OF_CALLS)
    faults, found = of_guest(mine), of_guest(theirs)
    assert dict(faults.group_by("cause").len().rows()) == CAUSES[run]
    assert faults.height == found.height == PAGES + 1  # and the page of code
    assert set(faults["join"]) == set(found["join"]) == {"exit/entry"}
    # Ours has host addresses, as it knows the memslots: one distance for each of the two.
    apart = faults["page"].cast(pl.Int64) - found["page"].cast(pl.Int64)
    assert apart[1:].n_unique() == 1
    assert found["page"].to_list() == [0x1000, *(0x10000000 + 4096 * n for n in range(PAGES))]
    assert beyond(faults, found) == far[sorted(CAUSES).index(run)]


def test_the_raw_text_of_trace_cmd_has_the_same_numbers(run: str, tmp_path: Path) -> None:
    """libtraceevent prints some fields in hexadecimal without 0x."""
    usual, raw = (imported(run, tool, tmp_path).events() for tool in ("trace-cmd", "trace-cmd-R"))
    told = ["ts_ns", "tid", "kind", "addr", "size"]
    entries = pl.col("kind") == Kind.KVM_MMU_SET_SPTE
    assert usual.filter(entries).select(told).equals(raw.filter(entries).select(told))
    assert usual.height == raw.height


def test_the_raw_text_of_a_guest_with_a_dirty_ring(tmp_path: Path) -> None:
    """One entry is mended by fast_page_fault, of which the address and the new entry have no 0x."""
    usual, raw = (imported("svm-6.1-ring", tool, tmp_path).events() for tool in ("trace-cmd", "trace-cmd-R"))
    told = ["ts_ns", "tid", "kind", "addr", "size"]
    kinds = pl.col("kind").is_in([int(Kind.KVM_MMU_SET_SPTE), int(Kind.KVM_MMU_FAST_PAGE_FAULT)])
    assert usual.filter(kinds).height == 213
    assert usual.filter(kinds).select(told).equals(raw.filter(kinds).select(told))
    (mended,) = raw.filter(pl.col("kind") == Kind.KVM_MMU_FAST_PAGE_FAULT)["addr"]
    assert mended == 0x100BF000


def test_raw_text_without_letters_is_read_in_the_base_it_is_in() -> None:
    assert parse_fields("kvm_mmu_set_spte", "gfn=10 spte=110300867 sptep=110390020 level=1 r=1 x=1 u=1")["gfn"] == 0x10
    # In decimal the entry is present and its address a multiple of 8.
    decimal = f"gfn=10 spte={0x1033D5E67} sptep={0x1108C9008} level=1 r=1 x=1 u=1"
    assert parse_fields("kvm_mmu_set_spte", decimal)["gfn"] == 10
    fast = "vcpu_id=12 cr2_or_gpa=10000000 error_code=7 sptep=0xff1100010 old_spte=0x103190065 new_spte=103190067 ret=4"
    fields = parse_fields("fast_page_fault", fast)
    assert (fields["cr2_or_gpa"], fields["new_spte"], fields["vcpu_id"]) == (0x10000000, 0x103190067, 12)


def test_perf_with_call_graphs_and_perf_kvm_stat_and_ftrace(run: str, tmp_path: Path) -> None:
    traces = {
        tool: imported(run, tool, tmp_path) for tool in ("perf", "perf-callgraph", "perf-kvm-stat", "ftrace-perf")
    }
    perf = traces["perf"]
    # Without -F perf script prints no process.
    assert perf.events().drop("tgid").equals(traces["perf-callgraph"].events().drop("tgid"))
    found = {tool: of_guest(trace) for tool, trace in traces.items()}
    for tool, trace in traces.items():
        assert vcpu(trace) == vcpu(perf)
        assert counts(trace, OF_KVM[:2]) == counts(perf, OF_KVM[:2])
        assert found[tool].height == PAGES + 1, tool
        assert found[tool]["page"].to_list() == found["perf"]["page"].to_list()  # perf kvm stat: from info2
        assert set(found[tool]["join"]) == {"exit/entry"}
    assert counts(perf, (*OF_KVM[2:5], *OF_CALLS)) == counts(traces["ftrace-perf"], (*OF_KVM[2:5], *OF_CALLS))
    assert counts(perf, (Kind.UFFD_COPY,)) == {Kind.UFFD_COPY: CAUSES[run].get("missing", 0)}
    # Taking a call graph lies between the times of the two perfs.
    assert beyond(found["perf"], found["perf-kvm-stat"]) <= 6
    assert beyond(found["perf"], found["ftrace-perf"]) <= 1


def test_an_overrun_in_the_latency_format_is_a_loss(tmp_path: Path) -> None:
    """One ring printed twice."""
    lost = []
    for tool in ("ftrace-perf", "ftrace-latency"):
        path = GOLDEN / f"svm-6.1-lazy.{tool}.txt.gz"
        lost.append(import_file("trace-cmd", path, tmp_path / f"{tool}.trace").lost)
    assert lost == [127_168, 127_168]
    usual, latency = (open_trace(tmp_path / f"{tool}.trace") for tool in ("ftrace-perf", "ftrace-latency"))
    assert counts(usual, OF_KVM) == counts(latency, OF_KVM)
    assert (of_guest(usual)["stall_ns"] - of_guest(latency)["stall_ns"]).abs().max() <= 1000  # a rounding
