"""What a file claims is compared with limits before anything is done; --force removes traces and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_integrity import killed, old, process_events, small

from faultreplay.analysis.compare.inspection import inspect_trace
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.directory import part_name
from faultreplay.faulttrace.errors import IncompleteData, NoPermission, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import EVENTS, Kind, ZapCause
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.verify import verify_trace
from faultreplay.faulttrace.writer import TraceWriter

WINDOW = {"kind": "freeze", "start_ns": 1, "end_ns": 2}
SLOT = {"ts_ns": 1, "slot": 1, "gpa": 0, "hva": 1 << 64, "size_bytes": 1}


@pytest.fixture(autouse=True)
def _never_waits() -> Iterator[None]:
    signal.alarm(120)
    yield
    signal.alarm(0)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize("name", ["meta.json", "events/part-000001.parquet", "losses.parquet", "truth.parquet"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "a FIFO, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (os.mkdir, "a directory, not a regular file"),
    ],
)
def test_what_is_no_file_is_never_read(tmp_path: Path, name: str, make: Callable[[Path], object], says: str) -> None:
    path = small(tmp_path / "a.trace")
    _replace(path / name, make)
    with pytest.raises(IncompleteData, match=f"{name}: {says}"):
        open_trace(path)
    assert any(says in file.problem for file in verify_trace(path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("part-99999999999999999999.parquet", "not a name of a part"),
        ("part-1000000001.parquet", "part numbers end at"),
        ("part-999999999.parquet", r"gone \(99999999[67] missing\)|was written as"),
        ("part-1_0.parquet", "not a name of a part"),
        ("part-\u0663.parquet", "not a name of a part"),
        ("part-000000.copy.parquet", "not a name of a part"),
        ("part-0000001.parquet", "not a name of a part"),
    ],
)
def test_part_numbers_are_bounded(tmp_path: Path, name: str, says: str) -> None:
    for path in (small(tmp_path / "a.trace"), old(tmp_path / "b.trace")):
        shutil.copy(path / part_name(0), path / "events" / name)
        began = time.monotonic()
        with pytest.raises(IncompleteData, match=says):
            open_trace(path)
        assert time.monotonic() - began < 5


def _bad_meta(change: Callable[[dict[str, Any]], None], path: Path) -> None:
    raw = json.loads((path / "meta.json").read_text())
    change(raw)
    (path / "meta.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["targets"][0]["threads"][0].update(tid=1 << 64), r"targets\[0\].threads\[0\].tid is 1844674407"),
        (lambda m: m["targets"][0].update(tgid=-1), r"targets\[0\].tgid is -1"),
        (lambda m: m["clock"].update(end_ns=1 << 62), r"clock.end_ns is"),
        (lambda m: m["host"].update(cpus=1 << 40), r"host.cpus is"),
        (lambda m: m["recorder"].update(events=-5), r"recorder.events is -5"),
        (lambda m: m.update(windows=[WINDOW] * 10_001), r"windows \(their number\)"),
        (lambda m: m["losses"].update(total=10**300), "a number of more than 40 digits|damaged"),
        (lambda m: m["targets"][0].update(memslots=[SLOT]), r"memslots\[0\].hva"),
    ],
)  # fmt: skip
def test_numbers_of_meta_json_are_bounded(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    path = old(tmp_path / "a.trace")
    _bad_meta(change, path)
    with pytest.raises(IncompleteData, match=says) as raised:
        open_trace(path)
    assert "\n" not in str(raised.value)


def test_memory_is_asked_for_only_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(tmp_path / "a.trace")
    rows = 20_000_000
    same = process_events(2).slice(0, 1)
    big = pa.table({f.name: pa.array(np.full(rows, same[f.name][0].as_py(), f.type.to_pandas_dtype())) for f in EVENTS})
    pq.write_table(big.cast(EVENTS), path / part_name(0), compression="zstd")
    assert (path / part_name(0)).stat().st_size < 4 << 20
    meta = Meta.read(path / "meta.json")
    meta.recorder.events = rows + 40
    (path / "meta.json").write_bytes(meta.to_json())
    monkeypatch.setenv("FAULTREPLAY_MEMORY", "1G")
    with pytest.raises(IncompleteData, match=r"20000040 rows need about .* FAULTREPLAY_MEMORY allows 1G"):
        open_trace(path).events()
    monkeypatch.setenv("FAULTREPLAY_MEMORY", "much")
    with pytest.raises(UsageError, match="FAULTREPLAY_MEMORY: 'much' is not a size"):
        open_trace(path).events()
    monkeypatch.setenv("FAULTREPLAY_MEMORY", "64G")
    assert open_trace(path).event_rows == rows + 40


@pytest.mark.parametrize("groups", [1, 3])
def test_events_of_one_instant_are_bounded(tmp_path: Path, groups: int) -> None:
    """They cannot be looked at piece by piece: 8 MB of them took 20 GB."""
    path = old(tmp_path / "a.trace")
    rows = 300_000
    same = process_events(2).slice(0, 1)
    big = pa.table({f.name: pa.array(np.full(rows, same[f.name][0].as_py(), f.type.to_pandas_dtype())) for f in EVENTS})
    pq.write_table(big.cast(EVENTS), path / part_name(0), row_group_size=rows // groups)
    meta = Meta.read(path / "meta.json")
    meta.recorder.events = 0
    (path / "meta.json").write_bytes(meta.to_json())
    with pytest.raises(IncompleteData, match="more than 65536 events at 1000 ns, one instant: damaged"):
        open_trace(path).faults()


def test_times_are_bounded(tmp_path: Path) -> None:
    for number, times in enumerate(([1, 10**18 + 1], [1, 10**15 + 2])):
        path = tmp_path / f"{number}.trace"
        with TraceWriter(path, Meta()) as writer:
            writer.append_events(process_events(2).set_column(0, EVENTS.field(0), pa.array(times, pa.int64())))
        with pytest.raises(IncompleteData, match=r"impossible time|spans .*, more than"):
            open_trace(path).events()


def test_a_footer_that_breaks_a_name_is_one_line(tmp_path: Path) -> None:
    path = old(tmp_path / "a.trace")
    part = path / part_name(0)
    good = part.read_bytes()
    whole = open_trace(path).events().rows()
    refused = 0
    for at in [n for n in range(len(good)) if good.startswith(b"ts_ns", n)]:
        part.write_bytes(good[:at] + b"\xff" + good[at + 1 :])
        try:
            assert open_trace(path).events().rows() == whole
        except IncompleteData as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


def test_kinds_and_causes_of_a_newer_recorder_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    kinds = np.array([Kind.MM_CAUSE, Kind.KVM_UNMAP_HVA_RANGE, 250], np.uint8)
    events = process_events(3).set_column(4, EVENTS.field("kind"), pa.array(kinds))
    codes = np.array([max(ZapCause) + 7, 0, 0], np.uint64)
    events = events.set_column(EVENTS.get_field_index("code"), EVENTS.field("code"), pa.array(codes))
    with TraceWriter(path, Meta()) as writer:
        writer.append_events(events.cast(EVENTS))
    inspection = inspect_trace(open_trace(path))
    assert inspection.kinds["kind 250"] == 1
    assert [group.cause for group in inspection.zaps] == ["unknown"]


def test_a_killed_recording_lasts_until_its_last_event(tmp_path: Path) -> None:
    path = killed(tmp_path / "a.trace")
    inspection = inspect_trace(open_trace(path))
    assert inspection.duration_ns == 1000 + 119 * 50 - 900
    assert any("did not finish" in note for note in inspection.notes)


# --force


def _listing(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


@pytest.mark.parametrize("foreign", ["thesis.txt", "events/notes.txt", ".git/config", "events/part-x.parquet"])
@pytest.mark.parametrize(
    "verb",
    [
        ["synth", "demand-paging", "--vcpus", "1", "--pages", "2", "--force", "-o"],
        ["record", "--force", "--", "true"],
    ],
)
def test_force_replaces_only_what_is_a_trace_and_nothing_else(
    tmp_path: Path, foreign: str, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path / "a.trace")
    (path / foreign).parent.mkdir(exist_ok=True)
    (path / foreign).write_text("dear")
    before = _listing(path)
    arguments = [*verb, str(path)] if verb[-1] == "-o" else [verb[0], "-o", str(path), *verb[1:]]
    assert _exit_code(arguments) == 2
    said = capsys.readouterr().err
    assert "nothing was replaced" in said
    assert said.count("\n") == 1
    assert _listing(path) == before


def test_force_over_a_meta_json_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    path.mkdir()
    (path / "meta.json").write_text('{"name": "a package"}')
    with pytest.raises(UsageError, match=r"not a trace \(it has no meta\.json of faultreplay\)"):
        TraceWriter(path, Meta(), force=True)
    assert (path / "meta.json").exists()


def test_force_through_a_link_and_over_a_damaged_trace(tmp_path: Path) -> None:
    path = small(tmp_path / "a.trace")
    link = tmp_path / "link.trace"
    link.symlink_to(path)
    with pytest.raises(UsageError, match="a symbolic link"):
        TraceWriter(link, Meta(), force=True)
    outside = tmp_path / "outside.parquet"
    outside.write_text("dear")
    (path / part_name(1)).unlink()
    (path / part_name(1)).symlink_to(outside)
    (path / ".meta.json.abcd1234").write_text("left over by a killed writer")
    TraceWriter(path, Meta(), force=True).close()
    assert _listing(path) == ["events", "losses.parquet", "meta.json"]
    assert outside.read_text() == "dear"


# who may read and write


@contextmanager
def _as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that anybody may enter."""
    if os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("closed", [".", "events", "events/part-000001.parquet", "meta.json", "losses.parquet"])
