"""Runs the lab's host program: set up, wait, start, collect. Its exit codes become errors here."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature, NoPermission, UsageError

_ERRORS: dict[int, type[FaultreplayError]] = {2: UsageError, 5: MissingFeature, 77: NoPermission}


class Program:
    """A host program that has set everything up and waits. Leaving the context kills what still runs.

    Attributes:
        facts: what it said when ready: pid, threads with roles, where the memory is.
    """

    def __init__(self, binary: Path, arguments: dict[str, object], work: Path, role: tuple[str, ...] = ()) -> None:
        self.work = work
        command = [str(binary), *role, *(f"{key}={value}" for key, value in arguments.items())]
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, cwd="/"
        )
        try:
            self.facts = self.line("while it was set up")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Program:
        return self

    def go(self) -> None:
        """Let it run to its end. It stays, with its memory, until `end`.

        Raises:
            KeyboardInterrupt: after the run was ended early; `end` still gives what there is.
        """
        self.tell()
        try:
            self.line("in its run")
        except KeyboardInterrupt:
            self._process.terminate()
            self.line("in its run")
            raise

    def end(self) -> dict[str, Any]:
        """Let it look at its memory, write its logs and leave; what it says of the run."""
        self.tell()
        done = self.line("after its run")
        self._process.wait()
        return done

    def tell(self) -> None:
        """Let it go on."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it is dead: the missing line says why
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def line(self, when: str) -> dict[str, Any]:
        """What it says next.

        Raises:
            FaultreplayError: it is gone; `when` says in which part of its work.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            result: dict[str, Any] = json.loads(line)
            return result
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            raise FaultreplayError(f"the lab's program was killed by signal {-code} {when}")
        raise _ERRORS.get(code, FaultreplayError)(said[-1] if said else f"the lab's program ended {when} (exit {code})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()


class HandlerProcess:
    """The program once more, as a process that takes the faults of the first, whose userfaultfd comes over `socket`.

    Attributes:
        socket: where it listens.
        facts: pid, and after `adopted` its threads.
    """

    def __init__(self, binary: Path, arguments: dict[str, object], work: Path) -> None:
        self.socket = work / "userfaultfd.sock"
        self._program = Program(binary, arguments | {"peer": self.socket}, work, role=("handle",))
        self.facts = self._program.facts

    def __enter__(self) -> HandlerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self._program.__exit__(None, None, None)

    def adopted(self) -> None:
        """Wait until it has the userfaultfd and its threads are there."""
        self.facts |= self._program.line("before it had the userfaultfd")

    def go(self) -> None:
        """Let its threads read messages: now, after a recorder is attached."""
        self._program.tell()

    def end(self) -> str:
        """Let it write its logs and leave; its problem, or nothing."""
        return str(self._program.end()["problem"])


class PageServer:
    """Another process that pages come from, over a Unix or TCP socket of this machine.

    Attributes:
        address: where it listens, as the host program's `fetch` takes it.
    """

    def __init__(
        self, binary: Path, kind: str, work: Path, *, granule: int, rate_bytes: int, limit: int, nice: int
    ) -> None:
        where = f"unix:{work / 'pages.sock'}" if kind == "unix" else "tcp:0"
        command = [str(binary), "serve", where, str(granule), str(rate_bytes), str(limit), str(nice)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        words = self._process.stdout.readline().split()
        if len(words) != 2:
            self._process.wait()
            raise FaultreplayError(f"the page server did not start at {where}")
        self.address = where if kind == "unix" else f"tcp:{words[1]}"
        self.pid = self._process.pid

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
