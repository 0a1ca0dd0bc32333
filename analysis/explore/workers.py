"""Run tasks in a pool of processes here or on a dask cluster: the same function, the same tasks, the same results.

A task that fails is run once more, if it is not one that makes no sense; then its error is its outcome. A worker that
dies takes no other task down.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Final, Generic, TypeVar

from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature, UsageError

T = TypeVar("T")
_ADDRESS: Final = re.compile(r"([a-z]+://)?\S+:\d+")
_AHEAD: Final = 4
"""tasks handed out for each worker: none waits for the next one"""
_TO_TIDY_S: Final = 0.5
"""So long a worker has to remove what it had half written."""


@dataclass(frozen=True)
class Failure:
    """Why a task has no value: one line, and the exit code of such an error."""

    words: str
    exit_code: int = 1

    @property
    def refused(self) -> bool:
        """Whether the task makes no sense, so that another try would end in the same way."""
        return self.exit_code != 1


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A task's value, or why there is none."""

    task: T
    value: Any
    failure: Failure | None = None


def chosen(
    function: Callable[[T], Any], *, jobs: int, dask: str | None = None, prepare: Callable[[], None] | None = None
) -> Callable[[Sequence[T]], Iterator[Outcome[T]]]:
    """The pool that was asked for: `on_dask` where `dask` names a scheduler, else `here`."""
    if dask:
        return partial(on_dask, function, address=dask)
    return partial(here, function, jobs=jobs, prepare=prepare)


def here(
    function: Callable[[T], Any], tasks: Sequence[T], *, jobs: int, prepare: Callable[[], None] | None = None
) -> Iterator[Outcome[T]]:
    """Each task's outcome from `jobs` processes, after `prepare`; in this process when `jobs` is 1."""
    if not tasks:
        return
    if jobs == 1:
        yield from _alone(function, tasks)
        return
    if prepare is not None:
        prepare()
    failed: list[T] = []
    rest = list(tasks)
    while rest:
        # A worker that dies breaks its pool: what was handed out then fails, the rest goes on in another pool.
        with _pool(jobs) as pool:
            rest = yield from _good(_through(pool, partial(_task, function), rest, ahead=jobs * _AHEAD), failed)
    rest = failed
    while rest:  # one at a time, so that a task that kills its worker is the only one to blame
        with _pool(1) as pool:
            rest = yield from _through(pool, partial(_task, function), rest, ahead=1)


def on_dask(function: Callable[[T], Any], tasks: Sequence[T], *, address: str) -> Iterator[Outcome[T]]:
    """Each task's outcome from the workers of the cluster whose scheduler is at `address`.

    Raises:
        MissingFeature: dask.distributed is not installed.
        UsageError: not an address.
        FaultreplayError: no scheduler answers, or it has no workers.
    """
    if not _ADDRESS.fullmatch(address):  # dask would try for long, and complain once more when it is collected
        raise UsageError(f"--dask {address}: write the scheduler's address, as tcp://HOST:8786")
    try:
        from distributed import Client
    except ImportError:
        raise MissingFeature(
            "--dask needs dask.distributed, which is not installed: pip install 'faultreplay[dask]'"
        ) from None
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise FaultreplayError(f"--dask {address}: no scheduler answers ({str(error).splitlines()[0]})") from None
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise FaultreplayError(
                f"--dask {address}: the cluster has no workers: start one with 'dask worker {address}'"
            )
        # pure=False: the scheduler must not take a result for known by its name.
        with client.get_executor(pure=False) as executor:
            failed: list[T] = []
            ahead = max(workers * _AHEAD, 16)
            yield from _good(_through(executor, function, tasks, ahead=ahead), failed)
            yield from _through(executor, function, failed, ahead=ahead)


def _alone(function: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[Outcome[T]]:
    for task in tasks:
        for attempt in (1, 2):
            try:
                yield Outcome(task, function(task))
                break
            except Exception as error:
                failure = _failure(error)
                if attempt == 2 or failure.refused:
                    yield Outcome(task, None, failure)
                    break


def _through(
    executor: Executor, function: Callable[[T], Any], tasks: Sequence[T], *, ahead: int
) -> Generator[Outcome[T], None, list[T]]:
    """Outcomes as they come, at most `ahead` tasks handed out; returns those that were not, to a pool that broke."""
    waiting = list(reversed(tasks))
    running: dict[Future[Any], T] = {}
    broken = False
    while running or (waiting and not broken):
        while waiting and len(running) < ahead and not broken:
            try:
                future = executor.submit(function, waiting[-1])
            except BrokenProcessPool:
                broken = True
            else:
                running[future] = waiting.pop()
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            task = running.pop(future)
            reason = future.exception()
            if reason is None:
                yield Outcome(task, future.result())
            else:
                broken = broken or isinstance(reason, BrokenProcessPool)
                yield Outcome(task, None, _failure(reason))
    return waiting[::-1]


def _good(outcomes: Generator[Outcome[T], None, list[T]], failed: list[T]) -> Generator[Outcome[T], None, list[T]]:
    """Only the outcomes that are none to try again; those tasks go to `failed`."""
    while True:
        try:
            outcome = next(outcomes)
        except StopIteration as end:
            return list(end.value)
        if outcome.failure and not outcome.failure.refused:
            failed.append(outcome.task)
        else:
            yield outcome


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # spawn: threads of polars and numba do not survive a fork
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_ends_when_told)
    try:
        with _deaf():
            pool.submit(int)  # starts them all
        yield pool
    except KeyboardInterrupt:
        workers = set(multiprocessing.active_children()) - others
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + _TO_TIDY_S
        for worker in workers:
            worker.join(max(until - time.monotonic(), 0))
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Ended(BaseException):
    """This worker is to end."""


_at_work = threading.Event()
"""In a worker: it has a task in hand."""


def _ends_when_told() -> None:
    """In a worker: what ends it lets its task remove what it had half written."""

    def end(_number: int, _frame: object) -> None:
        if not _at_work.is_set():
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Ended

    signal.signal(signal.SIGTERM, end)


def _task(function: Callable[[T], Any], task: T) -> Any:
    """`function(task)`, in a worker."""
    try:
        _at_work.set()
        return function(task)
    except _Ended:
        os._exit(1)
    finally:
        _at_work.clear()


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started in the body do not hear Ctrl-C: a terminal tells it to all of them, and one answers."""
    resource_tracker.ensure_running()  # starting it would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _failure(error: BaseException) -> Failure:
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, FaultreplayError):
        return Failure(text, error.exit_code)
    if isinstance(error, BrokenProcessPool):
        return Failure("the worker process ended (killed, or out of memory)")
    return Failure(f"{type(error).__name__}: {text}" if text else type(error).__name__)
