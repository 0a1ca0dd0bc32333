"""`explain`: what is told of a fault is its row of the replay, to the ns, under every shipped mechanism."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_traces import uffd_faults, write_trace

import faultreplay
from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.views.explain import MEASURED, Life, Situation, fault_ids, situation
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import WindowSpan
from faultreplay.replay.engine.steps import Story
from faultreplay.replay.language.mechanism import list_mechanisms
from faultreplay.replay.workload.workload import Workload

CAUSES = ("missing", "minor", "missing", "stage2", "write-protect", "minor-host", "major-host", "exit", "mmio")


def rows(each: int = 30) -> list[dict[str, Any]]:
    """Faults of every cause, some of them of two vCPUs on one page; one without an end."""
    made: list[dict[str, Any]] = uffd_faults(each=each, vcpus=3)
    for row in made:
        row["cause"] = CAUSES[row["fault_id"] % len(CAUSES)]
        if row["fault_id"] % 5 == 0:
            row["page"] = (1 << 30) + row["fault_id"] // 15 * 4096
            row["cause"] = "missing"
    made[17].update(end_ns=None, stall_ns=None, queue_ns=None, service_ns=None, resolve_ns=None, wake_ns=None)
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    begin = rows()[0]["start_ns"]
    window = WindowSpan("freeze", begin + 5_000_000, begin + 6_000_000)
    return write_trace(tmp_path_factory.mktemp("explain") / "m.trace", rows(), windows=[window])


@pytest.fixture(scope="module")
def case(path: Path) -> Case:
    return faultreplay.open_case(path, faultreplay.Setup(link_bytes_per_s=1_000_000_000))


def told(how: Situation) -> Story:
    return how.story(0, 1 << 60)


@pytest.mark.parametrize("name", list_mechanisms())
def test_stages_are_the_row_of_compare(case: Case, name: str) -> None:
    """Of every fault that is replayed: without a gap, and together its stall in the table's own replay."""
    how = situation(case, name)
    done = faultreplay.compare(case, [name], weigh=False)
    result = [*(row.result for row in done.rows), *(still.result for still in done.blackouts)]
    (mine,) = [one for one in result if one.mechanism == how.mechanism.name]
    story = told(how)
    assert (story.followed.result.stall_ns == mine.stall_ns).all()
    spent = dict.fromkeys(mine.stage_ns, 0)
    for row in np.flatnonzero(mine.start_ns >= 0).tolist():
        steps = story.steps(row)
        at = int(mine.start_ns[row])
        for step in steps:
            assert step.at_ns == at, (row, steps)
            assert step.what != "not told"
            at += step.took_ns
            spent[step.word] += step.took_ns
        assert at == mine.start_ns[row] + mine.stall_ns[row], (row, steps)
    if not mine.refaults.any():
        assert spent == dict(mine.stage_ns)


def test_with_host_cpus_too(path: Path) -> None:
    case = faultreplay.open_case(path, faultreplay.Setup(cpus=1, link_bytes_per_s=1_000_000_000))
    waited = 0
    for name in ("uffd-missing", "kvm-exit", "uffd-poll", "async-pf"):
        how = situation(case, name)
        story = told(how)
        mine = how.result()
        for row in np.flatnonzero(mine.start_ns >= 0).tolist():
            steps = story.steps(row)
            assert sum(step.took_ns for step in steps) == mine.stall_ns[row]
            waited += any(step.what == "waits for a host CPU" for step in steps)
    assert waited


def test_an_open_loop_too(path: Path) -> None:
    """A run that begins again with more slots is entered once."""
    case = faultreplay.open_case(path, faultreplay.Setup(loop="open", fetch_ns=2_000_000))
    how = situation(case, "uffd-missing")
    story, mine = told(how), how.result()
    for row in np.flatnonzero(mine.start_ns >= 0).tolist():
        assert sum(step.took_ns for step in story.steps(row)) == mine.stall_ns[row]
    assert mine.resources["handler"].max_queue > 16  # more at once than there were slots for
    assert all(use.end_ns >= use.begin_ns >= use.asked_ns for use in story.uses)
    handler = [use for use in story.uses if story.label(use.resource) == "handler"]
    assert len(handler) == mine.resources["handler"].acquired


def test_who_waits_is_behind_who_has_it(case: Case) -> None:
    """A wait for the one handler is covered by the faults that had it, which are others."""
    how = situation(case, "uffd-missing")
    story = told(how)
    waits = 0
    for row in range(how.workload.faults):
        for step in story.steps(row):
            if step.what != "waits for handler":
                continue
            waits += 1
            held = story.held_by(step.resource, step.at_ns, step.at_ns + step.took_ns, row)
            assert held and all(use.row != row for use in held)
            assert max(use.end_ns for use in held) == step.at_ns + step.took_ns
            covered = sum(min(use.end_ns, step.at_ns + step.took_ns) - max(use.begin_ns, step.at_ns) for use in held)
            assert covered == step.took_ns
            for use in story.ahead_of(step.resource, step.at_ns, row):
                assert use in held and use.asked_ns <= step.at_ns < use.begin_ns
    assert waits > 5


