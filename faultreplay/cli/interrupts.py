"""Ctrl-C in compiled code, which does not check for signals: Python waits until it returns."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Final

from faultreplay.cli.manners import owns_process

GRACE_S: Final = 1.0
"""For what can end in order: temporary files, worker processes, a line on the terminal."""


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """In the body Ctrl-C ends this process (130, one line) within GRACE_S, also while the compiled loop runs.

    For work that leaves nothing half done behind: outputs are written whole, after it. Only in a process of our own;
    elsewhere Ctrl-C is the program's that called us.
    """
    if not owns_process() or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)  # the C handler writes there, whatever is running
    threading.Thread(target=_watch, args=(told, over), name="faultreplay-ctrl-c", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(tell)


def _watch(told: int, over: threading.Event) -> None:
    with open(told, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] == signal.SIGINT and not over.wait(GRACE_S):
                _end()


def _end() -> None:
    for child in multiprocessing.active_children():
        child.kill()
    clear = "\r\x1b[K\x1b[?25h\n" if sys.stderr.isatty() else ""  # a spinner's line, and the cursor it hid
    os.write(sys.stderr.fileno(), f"{clear}error: interrupted\n".encode())
    os._exit(130)
