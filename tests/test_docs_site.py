"""The site builds without a warning, asks no other host for anything, and has a page for every mechanism and verb."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faultreplay.cli.main import VERBS
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism

ROOT = Path(__file__).parent.parent
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ) | quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert not [(page.name, found[0]) for page in pages if (found := LOADED.search(page.read_text()))]
    assert not [sheet.name for sheet in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", sheet.read_text())]


@pytest.mark.parametrize("name", list_mechanisms())
def test_each_mechanism_has_its_ladder_and_its_status(site: Path, name: str) -> None:
    page = (site / "mechanisms" / f"{name}.html").read_text()
    mechanism = load_mechanism(name)
    text = html.unescape(page)
    assert text.count('<svg class="ladder"') == len(mechanism.paths)
    assert str(mechanism.status) in text
    for path in mechanism.paths.values():
        for stage in path:
            assert not stage.says or stage.says.split()[0] in text


def test_each_verb_has_its_help(site: Path) -> None:
    text = html.unescape((site / "cli.html").read_text())
    for verb in VERBS:
        assert f"Usage: faultreplay {verb}" in text


def test_each_function_of_the_library_is_documented(site: Path) -> None:
    page = (site / "library.html").read_text()
    for name in ("faults", "workload", "mechanism", "costs", "open_case", "compare", "calibrate", "record"):
        assert f'id="faultreplay.api.{name}"' in page


def test_man_pages_say_what_the_help_says(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/docs/man.py", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    pages = {path.stem: path.read_text() for path in (tmp_path / "man1").iterdir()}
    assert {f"faultreplay-{verb}" for verb in VERBS} < set(pages)
    assert ".B \\-\\-max\\-loss PERCENT" in pages["faultreplay-compare"]
    assert "\\-m uffd\\-missing,kvm\\-exit \\-o result.parquet" in pages["faultreplay-replay"]
    for page in pages.values():
        words = [line for line in page.splitlines() if line.startswith((".", "'"))]
        assert {line.split()[0] for line in words} <= {
            ".TH", ".SH", ".PP", ".TP", ".B", ".BR", ".RS", ".RE", ".nf", ".fi",
        }  # fmt: skip
