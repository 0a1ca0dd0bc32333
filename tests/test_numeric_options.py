"""Every numeric option and parameter: what is no number, no whole number, or past all bounds ends in one clear line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from faultreplay.cli import main as cli
from faultreplay.cli.options import Finite
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.lab.lists import _kinds
from faultreplay.lab.runner import fetch_argument
from faultreplay.lab.spec import LabSpec
from faultreplay.replay.workload.synth import SynthSpec, Think

SAMPLE = str(Path(__file__).parent.parent / "sample-traces" / "qemu-postcopy.trace")

REFUSED = [
    ["compare", SAMPLE, "--max-loss", "nan"],
    ["compare", SAMPLE, "--max-loss", "inf"],
    ["compare", SAMPLE, "--cpus", "1000000000"],
    ["compare", SAMPLE, "--cpus", str(1 << 63)],
    ["compare", SAMPLE, "--seed", str(1 << 64)],
    ["compare", SAMPLE, "--window", "0s+999999h:freeze"],
    ["compare", SAMPLE, "--window", "2500000h+1s:freeze"],
    ["compare", SAMPLE, "--window", "0s+0.2ns:freeze"],
    ["compare", SAMPLE, "-m", "uffd-missing", "--set", "uffd-missing.bandwidth=0.5"],
    ["compare", SAMPLE, "-m", "uffd-missing", "--set", "uffd-missing.handlers=1.5"],
    ["compare", SAMPLE, "-m", "uffd-missing", "--set", "uffd-missing.handlers=nan"],
    ["compare", SAMPLE, "-m", "uffd-missing", "--set", "uffd-missing.granule=" + "9" * 500],
    ["compare", SAMPLE, "-m", "kvm-userfault", "--set", "kvm-userfault.mm_serial=0.4ns"],
    ["validate", SAMPLE, "--max-error", "nan"],
    ["validate", SAMPLE, "--max-error", "inf"],
    ["validate", SAMPLE, "--max-error", "5", "--or-floor", "nan"],
    ["calibrate", SAMPLE, "--split", "nan"],
    ["sweep", SAMPLE, "-m", "ideal", "--tolerance", "nan"],
    ["sweep", SAMPLE, "-m", "ideal", "--jobs", "100000"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=1us..9999999h:3"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=x1,nan"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=x1,xinf"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "uffd-missing.handlers=1.5,2"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "uffd-missing.handlers=1..inf"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "uffd-missing.bandwidth=0.5,1G"],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=1us..1ms:" + "9" * 5000],
    ["sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=" + ",".join(["1us"] * 1001)],
    ["models", "show", "uffd-missing", "--set", "handlers=1.5"],
    ["synth", "zipf", "-o", "x.trace", "--skew", "nan"],
    ["synth", "zipf", "-o", "x.trace", "--vcpus", "100000"],
    ["synth", "zipf", "-o", "x.trace", "--pages", "100000000000"],
    ["synth", "zipf", "-o", "x.trace", "--think", "200h"],
    ["synth", "phases", "-o", "x.trace", "--quiet", "277h"],
    ["record", "-o", "x.trace", "--max-rate", "nan", "--", "true"],
    ["record", "-o", "x.trace", "--max-cpu", "inf", "--", "true"],
    ["record", "-o", "x.trace", "-d", "0.1ns", "--", "true"],
    ["record", "-o", "x.trace", "-d", "1000h", "--", "true"],
    ["record", "-o", "x.trace", "--ring-size", "0", "--", "true"],
    ["record", "-o", "x.trace", "--rotate", "0", "--", "true"],
    ["lab", "run", "--pages", "0"],
    ["lab", "run", "--pages", str(1 << 40)],
    ["lab", "run", "--accesses", "-1"],
    ["lab", "run", "--vcpus", "0"],
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words)[-60:].replace("/", "-"))
def test_a_number_that_means_nothing_is_refused_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli._exit_code(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1, said.err
    assert "internal error" not in said.err
    assert not any(tmp_path.iterdir())


def test_no_option_is_a_bare_float() -> None:
    """nan passes click's own FloatRange and float: every number with a fraction is a `Finite`."""
    seen = 0
    todo: list[click.Command] = [cli.main]
    while todo:
        command = todo.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            todo += [found for name in command.list_commands(context) if (found := command.get_command(context, name))]
        for param in command.params:
            if isinstance(param.type, click.FloatRange | click.types.FloatParamType):
                assert isinstance(param.type, Finite), f"{command.name} --{param.name}"
                seen += 1
    assert seen >= 7


@pytest.mark.parametrize("name", ["", ".", "..", "/", "x/.."])
@pytest.mark.parametrize(
    "words",
    [
        ["record", "-o", "%", "--", "true"], ["synth", "phases", "-o", "%"], ["export", "a.trace", "-o", "%"],
        ["import", "--from", "perf-script", "x", "-o", "%"], ["compare", "a.trace", "-o", "%"],
        ["report", "a.trace", "-o", "%"], ["lab", "run", "-m", "uffd-missing", "-o", "%"], ["calibrate", "-o", "%"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_is_made_has_a_name(words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._exit_code([name if word == "%" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.lower().startswith("error:")] == [said.splitlines()[-1]]


def test_what_the_lab_draws_has_bounds() -> None:
    for text in ("lognormal:200us:nan", "lognormal:200us:-1", "lognormal:200us:99"):
        with pytest.raises(UsageError, match="--fetch"):
            fetch_argument(text)
    for share in ("nan", "1.5", "-0.1"):
        with pytest.raises(UsageError, match="--access"):
            _kinds(f"mixed:{share}", 3, None)  # type: ignore[arg-type] # refused before anything is drawn
    with pytest.raises(UsageError, match="--pages"):
        LabSpec(vcpus=4, pages=1 << 25)


def test_a_synthetic_trace_stays_within_the_longest_time() -> None:
    with pytest.raises(UsageError, match="11 days"):
        SynthSpec("zipf", 1, 1000, Think(LONGEST_NS // 999))
    SynthSpec("zipf", 1, 1000, Think(LONGEST_NS // 1001), quiet_ns=0)
