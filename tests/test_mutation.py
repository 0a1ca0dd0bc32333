"""`make mutate`: its driver changes what it says, and the reasons why mutants cannot be noticed are of today's code."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "mutation"
sys.path.insert(0, str(HERE))

import run  # noqa: E402
from mutants import mutants, mutated  # noqa: E402

SOURCE = '''
def least(values: list[int], most: int = 3) -> int:
    """Words of 7."""
    found = most
    for value in values:
        if 0 <= value < found and value != 1:
            found = value
    return found
'''


def test_each_mutant_is_one_change_and_none_is_in_words_or_types() -> None:
    plain = ast.unparse(ast.parse(SOURCE))
    texts = [ast.unparse(mutated(SOURCE, mutant)) for mutant in mutants(SOURCE)]
    assert plain not in texts
    assert len(set(texts)) == len(texts)
    assert all("Words of 7." in text and "list[int]" in text for text in texts)
    changed = {line for text in texts for line in text.splitlines()} - set(plain.splitlines())
    assert {line.strip() for line in changed} == {
        "def least(values: list[int], most: int=4) -> int:",
        "if 0 < value < found and value != 1:",
        "if 0 <= value <= found and value != 1:",
        "if 1 <= value < found and value != 1:",
        "if 0 <= value < found or value != 1:",
        "if 0 <= value < found and value == 1:",
        "if 0 <= value < found and value != 2:",
        "if not (0 <= value < found and value != 1):",
    }


def test_the_compiled_loop_runs_uncompiled_and_other_compiled_functions_as_they_are() -> None:
    loop = {module for module in run.modules() if run.compiled(module)}
    assert {f"replay/engine/{name}.py" for name in ("kernel", "cpus", "draws")} <= loop
    assert "replay/engine/result.py" not in loop
    assert "replay/workload/pages.py" not in loop
    tree = ast.parse("@jit\n@other\ndef f(): pass\n@inline\ndef g(): pass")
    run.uncompiled(tree)
    assert ast.unparse(tree) == "@other\ndef f():\n    pass\n\ndef g():\n    pass"


def test_each_reason_names_one_mutant_of_todays_code() -> None:
    entries = tomllib.loads(run.EQUIVALENT.read_text())["mutant"]
    assert all(len(entry["why"].split()) >= 4 for entry in entries)
    found = [run.explained(module, (run.ROOT / module).read_text()) for module in run.modules()]
    assert sum(map(len, found)) == len(entries)
    code = "\n".join((run.ROOT / module).read_text() for module in run.modules())
    assert [entry["code"] for entry in entries if entry["code"] not in code] == []  # look at the reason again


def test_a_reason_is_of_one_mutant(tmp_path: Path) -> None:
    file = tmp_path / "equivalent.toml"

    def reasons(*entries: str) -> None:
        file.write_text("".join(f'[[mutant]]\nin = "m"\nwhy = "none"\n{entry}\n' for entry in entries))

    line = 'code = "if 0 <= value < found and value != 1:"'
    reasons(f'{line}\nchange = "1 -> 2"')
    assert list(run.explained("m/m.py", SOURCE, file).values()) == ["none"]
    assert run.explained("other/m.py", SOURCE, file) == {}
    reasons(f'{line}\nchange = "7 -> 8"')
    assert run.explained("m/m.py", SOURCE, file) == {}
    reasons(f'{line}\nchange = "1 -> 2"\nnth = 2')
    with pytest.raises(run.NoSuchMutantError, match="1 mutants are `if 0 <= value"):
        run.explained("m/m.py", SOURCE, file)
    reasons('code = "def least(values: list[int], most: int = 3) -> int:"\nchange = "3 -> 4"')
    with pytest.raises(run.NoSuchMutantError, match="2 mutants"):
        run.explained("m/m.py", SOURCE + SOURCE, file)


def test_explained_mutants_are_in_no_share_of_those_noticed() -> None:
    counts = {"killed": 17, "timeout": 1, "explained": 5, "survived": 2}
    text = run.table([{"module": "m.py", "all": 100, "counts": counts}])
    assert "| all | 100 | 25 | 17 | 1 | 5 | 2 |" in text
    assert "72.0% noticed" in text
    assert "90.0% of the others" in text
