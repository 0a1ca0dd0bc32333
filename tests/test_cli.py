"""The command line's promises: what loads, which stream, which exit code, one line an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.cli import main as cli
from faultreplay.cli import options
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.writer import TraceWriter

HEAVY = ("numba", "polars", "pyarrow", "numpy", "rich", "matplotlib")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faultreplay", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def empty_trace(tmp_path: Path) -> Path:
    path = tmp_path / "empty.trace"
    with TraceWriter(path, Meta(origin="recorded")):
        pass
    return path


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from faultreplay.cli import main as cli\n"
        "assert cli._exit_code(['--help']) == 0\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for verb in cli.VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", ["compare", "replay", "validate"])
def test_help_of_a_verb_comes_without_the_engine(verb: str) -> None:
    code = (
        "import sys\n"
        "from faultreplay.cli import main as cli\n"
        f"assert cli._exit_code([{verb!r}, '--help']) == 0\n"
        "assert 'numba' not in sys.modules and 'polars' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--format" in done.stdout


@pytest.mark.parametrize("verb", ["compare", "replay"])
def test_what_is_wrong_with_a_trace_is_one_line_and_a_code(verb: str, tmp_path: Path, empty_trace: Path) -> None:
    assert_says(run(verb, str(tmp_path / "no.trace"), "-m", "ideal"), 2, "no.trace: no such trace")
    meta = empty_trace / "meta.json"
    good = meta.read_text()
    meta.write_text(json.dumps(json.loads(good) | {"schema_version": 99}))
    assert_says(run(verb, str(empty_trace), "-m", "ideal"), 4, "schema version 99")
    meta.write_text(good[: len(good) // 2])
    assert_says(run(verb, str(empty_trace), "-m", "ideal"), 4, "meta.json: damaged")
    meta.write_text(good)
    (empty_trace / "events" / "part-000000.parquet").write_bytes(b"PAR1 cut")
    assert_says(run(verb, str(empty_trace), "-m", "ideal"), 4, "part-000000.parquet: not a whole Parquet file")


def assert_says(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_trace_without_faults_is_refused_with_the_mend(empty_trace: Path) -> None:
    assert_says(run("compare", str(empty_trace)), 4, "no fault")


def test_usage_errors_are_code_2(empty_trace: Path) -> None:
    assert run("compare").returncode == 2
    assert run("compare", str(empty_trace), "--format", "xml").returncode == 2
    assert run("nonsense").returncode == 2
    assert_says(run("compare", str(empty_trace), "--set", "handlers"), 2, "--set handlers")
    assert_says(run("compare", str(empty_trace), "--window", "2s"), 2, "--window 2s")


def test_windows_are_parsed() -> None:
    assert options.parse_window("2s+50ms:freeze") == (2_000_000_000, 50_000_000, "freeze")
    assert options.parse_window("0+1.5ms:memslot-destroy") == (0, 1_500_000, "memslot-destroy")
    for bad in ("", "2s", "2s+50ms", "2s+0ms:freeze", "2s:freeze", "x+1s:freeze"):
        with pytest.raises(UsageError):
            options.parse_window(bad)


def test_settings_are_parsed() -> None:
    assert options.parse_settings(("uffd-missing.handlers=4", "uffd-missing.fetch=200us", "./my.toml.a-b=c=d")) == {
        "uffd-missing": {"handlers": "4", "fetch": "200us"},
        "./my.toml": {"a_b": "c=d"},
    }
    for bad in ("handlers=4", "a.b", "a.=3"):
        with pytest.raises(UsageError):
            options.parse_settings((bad,))


def test_names_and_formats() -> None:
    assert options.parse_names(("a,b", " c ", "a")) == ["a", "b", "c"]
    assert options.output_format(None, Path("x.json")) == "json"
    assert options.output_format(None, Path("x.txt")) == "table"
    assert options.output_format("csv", Path("x.json")) == "csv"
    assert options.output_format(None, None) == "table"


@pytest.mark.parametrize("verb", ["replay", "compare", "report", "sweep"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--set", "kvm-notify-wait.handlers=2"), "'kvm-notify-wait' is not replayed"),
        (("--window", "1s+1ms:nap"), "'nap' is no kind of window: they are pause"),
        (("--window", "1s"), "write START+LENGTH:KIND"),
    ],
)
def test_what_would_change_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, wrong: tuple[str, ...], says: str
) -> None:
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=5))
    output = ("-o", str(tmp_path / "x.html")) if verb == "report" else ()
    assert cli._exit_code([verb, str(trace), "-m", "uffd-missing", *output, *wrong]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_a_window_after_the_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=5))
    assert cli._exit_code(["compare", str(trace), "-m", "freeze", "--window", "9s+1ms:freeze"]) == 2
    assert "begins after the recording's end" in capsys.readouterr().err


def test_a_file_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("hi")
    for verb in ("inspect", "compare", "validate", "report", "calibrate"):
        assert cli._exit_code([verb, str(tmp_path / "x.txt")]) == 2
        assert "a trace is a directory" in capsys.readouterr().err


def test_the_recorder_alone_says_what_it_cannot_do(empty_trace: Path) -> None:
    """The one-file recorder has neither numba nor polars: recording and the header work, the rest says what lacks."""
    without = (
        "import sys\n"
        "for name in ('numba', 'polars', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from faultreplay.cli import main as cli\n"
        "sys.exit(cli._exit_code(sys.argv[1:]))\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", without, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = run("inspect", "--header", str(empty_trace))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "empty"), done.stderr
    assert run("record", "--help").returncode == run("doctor", "--help").returncode == 0
    for verb in ("inspect", "compare"):
        done = run(verb, str(empty_trace))
        assert done.returncode == 5
        assert done.stderr.count("\n") == 1
        assert re.match(r"error: this needs (polars|numba), which is not installed here", done.stderr)
