"""The fuzz target: it knows good from bad, it runs, what it found stays mended. `make fuzz` runs it in earnest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_traces import uffd_faults, write_trace

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import judged  # noqa: E402
from judged import Numbers, Ran, call, plain_outcome  # noqa: E402


def test_the_judge_knows_good_from_bad() -> None:
    good = Ran(0, "{}", "")
    refused = Ran(2, "", "error: no\n")
    assert plain_outcome(good) == ("accepted", "")
    assert plain_outcome(good, refused) == ("refused", "")
    for bad in (
        Ran(1, "", "error: internal error: ValueError\n"),
        Ran(2, "", ""),
        Ran(2, "", "error: a\nerror: b\n"),
        Ran(139, "", "error: a\n"),
        Ran(0, "\x1b[31m", ""),
    ):
        assert plain_outcome(good, bad)[0] == "traceback", bad


def test_other_numbers_are_silent_unless_a_note_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=20))
    outcome, _, right = judged.compared(trace, None)
    assert (outcome, right is not None) == ("accepted", True)
    assert right is not None
    assert judged.compared(trace, right)[0] == "accepted"
    other = Numbers(right.records.replace("1", "2"), right.notes)
    assert judged.compared(trace, other)[0] == "silent"
    assert judged.compared(trace, Numbers(other.records, frozenset()))[0] == "noted"


@pytest.mark.parametrize("path", sorted((FUZZ / "corpus").iterdir()), ids=lambda path: path.name)
def test_what_was_found_stays_mended(path: Path) -> None:
    assert plain_outcome(call("models", "check", str(path)))[0] == "refused"


def test_a_few_inputs_of_two_targets(tmp_path: Path) -> None:
    words = [sys.executable, str(FUZZ / "run.py"), "mechanism", "options", "--inputs", "16", "--keep", str(tmp_path)]
    done = subprocess.run([*words, "--hang", "120"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[-1]][1:3] == ["all", "16"]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("hangs", ["while True:\n            pass", "time.sleep(600)"])
def test_the_watch_sees_a_hang_and_goes_on(tmp_path: Path, hangs: str) -> None:
    """A target that works or waits forever is counted as a hang, and the next seed runs."""
    script = tmp_path / "hanging.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(FUZZ)!r})\nimport targets, run\n"
        f"def stuck(data, bench):\n    if data.draw(targets.inputs.st.booleans()):\n        {hangs}\n"
        "    return 'accepted', ''\n"
        "targets.TARGETS['stuck'] = stuck\nrun.__file__ = __file__\nrun._CLOCK = 1\nsys.exit(run.main())\n"
    )
    words = [sys.executable, str(script), "stuck", "--inputs", "6", "--seconds", "40", "--hang", "5"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    last = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]
    assert int(last[-2]) >= 1, done.stdout
    assert json.loads(last[2]) >= 2
