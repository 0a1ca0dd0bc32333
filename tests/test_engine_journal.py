"""The journal of a run's operations: what is entered, what each one spent, and when it has no room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from faultreplay.replay.engine import journal
from faultreplay.replay.engine.layout import SPENT_COLUMNS

note = getattr(journal.note, "py_func", journal.note)
"""uncompiled, so that its lines are seen"""


def run(log: Any, steps: list[tuple[int, int, int]]) -> Any:
    """Operations (pc, time, what it adds to each column of `spent`), of slot 3, row 4 and accessor 5."""
    spent = np.zeros((4, SPENT_COLUMNS), np.int64)
    spent[:] = 1_000  # what others spent before
    for pc, at, adds in steps:
        note(log, spent, 3, pc, at, 4, 5)
        spent[pc] += adds * np.arange(1, SPENT_COLUMNS + 1)
    return journal.entries_of(log, spent)


def spent_of(entries: Any) -> list[list[int]]:
    return [entry[journal.E_SPENT :].tolist() for entry in entries]


def added(*amounts: int) -> list[list[int]]:
    return [(amount * np.arange(1, SPENT_COLUMNS + 1)).tolist() for amount in amounts]


def test_each_operation_is_entered_with_what_it_spent() -> None:
    entries = run(journal.new_journal(5, 0, 100), [(1, 10, 7), (2, 20, 0), (1, 30, 9)])
    assert entries[:, : journal.E_SPENT].tolist() == [[3, 1, 10, 4, 5], [3, 2, 20, 4, 5], [3, 1, 30, 4, 5]]
    assert spent_of(entries) == added(7, 0, 9)


@pytest.mark.parametrize(("since", "until", "kept"), [(20, 30, [20, 30]), (21, 29, []), (0, 19, [10, 5]), (31, 99, [])])
def test_only_operations_of_the_asked_time_are_entered_and_take_no_others_spending(
    since: int, until: int, kept: list[int]
) -> None:
    steps = [(1, 10, 7), (1, 20, 8), (1, 30, 9), (1, 5, 6)]
    entries = run(journal.new_journal(4, since, until), steps)
    assert entries[:, journal.E_AT].tolist() == kept
    assert spent_of(entries) == added(*(adds for _, at, adds in steps if at in kept))


def test_no_room_is_told_by_none_and_one_place_more_is_enough() -> None:
    steps = [(1, 10, 7), (2, 11, 8), (3, 12, 9)]
    assert run(journal.new_journal(2, 0, 100), steps) is None
    assert spent_of(run(journal.new_journal(3, 0, 100), steps)) == added(7, 8, 9)


def test_a_run_that_begins_anew_forgets_and_is_entered_whole() -> None:
    log = journal.new_journal(3, 0, 100)
    run(log, [(1, 10, 7), (2, 20, 8)])
    journal.begin_anew(log)
    assert len(journal.entries_of(log, np.zeros((4, SPENT_COLUMNS), np.int64))) == 0
    assert spent_of(run(log, [(2, 1, 5), (1, 2, 6)])) == added(5, 6)
