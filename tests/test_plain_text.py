r"""Text from outside is data: an ESC, a forged line or a bidi mark in any name reaches no output but as ``\x1b``.

Payloads stand in every text of a trace (comm, command line, host, mechanism, parameters, probes, losses), in file names
and in users' files, and go through every verb that shows them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import unicodedata
from pathlib import Path

import msgspec
import pytest
from made_mechanisms import HEAD
from made_traces import keep, uffd_faults, write_trace

from faultreplay.cli import main as cli
from faultreplay.cli import progress
from faultreplay.cli.commands import doctor as doctor_verb
from faultreplay.cli.commands import record as record_verb
from faultreplay.cli.render import Column, Report, to_csv, to_markdown
from faultreplay.collect.doctor import doctor
from faultreplay.collect.doctor.checks import Check
from faultreplay.collect.recorder.spec import RecordSummary
from faultreplay.faulttrace.meta import Meta, Probe, Target, Thread
from faultreplay.faulttrace.plain_text import plain

EVIL = (
    "\x1b]0;owned\x07\x1b[31mX\x1b[0m\r\nerror: forged\n## forged\u202etxt\u2066\u2028\x9b2J\x08"
    "|<script>alert(1)</script>![i](http://e)[red]"
)
NAME = "\x1b[31mE\n## forged\u202e|<b>"  # of a file: no slash, no colon, not too long


def test_every_character_that_steers_is_shown() -> None:
    assert plain("\x1b[2J\r\n\t\x7f\x9b\u202e\u2028\u200b\udc80") == (r"\x1b[2J\r\n\t\x7f\x9b\u202e\u2028\u200b\udc80")
    assert plain("naïve 名前 €, µs") == "naïve 名前 €, µs"
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
            assert plain(character).isascii()
            assert plain(character).isprintable()


def check(text: str, *, markup: bool = False) -> None:
    """No payload is obeyed in `text`."""
    steering = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not steering, sorted(map(repr, steering))
    # the program's own error comes first, if there is one
    forged = [line for line in text.splitlines() if line.lstrip().startswith(("error: forged", "## forged"))]
    assert not forged
    if markup:
        assert "<script" not in text
        assert "<b>" not in text


def without_own_scripts(page: str) -> str:
    """A report without its data and the scripts that its own policy names; no other script may be there."""
    for script in re.findall(r"<script>.*?</script>", page, re.S):
        text = script.removeprefix("<script>").removesuffix("</script>")
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in page.split("<title>", maxsplit=1)[0]
        page = page.replace(script, "")
    return page.replace('<script type="application/json" id="pictures">', "")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_trace(tmp_path_factory.mktemp("evil") / f"{NAME}.trace", uffd_faults(each=60), params={EVIL: EVIL})
    meta = Meta.from_json((path / "meta.json").read_bytes(), str(path))
    meta.host.kernel = meta.host.cpu_model = meta.host.distro = meta.clock.start_realtime = meta.clock.name = EVIL
    meta.command = [EVIL, EVIL]
    meta.tool.name = meta.recorder.backend = EVIL
    threads = [Thread(200, comm=EVIL, role="vcpu", vcpu=0), Thread(300, comm=EVIL, role="handler")]
    meta.targets = [Target(100, comm=EVIL, name=EVIL, role=EVIL, cmdline=[EVIL], threads=threads)]
    meta.probes = [Probe(EVIL, EVIL, "missing", EVIL)]
    (path / "meta.json").write_bytes(meta.to_json())
    keep(path, uffd_faults(each=60))
    assert cli._exit_code(["compare", str(path), "-m", "ideal"]) == 0  # it is read, not refused
    return path


@pytest.fixture
def mechanism(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.toml"
    shown = msgspec.json.encode(EVIL).decode().replace("\x9b", "\\u009b").replace("\x7f", "\\u007f")
    text = HEAD.replace('"t"', shown).replace('"a test"', shown).replace('"here"', shown).replace('"all"', shown)
    path.write_text(f'{text}[[paths.missing]]\ndelay = "5us"\nsays = {shown}\n[[paths.missing]]\nwake = "0ns"\n')
    return path


OUTPUTS = [
    ["inspect", "TRACE"],
    ["inspect", "TRACE", "--events"],
    ["inspect", "TRACE", "--truth"],
    ["inspect", "TRACE", "--format", "md"],
    ["inspect", "TRACE", "--format", "csv"],
    ["inspect", "TRACE/none"],
    ["compare", "TRACE"],
    ["compare", "TRACE", "-m", "MECHANISM,uffd-missing"],
    ["compare", "TRACE", "-m", "MECHANISM", "--format", "md"],
    ["compare", "TRACE", "-m", "MECHANISM", "--format", "csv"],
    ["compare", "TRACE", "-m", EVIL],
    ["compare", "TRACE", "--costs", EVIL],
    ["compare", "TRACE", "--set", EVIL],
    ["compare", "TRACE", "--window", EVIL],
    ["compare", "TRACE", "--loop", EVIL],
    ["compare", "TRACE", f"--{EVIL}"],
    [EVIL],
    ["replay", "TRACE", "-m", "MECHANISM", "--rows", "--format", "csv"],
    ["replay", "TRACE", "-m", "MECHANISM", "--summary"],
    ["replay", "TRACE", "-m", "MECHANISM", "--format", "md"],
    ["calibrate", "TRACE"],
    ["calibrate", "TRACE", "--require", EVIL],
    ["validate", "TRACE"],
    ["validate", "TRACE", "--format", "md"],
    ["validate", "--from", "TRACE", "--to", "TRACE"],
    ["sweep", "TRACE", "-m", "MECHANISM,uffd-missing", "--vary", "fetch=10us,20us", "-j", "1"],
    ["sweep", "TRACE", "-m", "MECHANISM,uffd-missing", "--vary", "fetch=10us,20us", "-j", "1", "--format", "md"],
    ["sweep", "TRACE", "-m", "uffd-missing", "--vary", EVIL],
    ["report", "TRACE", "-m", "MECHANISM,uffd-missing", "-o", "FOLDER/x.html"],
    ["export", "TRACE", "-o", f"FOLDER/{NAME}.csv"],
    ["export", "TRACE", "--what", "losses", "-o", "FOLDER/losses.csv"],
    ["export", "TRACE", "-o", f"FOLDER/{NAME}.txt"],
    ["models", "show", "MECHANISM"],
    ["models", "check", "MECHANISM"],
    ["models", "check", f"{NAME}.toml"],
    ["synth", "zipf", "--pages", "3", "-o", f"FOLDER/{NAME}.trace"],
    ["import", "--from", "perf-script", "FOLDER/input.txt", "-o", "FOLDER/imported.trace"],
    ["record", "-p", "1", "-o", f"FOLDER/{NAME}/x.trace", "-d", EVIL],
    ["record", "--vm", EVIL, "-o", "FOLDER/x.trace", "-d", "1s"],
    ["lab", "run", "-m", EVIL],
    ["lab", "run", "--fetch", EVIL],
]


@pytest.mark.parametrize(
    "words", OUTPUTS, ids=[f"{n}-{w[0] if w[0] != EVIL else 'verb'}" for n, w in enumerate(OUTPUTS)]
)
def test_no_verb_obeys_a_payload(
    words: list[str], trace: Path, mechanism: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input.txt").write_text(f"{EVIL}\n{EVIL}: not a line\n")
    for key, path in (("TRACE", trace), ("MECHANISM", mechanism), ("FOLDER", tmp_path)):
        words = [word.replace(key, str(path)) for word in words]
    code = cli._exit_code(words)
    said = capsys.readouterr()
    assert "internal error" not in said.err
    markup = "md" in words
    check(said.out, markup=markup)
    check(said.err)
    assert code in (0, 1, 2, 3, 4, 5, 77)
    for made in tmp_path.glob("*.csv"):
        check(made.read_text())
    for made in tmp_path.glob("*.html"):
        check(without_own_scripts(made.read_text()), markup=True)


def test_a_name_that_is_no_unicode_is_shown(
    tmp_path: Path, trace: Path, mechanism: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An undecodable byte of a file name used to end in a UnicodeEncodeError."""
    odd = mechanism.rename(tmp_path / "a\udcffb.toml")
    out = tmp_path / "x.html"
    assert cli._exit_code(["report", str(trace), "-m", str(odd), "-o", str(out)]) == 0
    assert r"a\udcffb" in out.read_text()
    assert cli._exit_code(["models", "check", str(odd)]) == 0
    assert r"a\udcffb.toml" in capsys.readouterr().err


