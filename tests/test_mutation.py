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


def test_each_reason_names_one_mutant_of_todays_code() -> None:
    entries = tomllib.loads(run.EQUIVALENT.read_text())["mutant"]
    assert all(len(entry["why"].split()) >= 4 for entry in entries)
    modules = {entry["module"] for entry in entries}
    assert modules <= set(run.modules())
    found = [run.explained(module, (run.ROOT / module).read_text()) for module in sorted(modules)]
    assert sum(map(len, found)) == len(entries)  # no two entries are of one mutant


def test_a_reason_for_other_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "equivalent.toml"

    def reasons(*entries: str) -> None:
        file.write_text("".join(f'[[mutant]]\nmodule = "m.py"\nwhy = "none"\n{entry}\n' for entry in entries))

    reasons('code = "found = most"\nchange = "1 -> 2"')
    with pytest.raises(run.NoSuchMutantError, match="0 mutants are `found = most`"):
        run.explained("m.py", SOURCE, file)
    line = 'code = "if 0 <= value < found and value != 1:"'
    reasons(f'{line}\nchange = "1 -> 2"')
    assert list(run.explained("m.py", SOURCE, file).values()) == ["none"]
    assert run.explained("other.py", SOURCE, file) == {}
    reasons(f'{line}\nchange = "1 -> 2"\nnth = 2')
    with pytest.raises(run.NoSuchMutantError):
        run.explained("m.py", SOURCE, file)


def test_explained_mutants_are_in_no_share_of_those_noticed() -> None:
    counts = {"killed": 17, "timeout": 1, "explained": 5, "survived": 2}
    text = run.table([{"module": "m.py", "all": 100, "counts": counts}])
    assert "| all | 100 | 25 | 17 | 1 | 5 | 2 |" in text
    assert "72.0% noticed" in text
    assert "90.0% of the others" in text
