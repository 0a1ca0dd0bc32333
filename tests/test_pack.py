"""Traces to send: in one file, cut, without what they give away. What a replay makes of them is the same."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from faultreplay.analysis.compare.compare import compare
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.cut import Span, parse_span
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.pack import pack, reduced, send
from faultreplay.faulttrace.remote import identity, open_address
from faultreplay.faulttrace.schema import EVENTS, Kind
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.verify import verify_trace
from faultreplay.faulttrace.writer import update_meta

SAMPLES = Path(__file__).parent.parent / "sample-traces"
IDS = ("vm", "tid", "handler_tid", "read_after_tid", "wake_after_tid")


@pytest.fixture(params=["guest-uffd-missing", "kernel-6.1-svm"])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    """A real recording with checksums, and with names that are not found anywhere else."""
    return sealed(request.param, tmp_path / "in.trace")


def sealed(name: str, path: Path) -> Trace:
    """A sample, written anew: those that are shipped are older than checksums."""
    reduced(open_trace(SAMPLES / f"{name}.trace"), path)
    meta = open_trace(path).meta
    meta.host.kernel, meta.host.cpu_model, meta.host.distro = "6.1.0-secretkernel", "Secret CPU", "Secret Linux"
    meta.host.fingerprint, meta.host.cpu_id, meta.clock.start_realtime = (
        "5ec4e7abcdef",
        "6-207-secret",
        "2026-11-secret",
    )
    meta.host.kvm_params = {"kvm.secretparam": "secretvalue"}
    meta.command = ["/opt/secretcommand", "--secretoption"]
    for number, target in enumerate(meta.targets):
        target.comm, target.name, target.cmdline = f"secretcomm{number}", f"secretvm{number}", ["secretargument"]
        for thread in target.threads:
            thread.comm = thread.comm if thread.role == "kernel" else f"secretthread{thread.tid}"
    for entry in meta.memory_map:
        entry.name = f"/secret/file{entry.start:x}"
    meta.extra["notes"] = ["secretnote"]
    update_meta(path, meta)
    return open_trace(path)


def replayed(trace: Trace) -> list[str]:
    """The rows of a compare, all digits of them, without threads' ids."""
    return [
        re.sub(r"(vmm|kernel):\d+", r"\1", repr(row)) for row in compare(open_case(trace, Setup()), weigh=False).rows
    ]


def test_a_packed_trace_is_the_directory(sample: Trace, tmp_path: Path) -> None:
    send(sample, tmp_path / "p.trace", packed=True)
    packed = open_trace(tmp_path / "p.trace")
    assert packed.events().equals(sample.events())
    assert packed.faults().equals(sample.faults())
    assert packed.losses().equals(sample.losses())
    assert packed.meta == sample.meta
    assert identity(str(tmp_path / "p.trace")) == identity(str(sample.path))
    assert replayed(packed) == replayed(sample)
    assert not [file for file in verify_trace(tmp_path / "p.trace") if file.problem or not file.checked]
    with zipfile.ZipFile(tmp_path / "p.trace") as archive:  # any unzip makes the directory again
        archive.extractall(tmp_path / "un.trace")
    assert open_trace(tmp_path / "un.trace").events().equals(sample.events())