def test_no_two_uses_of_a_single_server_overlap(case: Case) -> None:
    story = told(situation(case, "uffd-missing"))
    by: dict[int, list[tuple[int, int]]] = {}
    for use in story.uses:
        if story.resource(use.resource).servers == 1 and use.end_ns >= 0:
            assert use.asked_ns <= use.begin_ns <= use.end_ns
            by.setdefault(use.resource, []).append((use.begin_ns, use.end_ns))
    assert by
    for spans in by.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    busy = story.followed.result.resources["handler"].busy_ns
    handler = next(i for i in story.followed.program.resources if i.name == "handler")
    assert sum(end - begin for begin, end in by[handler.first]) == busy


def test_a_story_of_a_stretch_is_that_of_the_whole(case: Case) -> None:
    how = situation(case, "uffd-missing")
    whole, result = told(how), how.result()
    row = int(np.argmax(result.stall_ns))
    start, end = int(result.start_ns[row]), int(result.start_ns[row] + result.stall_ns[row])
    part = how.story(start, end)
    assert part.steps(row) == whole.steps(row)
    assert len(part.followed.entries) < len(whole.followed.entries)
    assert how.story(start + 1, end).steps(row) == []


def test_a_journal_grows_until_all_find_room(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(told(situation(case, "kvm-exit")).followed.entries)
    monkeypatch.setattr("faultreplay.replay.engine.follow.FIRST_ENTRIES", 3)
    assert len(told(situation(case, "kvm-exit")).followed.entries) == before
    monkeypatch.setattr("faultreplay.replay.engine.follow.MOST_ENTRIES", 10)
    with pytest.raises(UsageError, match="more than can be followed"):
        told(situation(case, "kvm-exit"))


def test_measured_life(case: Case) -> None:
    measured, replayed = faultreplay.explain(case, [30], ["kvm-exit"])
    row = rows()[30]
    assert (measured.mechanism, measured.stall_ns, measured.fault_id) == (MEASURED, row["stall_ns"], 30)
    assert [(s.word, s.took_ns) for s in measured.stages] == [
        ("queue", row["queue_ns"]),
        ("service", row["service_ns"] - row["resolve_ns"]),
        ("service", row["resolve_ns"]),
        ("wake", row["wake_ns"]),
    ]
    others = [r for r in rows() if r["service_ns"] is not None and r["fault_id"] != 30]
    busy = [
        r["fault_id"]
        for r in others
        if r["start_ns"] + r["queue_ns"] < row["start_ns"] + row["queue_ns"]
        and r["start_ns"] + r["queue_ns"] + r["service_ns"] > row["start_ns"]
    ]
    assert [other.fault_id for other in measured.stages[0].held_by] == busy
    assert busy
    assert replayed.mechanism == "kvm-exit"
    assert sum(stage.took_ns for stage in replayed.stages) == replayed.stall_ns


def test_a_large_trace_is_followed_for_a_stretch_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = faultreplay.open_case(path)
    whole: list[Life] = faultreplay.explain(case, mechanisms=["uffd-missing"], worst=3)
    monkeypatch.setattr("faultreplay.analysis.views.explain.WHOLE_FAULTS", 0)
    monkeypatch.setattr("faultreplay.analysis.views.explain._BEFORE", 0)
    short: list[Life] = faultreplay.explain(case, mechanisms=["uffd-missing"], worst=3)
    for one, other in zip(whole, short, strict=True):
        assert [(s.what, s.at_ns, s.took_ns) for s in one.stages] == [
            (s.what, s.at_ns, s.took_ns) for s in other.stages
        ]
        assert all(bool(a.held_by) == bool(b.held_by) for a, b in zip(one.stages, other.stages, strict=True))


def test_worst_are_the_longest(case: Case) -> None:
    lives = faultreplay.explain(case, worst=4)
    stalls = sorted((r["stall_ns"] for r in rows() if r["stall_ns"]), reverse=True)
    assert [life.stall_ns for life in lives] == stalls[:4]


def test_every_replayed_fault_has_its_number(case: Case) -> None:
    how = situation(case, "uffd-missing")
    ids = fault_ids(case, how.workload)
    by_id = {r["fault_id"]: r for r in rows()}
    assert len(set(ids.tolist())) == how.workload.faults == len(by_id) - 1
    work: Workload = how.workload
    for row, fault in enumerate(ids.tolist()):
        assert by_id[fault]["stall_ns"] == work.recorded_stall_ns[row]


def test_command(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ["explain", str(path), "30", "-m", "uffd-missing"]
    assert _exit_code(asked) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for words in ("fault 30, vCPU", "measured", "waits for handler", "with fault"):
        assert words in out, out
    assert _exit_code([*asked, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    replayed = [r for r in data["records"] if r["mechanism"] == "uffd-missing"]
    assert sum(r["took_ns"] for r in replayed) == replayed[0]["stall_ns"]
    assert data["lives"][1]["stages"][0]["what"] == replayed[0]["what"]
    assert _exit_code([*asked, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("fault_id,mechanism,")


def test_a_fault_without_an_end(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["explain", str(path), "17", "-m", "uffd-missing"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "its end was not seen" in out and "it is not replayed" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["99999"], "this trace has none of this number"),
        ([], "which faults?"),
        (["3", "-m", "no-such"], "no mechanism"),
        (["3", "--seeds", "2"], "leave --seeds away"),
    ],
)
def test_command_refuses(path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["explain", str(path), *words]) == 2
    assert says in capsys.readouterr().err