def test_another_users_trace_is_exit_77(shared: Path, closed: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = small(shared / "a.trace")
    for file in [path, *path.rglob("*")]:
        file.chmod(0o755 if file.is_dir() else 0o644)
    (path / closed).chmod(0o000)
    with _as_nobody():
        code = _exit_code(["inspect", str(path)])
    said = capsys.readouterr().err
    assert code == 77, said
    assert said.count("\n") == 1
    assert "None" not in said


def test_a_read_only_trace_is_stitched_each_time(shared: Path) -> None:
    path = small(shared / "a.trace")
    right = open_trace(path).faults().rows()
    (path / "faults.parquet").unlink()
    for file in [path, *path.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    with _as_nobody():
        assert open_trace(path).faults().rows() == right
        with pytest.raises((NoPermission, UsageError)):
            TraceWriter(path, Meta(), force=True)
    assert not (path / "faults.parquet").exists()


def test_another_users_read_only_trace_is_compared_without_a_home(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(shared / "a.trace")
    words = ["compare", str(path), "-m", "uffd-missing", "--max-loss", "5", "--format", "json"]
    assert _exit_code(words) == 0
    right = json.loads(capsys.readouterr().out)["records"]
    (path / "faults.parquet").unlink()
    before = _listing(path)
    home = shared / "home"
    home.mkdir()
    for file in [home, path, *path.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    with _as_nobody():
        assert _exit_code(words) == 0
        assert json.loads(capsys.readouterr().out)["records"] == right
        assert _exit_code([*words, "-o", "x.json"]) in (1, 77)
        said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("error:")] == said.splitlines()[-1:]
    assert _listing(path) == before
    assert not list(home.iterdir())


@pytest.mark.parametrize("name", ["a b.trace", "a\nb.trace", "ü\u202e.trace", "-x.trace", "a%20b#c?.trace"])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    path = small(tmp_path / name)
    assert not [file.problem for file in verify_trace(path) if file.problem]
    assert open_trace(path).faults().height == 60
