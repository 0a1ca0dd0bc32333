"""Guest memory taken away under a real guest, by its own process and by others: every zap seen, with its cause."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import polars as pl
import pytest
from recording_host import LACKING

from faultreplay.collect.backends.backends import kept_attached
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.schema import Kind, ZapCause
from faultreplay.faulttrace.stitch.zap_groups import ZapGroup, zap_groups
from faultreplay.faulttrace.store import Trace, open_trace

WITHOUT = LACKING or ("" if Path("/dev/kvm").exists() else "needs /dev/kvm")
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]
KSM = Path("/sys/kernel/mm/ksm")
PAGE, HUGE = 4096, 2 << 20
BPFTRACE = ["bpftrace"] if shutil.which("bpftrace") else []
BOTH = ["bcc", *(pytest.param(name, marks=pytest.mark.slow) for name in BPFTRACE)]
"""bpftrace takes ten seconds to come and go: once in the default run."""


@pytest.fixture(scope="module", autouse=True)
def attached_once() -> Iterator[None]:
    """Attach the probes once for all recordings of this module."""
    with kept_attached():
        yield


def _actions(
    vm: str,
    out: Path,
    before: list[str],
    after: list[str],
    *,
    backend: str = "bcc",
    outside: Callable[[int], None] | None = None,
) -> tuple[Trace, int]:
    """Record what happens between two waits of the guest's process; the trace, and where its memory starts."""
    process = subprocess.Popen(
        [vm, *before, "wait", *after, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        memory = int(process.stdout.readline().split()[1], 16)
        for _ in before[2:]:
            assert process.stdout.readline()
        with Recorder(RecordSpec(pids=(process.pid,), backend=backend), out) as recorder:
            recorder.tick()
            if outside is not None:
                outside(process.pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            for action in ["wait", *after]:
                assert process.stdout.readline() == f"{action}\n"
        process.stdin.write("end\n")
        process.stdin.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(OSError):
            process.stdin.close()
    return open_trace(out), memory


def _counts(trace: Trace) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in zap_groups(trace):
        counts[group.cause] = counts.get(group.cause, 0) + group.zaps
    return counts


@pytest.mark.parametrize("backend", ["bcc", *BPFTRACE])
def test_each_zap_of_the_own_process_has_the_cause_it_was_made_by(vm: str, tmp_path: Path, backend: str) -> None:
    asked = ["punch:0:50", "touch:0:50", "punch:100:7", "dontneed:10:20", "remove:200:3", "wp:300:5", "protect:400:2"]
    asked += ["unmap:500:11"]
    trace, memory = _actions(vm, tmp_path / "a.trace", ["shared", "1024", "touch:0:600"], asked, backend=backend)
    # What a change of a part does to the mapping around it is told apart by its range.
    counts = {cause: n for cause, n in _counts(trace).items() if cause != "thp-split"}
    wanted = {"punch-hole": 3, "discard": 1, "uffd-writeprotect": 1, "protect": 1, "unmap": 1}
    assert counts == wanted
    zaps = trace.events([Kind.KVM_UNMAP_HVA_RANGE])
    ranges = set(zip(((zaps["addr"] - memory) // PAGE).to_list(), (zaps["size"] // PAGE).to_list(), strict=True))
    assert {(0, 50), (100, 7), (10, 20), (200, 3), (300, 5), (400, 2), (500, 11)} <= ranges
    assert trace.meta.losses.total == 0


@pytest.mark.parametrize("backend", BOTH)
def test_a_huge_page_collapsed_and_split(vm: str, tmp_path: Path, backend: str) -> None:
    # A page of its own first, so that there is something to collapse.
    before = ["anon", "1024", "touch:0:512"]
    trace, memory = _actions(vm, tmp_path / "a.trace", before, ["collapse:0:512", "dontneed:10:1"], backend=backend)
    assert _counts(trace) == {"thp-collapse": 1, "discard": 1, "thp-split": 1}
    (told,) = trace.events([Kind.MM_CAUSE]).iter_rows(named=True)
    assert (told["code"], told["size"], told["value"]) == (ZapCause.THP_COLLAPSE, HUGE, 1)
    split = trace.events([Kind.KVM_UNMAP_HVA_RANGE]).filter(pl.col("size") == HUGE)
    assert split["addr"].to_list() == [memory, memory]


@pytest.mark.parametrize("backend", BOTH)
def test_file_pages_reclaimed(vm: str, tmp_path: Path, backend: str) -> None:
    backing = Path("/var/tmp") / f"faultreplay-{tmp_path.name}"
    try:
        before = [f"file:{backing}", "1024", "touch:0:100", "sync"]
        trace, memory = _actions(vm, tmp_path / "a.trace", before, ["pageout:0:64"], backend=backend)
    finally:
        backing.unlink(missing_ok=True)
    (group,) = [group for group in zap_groups(trace) if group.cause == "reclaim"]
    zaps = trace.events([Kind.KVM_UNMAP_HVA_RANGE])
    assert group.zaps == zaps.height
    assert group.size_bytes >= 64 * PAGE  # a page may be looked at again
    ranges = zip(zaps["addr"], zaps["size"], strict=True)
    pages = {page for addr, size in ranges for page in range(addr, addr + size, PAGE)}
    assert pages == {memory + i * PAGE for i in range(64)}


@contextmanager
def _ksm_running() -> Iterator[None]:
    if not (KSM / "run").exists():
        pytest.skip("needs KSM in the kernel")
    names = ("pages_to_scan", "sleep_millisecs", "run", "smart_scan", "use_zero_pages")
    old = {name: (KSM / name).read_text() for name in names if (KSM / name).exists()}
    unused = old["run"].strip() == "0" and (KSM / "pages_shared").read_text().strip() == "0"
    try:
        for name, value in (("pages_to_scan", "20000"), ("sleep_millisecs", "5"), ("smart_scan", "0"), ("run", "1")):
            if name in old:
                (KSM / name).write_text(value)
        yield
    finally:
        if unused:  # other processes' pages are merged along: leave none so
            (KSM / "run").write_text("2")
        for name, value in old.items():
            (KSM / name).write_text(value)


@pytest.mark.parametrize("backend", BOTH)
def test_pages_merged_by_the_kernels_own_thread(vm: str, tmp_path: Path, backend: str) -> None:
    before = ["anon", "256", "touch:0:64", "same:0:64", "mergeable:0:64"]
    with ExitStack() as stack:

        def merge(pid: int) -> None:
            stack.enter_context(_ksm_running())
            deadline = time.monotonic() + 30
            while int(Path(f"/proc/{pid}/ksm_merging_pages").read_text()) < 64:
                assert time.monotonic() < deadline, "ksmd does not get on"
                time.sleep(0.02)

        trace, memory = _actions(vm, tmp_path / "a.trace", before, [], backend=backend, outside=merge)
    zaps = trace.events([Kind.KVM_UNMAP_HVA_RANGE])
    assert set(zaps["tgid"]) == {trace.meta.targets[0].tgid}
    assert set(zaps["addr"]) == {memory + i * PAGE for i in range(64)}
    merged = trace.events([Kind.MM_CAUSE]).filter(pl.col("value") == 0)
    assert merged.height == 64
    assert _only(zap_groups(trace)) == ("ksm", "ksmd")
    (thread,) = [t for t in trace.meta.targets[0].threads if t.role == "kernel"]
    assert thread.comm == "ksmd"


def _only(groups: list[ZapGroup]) -> tuple[str, str]:
    (kind,) = {(group.cause, group.by) for group in groups}
    return kind


@pytest.mark.parametrize("backend", BOTH)
def test_a_hole_punched_by_another_process(vm: str, tmp_path: Path, backend: str) -> None:
    def punch(pid: int) -> None:
        (fd,) = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if "memfd:guest" in str(entry.readlink())]
        subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", str(9 * PAGE), fd], check=True)

    before = ["shared", "256", "touch:0:64"]
    trace, memory = _actions(vm, tmp_path / "a.trace", before, [], backend=backend, outside=punch)
    zaps = trace.events([Kind.KVM_UNMAP_HVA_RANGE])
    assert zaps.select("addr", "size").rows() == [(memory, 9 * PAGE)]
    assert zaps["tgid"].to_list() == [trace.meta.targets[0].tgid]
    assert zaps["tid"][0] not in {t.tid for t in trace.meta.targets[0].threads}
    (group,) = zap_groups(trace)
    assert (group.cause, group.by) == ("unknown", "an outsider")


def test_pages_moved_by_compaction(vm: str, tmp_path: Path) -> None:
    compact = Path("/proc/sys/vm/compact_memory")
    if not compact.exists():
        pytest.skip("needs CONFIG_COMPACTION")

    def outside(_: int) -> None:
        compact.write_text("1")

    # Compaction moves pages up from low addresses only, and the guest's may lie high: then again, with more of them.
    for attempt in range(1, 6):
        pages = 65536 * attempt
        # Every other page goes, so that there is something to close up.
        before = ["anon", str(pages), f"touch:0:{pages}", *(f"dontneed:{i}:1" for i in range(0, 8192, 2))]
        trace, memory = _actions(vm, tmp_path / f"{attempt}.trace", before, [], outside=outside)
        told = trace.events([Kind.MM_CAUSE])
        if told.height:
            break
    groups = zap_groups(trace)
    moved = told.filter(pl.col("addr") != 0)
    assert 0 < moved.height < told.height  # each page, and the end of each batch
    assert set(told["code"]) == {ZapCause.MIGRATION}
    assert {(g.cause, g.detail) for g in groups} == {("migration", "compaction")}
    assert moved["addr"].is_between(memory, memory + pages * PAGE, closed="left").sum() > 0  # stacks move too


def test_zaps_of_a_vm_that_is_not_recorded_leave_nothing(vm: str, tmp_path: Path) -> None:
    def elsewhere(_: int) -> None:
        subprocess.run([vm, "shared", "256", "touch:0:64", "punch:0:64"], check=True, stdout=subprocess.DEVNULL)

    trace, _ = _actions(vm, tmp_path / "a.trace", ["shared", "256", "touch:0:64"], ["punch:5:1"], outside=elsewhere)
    assert trace.events([Kind.KVM_UNMAP_HVA_RANGE])["size"].to_list() == [PAGE]