def test_the_report_shows_the_payload_and_runs_nothing(tmp_path: Path, trace: Path, mechanism: Path) -> None:
    out = tmp_path / "x.html"
    assert cli._exit_code(["report", str(trace), "-m", str(mechanism), "-o", str(out)]) == 0
    text = without_own_scripts(out.read_text())
    assert "&lt;b&gt;" in text
    assert r"\x1b[31mE\n## forged\u202e" in text
    assert not re.search(r"<(script|b|img)\b", text)


def test_markdown_and_csv_cells_stay_in_their_cells() -> None:
    report = Report(
        [{"a": EVIL, "b": "1. x"}], [Column("a", f"{EVIL}"), Column("b", "b")], title=EVIL, notes=["# h", EVIL]
    )
    text = to_markdown(report)
    check(text, markup=True)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
    assert r"!\[i\](http://e)" in text
    assert r"- \# h" in text
    assert len(to_csv(report).splitlines()) == 2


def test_progress_is_neither_steered_nor_marked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen = Terminal()
    monkeypatch.setattr("sys.stderr", seen)
    monkeypatch.setenv("TERM", "dumb")
    with progress.steps() as step:
        step("[/none] " + EVIL)  # a closing tag of rich that was never opened used to raise
    with progress.bar() as show:
        show("[/none] " + EVIL, 1, 2)
    assert "]0;owned\x07" not in seen.getvalue()
    assert "\u202e" not in seen.getvalue()


def test_what_the_recorder_and_doctor_say_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Check(EVIL, "missing", EVIL, EVIL, EVIL, required=True)])
    for fmt in ("table", "md", "csv"):
        assert cli._exit_code(["doctor", "--format", fmt]) in (5, 77)
    assert doctor_verb.command.name == "command"
    summary = RecordSummary(
        path=Path(NAME), events=1, duration_ns=1, ended_by=EVIL, backend=EVIL, ring_bytes=1, cpu_ns=1, max_rss_bytes=1,
        lost={EVIL: 1}, missing={EVIL: EVIL}, notes=(EVIL,), exit_status=None, bytes_written=1,
    )  # fmt: skip
    record_verb._report(summary)
    said = capsys.readouterr()
    check(said.out)
    check(said.err)


def test_lines_are_printed_in_one_place_only() -> None:
    root = Path(cli.__file__).parent
    printing = re.compile(r"click\.(?:s?echo|secho)\(|(?<![\w.])print\(")
    found = {
        path.name for path in root.rglob("*.py") for line in path.read_text().splitlines() if printing.search(line)
    }
    assert found == {"main.py", "render.py"}