def test_packing_is_the_same_each_time_and_goes_back(sample: Trace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        send(sample, tmp_path / f"{name}.trace", packed=True)
    assert (tmp_path / "a.trace").read_bytes() == (tmp_path / "b.trace").read_bytes()
    send(open_trace(tmp_path / "a.trace"), tmp_path / "back.trace", packed=False)
    assert open_trace(tmp_path / "back.trace").faults_are_kept()


def test_behind_a_url(sample: Trace, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    send(sample, tmp_path / "p.trace", packed=True)
    far = open_address(f"file://{tmp_path}/p.trace")
    assert far.events().equals(sample.events())
    assert far.faults().equals(sample.faults())
    assert identity(f"file://{tmp_path}/p.trace") == identity(str(sample.path))
    bare = tmp_path / "bare.trace"
    shutil.copytree(str(sample.path), bare)
    (bare / "faults.parquet").unlink()
    assert open_address(f"file://{bare}").faults().equals(sample.faults())  # stitched from there
    assert not (bare / "faults.parquet").exists()


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6])
def test_a_changed_byte_is_found(sample: Trace, tmp_path: Path, where: float) -> None:
    path = tmp_path / "p.trace"
    pack(sample.path, path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x40
    path.write_bytes(data)
    assert _exit_code(["inspect", "--verify", str(path)]) == 4


def test_a_changed_byte_of_the_zips_directory_is_found_or_changes_nothing(sample: Trace, tmp_path: Path) -> None:
    path = tmp_path / "p.trace"
    pack(sample.path, path)
    whole = path.read_bytes()
    begin = whole.rindex(b"PK\x05\x06") - 46  # the last entry of the directory (a date, a mode, ...) and its end
    found = 0
    for at in range(begin, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            verified = all(not file.problem for file in verify_trace(path))
        except FaultreplayError:
            verified = False
        found += not verified
        assert not verified or open_trace(path).events().equals(sample.events()), f"byte {at - len(whole)}"
    assert found > 20


def test_what_is_no_packed_trace_is_said_in_a_line(
    sample: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(sample.path, tmp_path / "p.trace")
    data = (tmp_path / "p.trace").read_bytes()
    (tmp_path / "short.trace").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.trace").write_text("hello")
    with zipfile.ZipFile(tmp_path / "squeezed.trace", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", "{}")
    with zipfile.ZipFile(tmp_path / "other.trace", "w") as archive:
        archive.writestr("../meta.json", "{}")
    for name, words in (
        ("short", "not a whole trace"),
        ("text", "none of 'faultreplay export --pack'"),
        ("squeezed", "compressed"),
        ("other", "no file of a trace"),
    ):
        assert _exit_code(["inspect", str(tmp_path / f"{name}.trace")]) == (2 if name == "text" else 4)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_force_replaces_a_packed_trace_and_nothing_else(sample: Trace, tmp_path: Path) -> None:
    path = tmp_path / "p.trace"
    pack(sample.path, path)
    with pytest.raises(UsageError, match="--force"):
        pack(sample.path, path)
    pack(sample.path, path, force=True)
    send(sample, path, packed=False, force=True)
    assert path.is_dir()
    pack(sample.path, path, force=True)
    assert path.is_file()
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UsageError, match="not a trace"):
        pack(sample.path, path, force=True)
    assert path.read_bytes().startswith(b"PK\x03\x04 something")


def given_away(trace: Trace) -> tuple[set[str], set[int], set[int]]:
    """Words, ids and addresses of a trace that an anonymised one must not have."""
    meta = trace.meta
    words = {"secret", "Secret", "5ec4e7abcdef", meta.integrity.recording}
    ids: set[int] = set()
    addresses: set[int] = set()
    for target in meta.targets:
        ids |= {target.tgid, *(thread.tid for thread in target.threads)}
        addresses |= {number for slot in target.memslots for number in (slot.gpa, slot.hva)}
    for entry in meta.memory_map:
        addresses |= {entry.start, entry.end}
    events = trace.events()
    for kind in (Kind.PAGE_FAULT_USER, Kind.UFFD_MSG, Kind.KVM_PAGE_FAULT, Kind.KVM_MMU_SET_SPTE, Kind.KVM_SET_MEMSLOT):
        addresses |= set(events.filter(pl.col("kind") == int(kind))["addr"].to_list())
    pointers = events.filter(~pl.col("kind").is_in([int(Kind.UFFD_MSG)]))["ip"]
    addresses |= set(pointers.to_list())
    return words, ids, {number for number in addresses if number > 1 << 20}


def test_anonymised_gives_nothing_away_and_replays_the_same(sample: Trace, tmp_path: Path) -> None:
    words, ids, addresses = given_away(sample)
    send(sample, tmp_path / "p.trace", packed=True, anonymise=True)
    hidden = open_trace(tmp_path / "p.trace")
    assert replayed(hidden) == replayed(sample)
    data = (tmp_path / "p.trace").read_bytes()
    assert [word for word in words if word.encode() in data] == []
    telling = {number for number in addresses if number.to_bytes(8, "little").count(0) < 4}  # not 1 << 32 and the like
    assert [number for number in telling if number.to_bytes(8, "little") in data] == []
    text = zipfile.ZipFile(tmp_path / "p.trace").read("meta.json").decode()
    numbers = set(map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", text)))
    assert numbers & addresses == set()
    # What is compressed inside the files, too.
    events, faults = hidden.events(), hidden.faults()
    for frame in (events, faults):
        for name, column in zip(frame.columns, frame.iter_columns(), strict=True):
            if column.dtype.is_integer() and not name.endswith("_ns"):
                assert set(column.drop_nulls().unique().to_list()) & addresses == set(), name
    shown = {number for target in hidden.meta.targets for number in (target.tgid, *(t.tid for t in target.threads))}
    assert shown <= set(range(1000, 1000 + len(ids) + 5000))
    assert hidden.meta.extra["anonymised"]


def test_anonymised_addresses_keep_their_neighbourhood(sample: Trace, tmp_path: Path) -> None:
    hidden = (
        open_trace(tmp_path / "p.trace") if send(sample, tmp_path / "p.trace", packed=True, anonymise=True) else None
    )
    assert hidden is not None
    before, after = sample.faults(), hidden.faults()
    assert before.drop([*IDS, "page", "ip"]).equals(after.drop([*IDS, "page", "ip"]))
    pages = pl.DataFrame({"before": before["page"], "after": after["page"]}).unique().sort("before")
    assert pages["before"].n_unique() == pages["after"].n_unique() == pages.height
    old, new = (pages[name].to_numpy().astype(np.int64) for name in ("before", "after"))
    assert ((old // 4096) % 512 == (new // 4096) % 512).all()  # the place within its huge page
    near = np.diff(old) < 1 << 30
    assert near.any()
    assert (np.diff(old)[near] == np.diff(new)[near]).all()
    for name in IDS[:3]:  # the same thread is the same, and their order stays
        both = pl.DataFrame({"a": before[name], "b": after[name]}).drop_nulls().unique().sort("a")
        assert both["b"].is_sorted()
        assert both["a"].n_unique() == both["b"].n_unique()


def test_a_cut_in_time_keeps_what_lies_within(tmp_path: Path) -> None:
    sample = sealed("guest-uffd-missing", tmp_path / "a.trace")
    start = sample.meta.clock.start_ns
    faults = sample.faults()
    middle = int(faults["start_ns"].quantile(0.3) or 0), int(faults["start_ns"].quantile(0.7) or 0)
    span = Span(middle[0] - start, middle[1] - start)
    meta = reduced(sample, tmp_path / "cut.trace", span=span)
    cut = open_trace(tmp_path / "cut.trace")
    events = sample.events()
    stays = events.filter(pl.col("ts_ns").is_between(*middle, closed="left"))
    (told,) = meta.extra["cut"]
    assert cut.events().filter(pl.col("ts_ns") >= middle[0]).equals(stays)
    earlier = cut.events().filter(pl.col("ts_ns") < middle[0])
    assert earlier.height == told["earlier_events_kept"] > 0
    assert Kind.KVM_RUN_ENTER in earlier["kind"].to_list()
    assert told["events_left_out"] == events.height - stays.height - earlier.height
    for at, name in zip(middle, ("faults_open_at_start", "faults_open_at_end"), strict=True):
        assert told[name] == faults.filter((pl.col("start_ns") < at) & (pl.col("end_ns") >= at)).height
    whole = faults.filter((pl.col("start_ns") >= middle[0] + 1_000_000) & (pl.col("end_ns") < middle[1]))
    found = cut.faults().filter((pl.col("start_ns") >= middle[0] + 1_000_000) & pl.col("end_ns").is_not_null())
    assert found["start_ns"].to_list() == whole["start_ns"].to_list()
    assert found["stall_ns"].to_list() == whole["stall_ns"].to_list()
    assert (cut.meta.clock.start_ns, cut.meta.clock.end_ns) == middle
    assert not [file for file in verify_trace(tmp_path / "cut.trace") if file.problem]


def test_losses_at_a_cut_are_counted(tmp_path: Path) -> None:
    from faultreplay.faulttrace.meta import Clock, Meta
    from faultreplay.faulttrace.writer import TraceWriter

    rows = np.zeros(10, [(field.name, field.type.to_pandas_dtype()) for field in EVENTS])
    rows["ts_ns"] = np.arange(10) * 1000 + 1000
    rows["kind"] = int(Kind.SCHED_IN)
    lost = [(1500, 1), (4500, 10), (8500, 100), (9500, 1000)]
    with TraceWriter(tmp_path / "a.trace", Meta(clock=Clock(start_ns=1000, end_ns=11000))) as writer:
        writer.append_events(rows)
        writer.append_losses([{"ts_ns": t, "cpu": 0, "probe": "p", "lost": n} for t, n in lost])
    meta = reduced(open_trace(tmp_path / "a.trace"), tmp_path / "b.trace", span=Span(2000, 6000))
    # What was lost between 4500 and 8500 may have been lost within: it counts here.
    assert meta.losses.total == 110
    assert meta.extra["cut"][0]["losses_left_out"] == 1001
    assert meta.recorder.events == 4
    with pytest.raises(IncompleteData, match="nothing is left"):
        reduced(open_trace(tmp_path / "a.trace"), tmp_path / "c.trace", span=Span(20_000, None))
    assert not (tmp_path / "c.trace").exists()


def test_a_cut_by_vcpu_keeps_their_faults(tmp_path: Path) -> None:
    sample = sealed("guest-uffd-missing", tmp_path / "a.trace")
    faults = sample.faults()
    vcpus = sorted(faults.filter(pl.col("accessor") == "vcpu")["vcpu"].unique().to_list())
    assert len(vcpus) > 1
    reduced(sample, tmp_path / "b.trace", vcpus=vcpus[:1])
    left = open_trace(tmp_path / "b.trace").faults()
    assert left.filter(pl.col("accessor") == "vcpu")["vcpu"].unique().to_list() == vcpus[:1]
    others = faults.filter((pl.col("accessor") == "vcpu") & (pl.col("vcpu") != vcpus[0]))["tid"].unique()
    mine = faults.filter(~pl.col("tid").is_in(others.implode()))
    assert left["start_ns"].to_list() == mine["start_ns"].to_list()
    assert left["stall_ns"].to_list() == mine["stall_ns"].to_list()
    with pytest.raises(UsageError, match="no such vCPU; there are: 0"):
        reduced(sample, tmp_path / "c.trace", vcpus=[99])


def test_the_command(sample: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "cut.trace")
    words = ["export", str(sample.path), "--pack", "--anonymise", "--time", "0s-100s", "-o", out]
    assert _exit_code(words) == 0
    said = capsys.readouterr().err
    assert "cut: 0 events and 0 losses left out" in said
    assert "anonymised: addresses" in said
    assert _exit_code(["inspect", out, "--header"]) == 0
    assert _exit_code(["inspect", out, "--format", "json"]) == 0
    assert _exit_code(["export", str(sample.path), "--anonymise", "-o", str(tmp_path / "a.csv")]) == 2
    assert _exit_code(["export", str(sample.path), "--pack", "-o", str(tmp_path / "a.zip")]) == 2


@pytest.mark.parametrize("text", ["5s", "-", "8s-5s", "x-y", ""])
def test_spans_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        parse_span(text)
