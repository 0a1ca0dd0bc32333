"""Faults on the pages of mapped files: found in the page cache, read, copied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from recording_host import LACKING
from test_stitch import VM, at, frame

from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.meta import Host, MapEntry, Memslot, Meta, Target
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec

TID, HVA, GPA, INODE = 200, 0x7F00_0000_0000, 0x10_0000, 7
META = Meta(
    host=Host(kvm_flavour="pvm"),
    targets=[Target(VM, memslots=[Memslot(slot=0, gpa=GPA, hva=HVA, size_bytes=1 << 20, ts_ns=0)])],
    memory_map=[MapEntry(0, VM, HVA, HVA + (1 << 20), file="private")],
)
WRITE, PRESENT = 2, 1


def fault(ns: int, code: int = 0, page: int = 0) -> dict[str, Any]:
    return at(ns, Kind.PAGE_FAULT_USER, TID, addr=HVA + 4096 * page, code=code)


def asked(ns: int, page: int = 0) -> dict[str, Any]:
    return at(ns, Kind.FILE_FAULT, TID, addr=4096 * page, code=INODE)


def added(ns: int, page: int = 0, pages: int = 1, inode: int = INODE) -> dict[str, Any]:
    return at(ns, Kind.FILE_ADD, TID, addr=4096 * page, size=4096 * pages, code=inode)


def around(ns: int) -> dict[str, Any]:
    return at(ns, Kind.FILE_MAP, TID, addr=0, size=1 << 16, code=INODE)


def rows(*events: dict[str, Any], meta: Meta = META) -> list[tuple[Any, ...]]:
    return stitch_events(frame(*events), meta).faults.select("cause", "backing", "copied", "stall_ns").rows()


@pytest.mark.parametrize(
    ("events", "cause", "backing", "copied"),
    [
        ([fault(10)], "minor-host", None, None),
        ([fault(10), around(11)], "minor-host", "cache", None),
        ([fault(10), around(11), asked(12)], "minor-host", "cache", None),
        ([fault(10), asked(12), added(13)], "major-host", "disk", None),
        ([fault(10), asked(12, page=5), added(13, page=4, pages=4)], "major-host", "disk", None),  # a large folio
        ([fault(10), asked(12), added(13, page=32)], "minor-host", "cache", None),  # readahead of later pages
        ([fault(10), asked(12), added(13, inode=8)], "minor-host", "cache", None),
        ([fault(10, WRITE), asked(12), added(13)], "major-host", "disk", True),
        ([fault(10, WRITE), asked(12)], "minor-host", "cache", True),
        ([fault(10, WRITE | PRESENT)], "minor-host", None, True),
        ([added(9), fault(10), asked(12)], "minor-host", "cache", None),  # read before, by a call
    ],
)
def test_a_process_s_fault_says_where_its_page_was(
    events: list[dict[str, Any]], cause: str, backing: str | None, copied: bool | None
) -> None:
    assert rows(*events) == [(cause, backing, copied, None)]


def test_a_page_that_somebody_else_reads_is_waited_for() -> None:
    sleep = [at(13, Kind.SCHED_OUT, TID, code=2), at(40, Kind.SCHED_IN, TID), at(42, Kind.MMAP_LOCK_RELEASED, TID)]
    assert rows(fault(10), asked(12), *sleep) == [("major-host", "disk", None, 32)]


def test_events_belong_to_the_last_fault_before_them() -> None:
    events = [fault(10), fault(20, page=1), asked(22, page=1), added(23, page=1), fault(30, page=2), around(31)]
    assert [row[1] for row in rows(*events)] == [None, "disk", "cache"]


def test_a_write_to_other_memory_copies_nothing_that_is_known() -> None:
    plain = Meta(memory_map=[MapEntry(0, VM, HVA, HVA + (1 << 20), file="shared")])
    assert rows(fault(10, WRITE), asked(12), meta=plain) == [("minor-host", "cache", None, None)]


def counted(ns: int, own: int = 1) -> dict[str, Any]:
    return at(ns, Kind.RSS_STAT, TID, size=own, value=4096)


@pytest.mark.parametrize(
    ("events", "stall_ns"),
    [
        ([fault(10), counted(15)], 5),
        ([fault(10), counted(12, own=0), counted(15)], 5),  # a child's memory
        ([fault(10), around(11), counted(12), asked(13), counted(20)], 10),  # the neighbours, then the page
        ([fault(10), counted(12), counted(13)], 2),
        ([fault(10), fault(20), counted(25)], None),
        ([fault(10), counted(300_000)], None),  # too late to be the fault's
        ([fault(10), at(12, Kind.SCHED_OUT, TID, code=2), at(30, Kind.SCHED_IN, TID),
          at(40, Kind.MMAP_LOCK_RELEASED, TID), counted(38)], 30),
    ],
)  # fmt: skip
def test_a_fault_that_did_not_sleep_ends_where_its_page_is_counted(
    events: list[dict[str, Any]], stall_ns: int | None
) -> None:
    assert rows(*events)[0][3] == stall_ns


def walk(ns: int, code: int = WRITE) -> dict[str, Any]:
    return at(ns, Kind.KVM_MMU_WALK, TID, addr=GPA, code=code)


def test_kvm_walks_again_when_the_vcpu_itself_copied_the_page() -> None:
    """The page was mapped for reading: its entry goes with the copy, and the second walk finds none."""
    unmap, spte = (
        at(14, Kind.KVM_UNMAP_HVA_RANGE, TID, addr=HVA, size=4096),
        at(20, Kind.KVM_MMU_SET_SPTE, TID, addr=GPA, size=1),
    )
    for first in (WRITE, WRITE | PRESENT):
        assert rows(walk(10, first), unmap, walk(18), spte) == [("stage2", None, True, 10)]
    assert rows(walk(10), walk(18), spte) == [("stage2", None, None, 2)]  # two accesses, or so it seems
    assert rows(walk(10), asked(11), added(12), spte) == [("stage2", "disk", True, 10)]
    assert rows(walk(10, 0), asked(11), spte) == [("stage2", "cache", None, 10)]


CHILD = """
import ctypes, mmap, os, sys
hot_path, cold_path = sys.argv[1:3]
hits, direct, after, cold = map(int, sys.argv[3:])
STEP = 1 << 21
def view(path, n):
    return mmap.mmap(os.open(path, os.O_RDWR), n * STEP, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
hot, far = view(hot_path, hits + direct + after), view(cold_path, cold)
far.madvise(mmap.MADV_RANDOM)
fd = os.open(cold_path, os.O_RDONLY)
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
print(*(ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in (hot, far)), flush=True)
sys.stdin.readline()
for i in range(hits): hot[i * STEP]
for i in range(hits, hits + direct): hot[i * STEP] = 1
for i in range(hits + direct, hits + direct + after): hot[i * STEP]
for i in range(hits + direct, hits + direct + after): hot[i * STEP] = 1
for i in range(cold): far[i * STEP]
print("done", flush=True)
sys.stdin.readline()
"""
STEP = 1 << 21
"""Two pages are so far apart that none is mapped, or read, with another."""


def sparse(path: Path, pages: int) -> Path:
    with path.open("wb") as file:
        for i in range(pages):
            file.seek(i * STEP)
            file.write(os.urandom(4096))
            file.flush()
        file.truncate(pages * STEP)
    return path


@pytest.mark.live
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
@pytest.mark.parametrize("backend", ["precompiled", "bcc", "bpftrace"])
def test_a_prime_number_of_each_is_told_apart(tmp_path: Path, backend: str) -> None:
    hits, direct, after, cold = 23, 31, 37, 29
    files = sparse(tmp_path / "hot", hits + direct + after), sparse(tmp_path / "cold", cold)
    argv = [sys.executable, "-c", CHILD, *map(str, (*files, hits, direct, after, cold))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        starts = [int(word) for word in child.stdout.readline().split()]
        out = tmp_path / "x.trace"
        with Recorder(RecordSpec(pids=(child.pid,), backend=backend), out):
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
        child.stdin.write("\n")
        child.stdin.flush()
    trace = open_trace(out)
    assert trace.meta.losses.total == 0
    if missing := [p.name for p in trace.meta.probes if p.name.startswith("filemap:") and p.status != "attached"]:
        pytest.skip(f"this kernel has not {missing}")

    def told(start: int, pages: int) -> dict[tuple[Any, ...], int]:
        inside = (pl.col("page") >= start) & (pl.col("page") < start + pages * STEP)
        counted = trace.faults().filter(inside).group_by("cause", "access", "backing", "copied").len()
        return {row[:-1]: row[-1] for row in counted.rows()}

    assert told(starts[0], hits + direct + after) == {
        ("minor-host", "r", "cache", None): hits + after,
        ("minor-host", "w", "cache", True): direct,
        ("minor-host", "w", None, True): after,
    }
    assert told(starts[1], cold) == {("major-host", "r", "disk", None): cold}


@pytest.mark.lab
def test_a_guest_on_a_cold_file_reads_each_page_and_copies_what_it_writes(tmp_path: Path) -> None:
    out = tmp_path / "x.trace"
    spec = LabSpec(
        mechanism="file-private", snapshot="disk", page_cache="cold", readahead=False, pages=1009, order="random",
        access="mixed:0.3", fetch="0",
    )  # fmt: skip
    assert run(spec, out).problem == ""
    trace = open_trace(out)
    truth = trace.truth()
    assert truth is not None
    writes = truth.filter(pl.col("access") == "w").height
    faults = trace.faults().filter(pl.col("accessor") == "vcpu")
    counted = faults.group_by("access", "backing", "copied").len().sort("access").rows()
    assert counted == [("r", "disk", None, 1009 - writes), ("w", "disk", True, writes)]
