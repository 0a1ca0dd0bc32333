"""`faultreplay models`: every shipped mechanism is listed and drawn; a user's file is checked, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faultreplay.cli import main as cli
from faultreplay.cli.models_view import path_steps, used_costs
from faultreplay.replay.language.costs import COSTS_DIR, load_costs
from faultreplay.replay.language.mechanism import MECHANISMS_DIR, list_mechanisms, load_mechanism
from faultreplay.replay.language.names import RENAMED, FormerName


def test_list_names_every_mechanism_and_cost_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._exit_code(["models", "list", "--format", "json"]) == 0
    text = capsys.readouterr().out
    rows = json.loads(text)["records"]
    assert [row["name"] for row in rows] == list_mechanisms()
    assert (
        next(row for row in rows if row["name"] == "kvm-exit")["fallback"] == "vmm: uffd-missing, kernel: uffd-missing"
    )


@pytest.mark.parametrize("name", list_mechanisms())
def test_show_draws_every_stage_and_every_cost(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._exit_code(["models", "show", name]) == 0
    text = capsys.readouterr().out
    mechanism = load_mechanism(name)
    assert text.startswith(mechanism.title)
    costs = load_costs()
    for path, stages in mechanism.paths.items():
        assert len(path_steps(mechanism, path, costs)) >= len(stages)
        assert path in text
    for cost in used_costs(mechanism):
        assert f"\n{cost} " in text
    words = " ".join(text.split())
    for limit in mechanism.limits:
        assert " ".join(limit.split()) in words.replace(" - ", "-") or limit.split()[0] in words


def test_the_lanes_of_uffd_missing_say_who_sleeps_and_who_works() -> None:
    steps = path_steps(load_mechanism("uffd-missing"), "missing", load_costs())
    drawn = [(step.accessor[:1], step.other) for step in steps]
    assert drawn[0] == ("├", "")  # the accessor's own fault
    assert drawn[4] == ("╵", "")  # asleep
    assert drawn[7] == ("┆", "┌")  # the handler takes over
    assert drawn[-3] == ("╷", "┤")  # the wake
    assert drawn[-1] == ("│", "└")  # the accessor runs, the handler is free


def test_show_takes_parameters_and_refuses_unknown_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._exit_code(["models", "show", "uffd-missing", "--set", "handlers=7"]) == 0
    assert "handlers = 7 threads (1 to 4096)" in capsys.readouterr().out
    assert cli._exit_code(["models", "show", "uffd-missing", "--set", "hands=7"]) == 2
    assert cli._exit_code(["models", "show", "uffd-missing", "--set", "hands"]) == 2
    assert cli._exit_code(["models", "show", "nothing"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_check_accepts_the_shipped_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for folder in (MECHANISMS_DIR, COSTS_DIR) for path in sorted(folder.glob("*.toml"))]
    assert cli._exit_code(["models", "check", *files]) == 0
    assert capsys.readouterr().err.count("sound") == len(files)


def test_check_names_line_key_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (MECHANISMS_DIR / "uffd-missing.toml").read_text()
    text = text.replace('servers = "$handlers"', 'servers = "$handlers"\ncolour = "red"')
    path = tmp_path / "mine.toml"
    path.write_text(text)
    line = text.splitlines().index('colour = "red"') + 1
    assert cli._exit_code(["models", "check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {path}:{line}: resources.handler.colour: unknown key")
    assert captured.err.count("\n") == 1
    path.write_text('[costs.fault_entry]\nvalue = "-3us"\nprovenance = "assumed"\nsource = "x"\n')
    assert cli._exit_code(["models", "check", str(path)]) == 2
    assert f"{path}:1: costs.fault_entry: '-3us' is not a duration" in capsys.readouterr().err
    assert cli._exit_code(["models", "check", str(tmp_path / "no.toml")]) == 2


@pytest.mark.parametrize(
    ("name", "today", "former"),
    [
        ("uffd-missing", 'delay = "fault_entry"', 'delay = "trap"'),
        ("uffd-missing", 'idle = "reader_wakeup"', 'idle = "message"'),
        ("freeze", 'enter = ["kick"', 'enter = ["trap"'),
        ("precopy-push", 'latency = "resolve"', 'latency = "message"'),
    ],
)
def test_a_former_cost_name_is_read_as_the_one_of_today(name: str, today: str, former: str, tmp_path: Path) -> None:
    text = (MECHANISMS_DIR / f"{name}.toml").read_text()
    assert today in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(today, former))
    with pytest.warns(FormerName, match=rf"{path}:\d+: .*is now called"):
        mechanism = load_mechanism(path)
    charged = f"{mechanism.paths} {mechanism.window} {mechanism.push}"
    assert not any(f"'{name}'" in charged for name in RENAMED)
    assert any(f"'{name}'" in charged for name in RENAMED.values())


def test_the_command_line_says_that_a_name_is_a_former_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[costs.trap]\nvalue = "3us"\nprovenance = "assumed"\nsource = "x"\n')
    command = [sys.executable, "-m", "faultreplay", "models", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"note: {path}:1: costs.trap: the cost 'trap' is now called 'fault_entry'\n" in done.stderr
