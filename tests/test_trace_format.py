"""docs/trace-format.md is in step with the schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultreplay.faulttrace.format_doc import filled, kinds_table
from faultreplay.faulttrace.schema import EVENTS, KINDS, Kind
from faultreplay.faulttrace.stitch.found import ENDS, MARKERS, STARTS

PAGE = Path(__file__).parent.parent / "docs" / "trace-format.md"


def test_the_page_holds_the_tables_of_this_schema() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == filled(text), "run: python -m faultreplay.faulttrace.format_doc docs/trace-format.md"
    assert text.count("<!-- made from the schema: ") == 7


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_explained_and_fills_columns_that_exist(kind: Kind) -> None:
    assert kind in KINDS
    assert set(KINDS[kind].columns) <= set(EVENTS.names)
    assert f"| {kind.name} | {int(kind)} |" in kinds_table()


def test_every_marker_of_a_join_is_explained() -> None:
    assert set(MARKERS) == {*STARTS, *ENDS} - {"none"}


def test_a_stale_table_is_made_anew() -> None:
    stale = "x\n<!-- made from the schema: losses -->\nold\n<!-- end -->\ny\n"
    assert "old" not in filled(stale)
    assert "| probe | string | no |" in filled(stale)
