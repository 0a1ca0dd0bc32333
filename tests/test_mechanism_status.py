"""The upstream status in mechanism files."""

from pathlib import Path

import pytest

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism

FILE = """
title = "mine"
stands_for = "mine"
source = ["me"]
limits = []
granule = "4K"
{status}
[[paths.missing]]
wake = "1us"
"""


def written(tmp_path: Path, status: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(FILE.format(status=status))
    return path


@pytest.mark.parametrize("name", list_mechanisms())
def test_every_shipped_mechanism_says_how_far_it_is(name: str) -> None:
    status = load_mechanism(name).status
    assert status.state != "unknown"
    assert status.source or status.state in ("userspace", "none")


def test_it_is_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "uffd-missing"\ntitle = "mine"\n')
    assert load_mechanism("uffd-missing").status.words == "Linux 4.3"
    assert load_mechanism(path).status.state == "unknown"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ('status = { is = "released", source = "x" }', "'released' is none of merged, proposed"),
        ('status = { is = "merged", words = "Linux 4.3" }', "says no source"),
        ('status = "merged"', "status"),
        ('status = { is = "idea", source = "x", when = "now" }', "when"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, status: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_mechanism(written(tmp_path, status))
