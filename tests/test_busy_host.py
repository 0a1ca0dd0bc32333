"""The retry of live tests: on a busy host only, and only of what is a matter of time."""

from __future__ import annotations

import itertools

import busy_host
import pytest


@pytest.mark.parametrize("busy", [True, False])
def test_a_failure_is_tried_again_only_where_threads_waited(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = itertools.count(1, 10**12 if busy else 0)
    monkeypatch.setattr(busy_host, "waited_ns", lambda: next(waited))
    made: list[int] = []

    def attempt() -> int:
        made.append(len(made))
        return made[-1]

    def judge(number: int) -> None:
        assert number == 2

    if busy:
        assert busy_host.judged_in_time(attempt, judge) == 2
    else:
        with pytest.raises(AssertionError):
            busy_host.judged_in_time(attempt, judge)
    assert len(made) == (3 if busy else 1)


def test_a_host_that_stays_busy_does_not_make_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = itertools.count(1, 10**12)
    monkeypatch.setattr(busy_host, "waited_ns", lambda: next(waited))

    def judge(_: None) -> None:
        raise AssertionError("late")

    with pytest.raises(AssertionError, match="late"):
        busy_host.judged_in_time(lambda: None, judge, tries=3)
