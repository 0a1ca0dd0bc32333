"""Pools of workers: what fails is tried once more, and a worker that dies takes no other task down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from faultreplay.analysis.explore.workers import Failure, here, on_dask
from faultreplay.faulttrace.errors import FaultreplayError, UsageError

# Only light modules are imported here: each worker imports this file again.


def square(task: int) -> int:
    return task * task


def fail_once(marks: Path, task: int) -> int:
    mark = marks / str(task)
    if not mark.exists():
        mark.touch()
        raise FaultreplayError("not this time")
    return square(task)


def odd_fails(task: int) -> int:
    if task % 2:
        raise ValueError(f"{task} is odd\nand more")
    return square(task)


def die_once(marks: Path, task: int) -> int:
    mark = marks / "died"
    if task == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(task)


def three_kills(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(task)


def outcomes(function: Callable[[int], Any], count: int, jobs: int) -> tuple[dict[int, int], dict[int, str]]:
    found = list(here(function, range(count), jobs=jobs))
    assert sorted(outcome.task for outcome in found) == list(range(count))  # each once
    return {o.task: o.value for o in found if not o.failure}, {o.task: o.failure.words for o in found if o.failure}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_fails_is_run_once_more(tmp_path: Path, jobs: int) -> None:
    values, errors = outcomes(partial(fail_once, tmp_path), 6, jobs)
    assert values == {n: n * n for n in range(6)}
    assert not errors


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_fails_twice_is_named(jobs: int) -> None:
    values, errors = outcomes(odd_fails, 5, jobs)
    assert values == {0: 0, 2: 4, 4: 16}
    assert errors == {1: "ValueError: 1 is odd", 3: "ValueError: 3 is odd"}


def refused_once(marks: Path, task: int) -> int:
    (marks / f"{task}.{os.getpid()}.{len(list(marks.iterdir()))}").touch()
    raise UsageError("it makes no sense")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_makes_no_sense_is_not_run_again(tmp_path: Path, jobs: int) -> None:
    found = list(here(partial(refused_once, tmp_path), range(3), jobs=jobs))
    assert {o.failure for o in found} == {Failure("it makes no sense", 2)}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_worker_that_is_killed_costs_no_task(tmp_path: Path) -> None:
    values, errors = outcomes(partial(die_once, tmp_path), 40, 2)
    assert values == {n: n * n for n in range(40)}
    assert not errors


def test_only_the_task_that_kills_its_worker_fails() -> None:
    values, errors = outcomes(three_kills, 40, 2)
    assert set(values) == set(range(40)) - {3}
    assert errors == {3: "the worker process ended (killed, or out of memory)"}


def test_no_tasks_no_pool() -> None:
    assert list(here(square, [], jobs=2)) == []


def test_no_scheduler_is_looked_for_at_what_is_no_address() -> None:
    with pytest.raises(UsageError, match="tcp://HOST:8786"):
        next(on_dask(square, [1], address="somewhere"))
