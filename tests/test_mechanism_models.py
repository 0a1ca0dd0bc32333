"""`faultreplay models`: every shipped mechanism is listed and drawn; a user's file is checked, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faultreplay.cli import main as cli
from faultreplay.cli.models_view import path_steps, used_costs
from faultreplay.replay.language.costs import COSTS_DIR, load_costs
from faultreplay.replay.language.mechanism import MECHANISMS_DIR, list_mechanisms, load_mechanism


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
    path.write_text('[costs.trap]\nvalue = "-3us"\nprovenance = "assumed"\nsource = "x"\n')
    assert cli._exit_code(["models", "check", str(path)]) == 2
    assert f"{path}:1: costs.trap: '-3us' is not a duration" in capsys.readouterr().err
    assert cli._exit_code(["models", "check", str(tmp_path / "no.toml")]) == 2
