"""Mechanism files that build on others, shared parameters, arithmetic, and parameters that nothing uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_mechanisms import HEAD, write_mechanism

from faultreplay.cli import main as cli
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language import expressions
from faultreplay.replay.language.mechanism import MECHANISMS_DIR, load_mechanism

BASE = f"""{HEAD}
[params]
handlers = 2

[resources.pool]
kind = "servers"
servers = "$handlers"

[[paths.missing]]
acquire = "pool"
[[paths.missing]]
delay = "resolve"
label = "place"
[[paths.missing]]
release = "pool"
[[paths.missing]]
wake = "wake"
"""


def child(tmp_path: Path, text: str) -> Path:
    base = write_mechanism(tmp_path, BASE, "base.toml")
    return write_mechanism(tmp_path, f'extends = "{base}"\n{text}', "child.toml")


def test_what_a_file_does_not_say_it_inherits(tmp_path: Path) -> None:
    text = 'title = "mine"\n[params]\nhandlers = 5\n[classes]\nminor = "missing"\n'
    mechanism = load_mechanism(child(tmp_path, text))
    base = load_mechanism(tmp_path / "base.toml")
    assert (mechanism.title, mechanism.name, mechanism.limits) == ("mine", "child", base.limits)
    assert mechanism.values["handlers"] == 5
    assert mechanism.params["handlers"].maximum == base.params["handlers"].maximum == 4096
    assert mechanism.paths == base.paths
    assert dict(mechanism.classes) == {"minor": "missing"}


def test_a_change_takes_the_place_of_a_labelled_stage(tmp_path: Path) -> None:
    text = '[[changes.missing.place]]\ndelay = "fetch"\n[[changes.missing.place]]\ndelay = "lock"\n'
    stages = load_mechanism(child(tmp_path, text)).paths["missing"]
    assert [stage.operand for stage in stages] == ["pool", "fetch", "lock", "pool", "wake"]
    assert [Path(stage.file).stem for stage in stages] == ["base", "child", "child", "base", "base"]
    assert stages[2].line == 5
    removed = load_mechanism(child(tmp_path, "[changes.missing]\nplace = []\n")).paths["missing"]
    assert [stage.operand for stage in removed] == ["pool", "pool", "wake"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[[changes.missing.plaice]]\ndelay = "fetch"\n', 2, "no stage with this label; its labels are place"),
        ('[[changes.minor.place]]\ndelay = "fetch"\n', 2, "changes stages of a path that is inherited"),
        ('[[changes.missing.place]]\ndelay = "fetsh"\n', 3, "changes.missing.place.1.delay: unknown cost 'fetsh'"),
        ('[[changes.missing.place]]\nrelease = "pool"\n', 20, "'pool' is released but not held"),
        ("[params]\nspeed = 3\n", 3, "no shared parameter 'speed'"),
        ("[params]\nspin = 3\n", 3, "params.spin: nothing uses this parameter"),
        ("[params]\nhandlers = 0\n", 3, "params.handlers.default: 0 is out of bounds"),
        ('[resources.pool]\nkind = "servers"\nservers = 3\n', 1, "params.handlers: nothing uses this parameter"),
    ],
)
def test_a_broken_change_names_the_file_it_stands_in(text: str, line: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_mechanism(child(tmp_path, text))
    message = str(caught.value)
    assert f".toml:{line}: " in message, message
    assert reason in message


def test_changes_need_something_to_change_and_no_file_extends_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say what the file extends"):
        load_mechanism(write_mechanism(tmp_path, BASE + "[changes.missing]\nplace = []\n"))
    loop = tmp_path / "loop.toml"
    loop.write_text(f'extends = "{loop}"\n')
    with pytest.raises(UsageError, match="goes in a cycle: loop -> loop"):
        load_mechanism(loop)


def test_arithmetic_over_parameters(tmp_path: Path) -> None:
    text = BASE.replace('"$handlers"', '"$handlers * 3 - min($handlers, 1)"').replace(
        '"resolve"', '"$spin * $handlers"'
    )
    text = text.replace("handlers = 2", 'handlers = 2\nspin = "1us"')
    mechanism = load_mechanism(write_mechanism(tmp_path, text))
    assert mechanism.value(mechanism.resources["pool"].size) == 5
    assert mechanism.with_params({"handlers": 4}).value("$spin * $handlers") == 4000
    for broken in ("$handlers ** 2", "$handlers + ", "$handlers if 1 else 2", "$handlers + x", "$handlers.real"):
        with pytest.raises(UsageError, match=r"mine\.toml:\d+: .*is no expression of parameters"):
            load_mechanism(write_mechanism(tmp_path, BASE.replace('"$handlers"', f'"{broken}"'), "mine.toml"))
    with pytest.raises(UsageError, match=r"resources\.pool\.servers: unknown parameter '\$readers'"):
        load_mechanism(write_mechanism(tmp_path, BASE.replace('"$handlers"', '"$handlers * $readers"'), "mine.toml"))
    low = load_mechanism(write_mechanism(tmp_path, BASE.replace('"$handlers"', '"$handlers - 3"'), "mine.toml"))
    with pytest.raises(UsageError, match="it must not be negative"):
        low.value(low.resources["pool"].size)


@given(a=st.integers(0, 10**6), b=st.integers(0, 10**6), c=st.integers(1, 10**6))
def test_expressions_are_python_s_arithmetic(a: int, b: int, c: int) -> None:
    values = {"a": float(a), "b": float(b), "c": float(c)}
    assert expressions.evaluate("$a * $b + max($a, $c) / $c - 2", values) == a * b + max(a, c) / c - 2
    assert expressions.evaluate("$a / ($b - $b)", values) == 0


def test_a_parameter_that_nothing_uses_is_an_error_in_check_and_for_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_mechanism(tmp_path, BASE.replace('"$handlers"', "3"), "mine.toml")
    assert cli._exit_code(["models", "check", str(path)]) == 2
    assert "params.handlers: nothing uses this parameter" in capsys.readouterr().err
    assert cli._exit_code(["models", "show", str(path), "--set", "handlers=4"]) == 2
    assert "nothing uses this parameter" in capsys.readouterr().err


def test_the_shipped_files_repeat_no_block() -> None:
    """A block of three lines or more (a parameter, a stage with its words) stands in one file only."""
    seen: dict[str, str] = {}
    for path in sorted(MECHANISMS_DIR.glob("*.toml")):
        for block in set(path.read_text().split("\n[")[1:]):
            text = block.strip()
            if block.startswith("params.") and "mm_ser" not in block and text.count("\n") > 2:
                assert text not in seen, f"{path.stem} and {seen[text]}: {text}"
                seen[text] = path.stem
