"""The pages for those who change faultreplay name files that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_FILE = re.compile(r"`([\w./-]+\.(?:py|pyi|toml|md|c|h))`")
_FOLDER = re.compile(r"`((?:collect|faulttrace|lab|replay|analysis|scripts|tests|benchmarks)/[\w./-]+)/?`")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_and_folders_named_on_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    there = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not there:
        pytest.skip("no git checkout")
    named = [name for name in _FILE.findall(text) if "NAME" not in name and name != "./mine.toml"]
    assert len(named) > 10
    gone = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)]
    gone += [name for name in _FOLDER.findall(text) if "NAME" not in name and not (ROOT / name).exists()]
    assert not gone, f"{page} names what is not there"
