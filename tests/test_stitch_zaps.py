"""Why memory was zapped, on sequences of events made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_events import VM, at, frame

from faultreplay.faulttrace.meta import Meta, Target, Thread
from faultreplay.faulttrace.schema import Kind, ZapCause
from faultreplay.faulttrace.stitch.zap_groups import group_zaps

VCPU, KSMD, KSWAPD, STRANGER = 110, 40, 41, 999
ADDR, PAGE, HUGE = 0x7F00_0020_0000, 4096, 2 << 20
META = Meta(
    targets=[
        Target(
            VM,
            threads=[
                Thread(VM, role="vmm"),
                Thread(VCPU, role="vcpu", vcpu=0),
                Thread(KSMD, "ksmd", "kernel"),
                Thread(KSWAPD, "kswapd0", "kernel"),
            ],
        )
    ]
)


def zap(ts_ns: int, tid: int = VM, addr: int = ADDR, size: int = PAGE) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_UNMAP_HVA_RANGE, tid, addr=addr, size=size)


def call(ts_ns: int, kind: Kind, tid: int = VM, **columns: int) -> dict[str, Any]:
    """A system call of 100 that ends at `ts_ns`."""
    return at(ts_ns, kind, tid, **{"addr": ADDR, "size": PAGE, "dur_ns": 100} | columns)


def told(ts_ns: int, cause: ZapCause, tid: int = VM, **columns: int) -> dict[str, Any]:
    return at(ts_ns, Kind.MM_CAUSE, tid, code=int(cause), **columns)


def causes(*events: dict[str, Any]) -> dict[tuple[str, str, str], int]:
    return {(g.cause, g.detail, g.by): g.zaps for g in group_zaps(frame(*events), META)}


@pytest.mark.parametrize(
    ("kind", "columns", "cause"),
    [
        (Kind.MUNMAP, {}, "unmap"),
        (Kind.MPROTECT, {}, "protect"),
        (Kind.MADVISE, {"code": 4}, "discard"),
        (Kind.MADVISE, {"code": 9}, "punch-hole"),
        (Kind.MADVISE, {"code": 21}, "reclaim"),
        (Kind.MADVISE, {"code": 14}, "unknown"),
        (Kind.FALLOCATE, {"code": 3}, "punch-hole"),
        (Kind.FALLOCATE, {"code": 0}, "unknown"),
        (Kind.UFFD_WRITEPROTECT, {"code": 1}, "uffd-writeprotect"),
        (Kind.UFFD_MOVE, {}, "uffd-move"),
    ],
)
def test_the_system_call_that_the_thread_is_in(kind: Kind, columns: dict[str, int], cause: str) -> None:
    assert causes(zap(950), call(1000, kind, **columns)) == {(cause, "", "vmm"): 1}
    assert causes(zap(850), call(1000, kind, **columns)) == {("unknown", "", "vmm"): 1}  # before it began
    assert causes(zap(950, STRANGER), call(1000, kind, **columns)) == {("unknown", "", "an outsider"): 1}


def test_a_tracepoint_inside_the_call_knows_better() -> None:
    events = [zap(950), told(960, ZapCause.THP_COLLAPSE, size=HUGE), call(1000, Kind.MADVISE, code=4)]
    assert causes(*events) == {("thp-collapse", "", "vmm"): 1}
    late = [zap(950), call(1000, Kind.MADVISE, code=4), told(1010, ZapCause.RECLAIM)]
    assert causes(*late) == {("discard", "", "vmm"): 1}


def test_a_whole_huge_page_where_less_was_asked_for_is_a_split() -> None:
    events = [zap(950), zap(960, size=HUGE), call(1000, Kind.MADVISE, code=4)]
    assert causes(*events) == {("discard", "", "vmm"): 1, ("thp-split", "", "vmm"): 1}
    whole = [zap(960, size=HUGE), call(1000, Kind.MADVISE, code=4, size=HUGE)]
    assert causes(*whole) == {("discard", "", "vmm"): 1}


def test_migrations_by_page_and_by_batch() -> None:
    events = [
        zap(10, STRANGER),
        told(11, ZapCause.MIGRATION, STRANGER, addr=ADDR, size=PAGE, value=0),
        zap(20, STRANGER, ADDR + PAGE),  # nothing was mapped there: only the end of the batch tells
        zap(30, STRANGER, ADDR + 2 * PAGE),
        told(31, ZapCause.MIGRATION, STRANGER, addr=ADDR + 2 * PAGE, size=PAGE, value=0),
        told(40, ZapCause.MIGRATION, STRANGER, value=0),
        zap(50, STRANGER),
        told(51, ZapCause.MIGRATION, STRANGER, addr=ADDR + 9 * PAGE, size=PAGE, value=5),
    ]
    assert causes(*events) == {("migration", "compaction", "an outsider"): 3, ("unknown", "", "an outsider"): 1}


def test_without_a_tracepoint_the_kernel_threads_name_tells() -> None:
    assert causes(zap(1, KSMD), zap(2, KSWAPD)) == {("ksm", "", "ksmd"): 1, ("reclaim", "", "kswapd0"): 1}


def test_faults_of_the_own_threads() -> None:
    ran = [zap(950, VCPU), call(1000, Kind.KVM_RUN_EXIT, VCPU)]
    assert causes(*ran) == {("page-fault", "", "vcpu"): 1}
    running = [at(900, Kind.KVM_RUN_ENTER, VCPU), zap(950, VCPU)]
    assert causes(*running) == {("page-fault", "", "vcpu"): 1}
    faulted = [at(940, Kind.PAGE_FAULT_USER, VM, addr=ADDR), zap(950), call(2000, Kind.MADVISE, code=4)]
    assert causes(*faulted) == {("page-fault", "", "vmm"): 1}
    since = [at(10, Kind.PAGE_FAULT_USER, VM, addr=ADDR), call(500, Kind.MADVISE, code=4), zap(950)]
    assert causes(*since) == {("unknown", "", "vmm"): 1}
    at_once = [at(500, Kind.PAGE_FAULT_USER, VM, addr=ADDR), call(500, Kind.MADVISE, code=4), zap(950)]
    assert causes(*at_once) == {("unknown", "", "vmm"): 1}  # the call ended no earlier than the fault began


TIDS = (VM, VM + 1, 1)
SOME = st.one_of(
    st.builds(
        lambda tid, page, pages: ("zap", tid, page, pages), st.sampled_from(TIDS), st.integers(0, 3), st.integers(1, 2)
    ),
    st.builds(
        lambda tid, cause, page: ("told", tid, cause, page),
        st.sampled_from(TIDS),
        st.sampled_from([ZapCause.MIGRATION, ZapCause.RECLAIM, ZapCause.KSM]),
        st.sampled_from([None, 0, 1]),
    ),
    st.builds(
        lambda tid, kind, length: ("call", tid, kind, length),
        st.sampled_from(TIDS),
        st.sampled_from([Kind.MUNMAP, Kind.MADVISE, Kind.KVM_RUN_EXIT]),
        st.integers(1, 40),
    ),
    st.builds(
        lambda tid, kind: ("other", tid, kind, 0),
        st.sampled_from(TIDS),
        st.sampled_from([Kind.KVM_RUN_ENTER, Kind.PAGE_FAULT_USER, Kind.UFFD_MSG]),
    ),
)


def made(number: int, what: str, tid: int, which: Any, more: Any) -> dict[str, Any]:
    ts_ns = 1000 + 10 * number
    if what == "zap":
        return zap(ts_ns, tid, ADDR + which * PAGE, more * PAGE)
    if what == "told":
        return told(ts_ns, which, tid, addr=0 if more is None else ADDR + more * PAGE, value=1)
    if what == "call":
        return call(ts_ns, which, tid, dur_ns=10 * more, code=4)
    return at(ts_ns, which, tid)


@given(st.lists(SOME, min_size=1, max_size=30), st.integers(1, 7))
def test_zaps_are_the_same_by_stretches(some: list[tuple[str, int, Any, Any]], rows: int) -> None:
    events = frame(*(made(number, *one) for number, one in enumerate(some)))
    assert group_zaps(events, META, rows=rows) == group_zaps(events, META)
