"""Host memory that is touched before a run."""

from __future__ import annotations

import os
import resource

import pytest

from faultreplay.lab import backing


def test_touches_what_a_run_places_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = os.sched_getaffinity(0)
    taken: list[tuple[int, set[int]]] = []
    touch = backing._touched
    monkeypatch.setattr(backing, "_touched", lambda n: (taken.append((n, os.sched_getaffinity(0))), touch(n))[1])
    monkeypatch.setattr(backing, "_ALSO_TAKEN_BYTES", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    backing.back_free_memory(100 * 4096)

    assert taken == [(100, {cpu}) for cpu in sorted(cpus)]  # on each CPU as much: nobody knows where the run places
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= 100 * len(cpus)
    assert os.sched_getaffinity(0) == cpus


def test_no_more_than_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    touch = backing._touched
    monkeypatch.setattr(backing, "_touched", lambda n: (taken.append(n), touch(1))[1])
    monkeypatch.setattr(os, "sysconf", lambda _: 4000)

    backing.back_free_memory(1 << 40)

    assert sum(taken) <= 1000
    monkeypatch.setattr(os, "sysconf", lambda _: 0)
    backing.back_free_memory(1 << 40)
    assert sum(taken) <= 1000


def test_goes_on_where_memory_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(backing, "_touched", refuse)
    backing.back_free_memory(4096)
