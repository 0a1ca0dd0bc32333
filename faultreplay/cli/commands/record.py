"""`faultreplay record`: a trace of running processes or of a command."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.manners import owns_process, person_watches
from faultreplay.cli.options import Finite, NewPath, gathered
from faultreplay.cli.render import say
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.units import format_bytes, format_ns, parse_duration_ns, parse_size_bytes

if TYPE_CHECKING:
    from faultreplay.collect.recorder.keep import Rotation, Trigger
    from faultreplay.collect.recorder.spec import RecordStatus, RecordSummary


@dataclass(frozen=True)
class _Given:
    """What the command line says."""

    command_line: tuple[str, ...]
    out: Path
    pids: tuple[str, ...]
    children: bool | None
    with_handler: bool | None
    vms: tuple[str, ...]
    all_vms: bool
    cgroup: str | None
    vcpu_threads: str | None
    duration: str | None
    groups: str | None
    ring: str | None
    backend: str
    max_rate: float | None
    max_cpu: float | None
    rotate: str | None
    keep: int | None
    trigger: str | None
    keep_last: str | None
    reserve: str
    force: bool


@click.command("record", short_help="Record a trace.")
@click.argument("command_line", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-o", "--output", "out", type=NewPath(), required=True, help="The trace to make: NAME.trace.")
@click.option(
    "-p", "--pid", "pids", multiple=True, metavar="PID,...", help="Record these processes; may be given several times."
)
@click.option(
    "--children/--no-children",
    default=None,
    help="Record also the processes below -p that exist already. Default: where -p has no VM and no userfaultfd.",
)
@click.option(
    "--with-handler/--without-handler",
    default=None,
    help="Record also another process that takes the targets' userfaults. Default: with --vm and --all-vms.",
)
@click.option("--vm", "vms", multiple=True, metavar="NAME|UUID", help="Record this running VM.")
@click.option("--all-vms", is_flag=True, help="Record all VMs, also those that start later.")
@click.option("--cgroup", metavar="PATH", help="Record all processes of this cgroup (v2) and below.")
@click.option(
    "--vcpu-threads",
    "vcpu_threads",
    metavar="TID|NAME,...",
    help="Threads that are vCPUs though they never call KVM_RUN; * in a NAME stands for anything. "
    "QEMU's TCG threads (CPU n/TCG) are found by themselves.",
)
@click.option("-d", "--duration", metavar="TIME", help="End after this, as 10s (a bare number: seconds).")
@click.option(
    "--probes",
    "groups",
    metavar="GROUPS",
    help="Groups of probes, by commas: faults,kvm,sched,mm,locks. Default: all but locks.",
)
@click.option("--ring-size", "ring", metavar="SIZE", help="Ring buffer, as 64M. Default: chosen from free memory.")
@click.option(
    "--backend", type=click.Choice(["auto", "precompiled", "bcc", "bpftrace"]), default="auto", show_default=True
)
@click.option("--max-rate", type=Finite(1), metavar="EVENTS/S", help="Drop groups of probes above this rate.")
@click.option("--max-cpu", type=Finite(1), metavar="PERCENT", help="Drop groups when recording takes more of one core.")
@click.option("--rotate", metavar="SIZE|TIME", help="Flight recorder: a new segment after 256M or 10m.")
@click.option(
    "--keep", type=click.IntRange(1, 1_000_000), metavar="N", help="With --rotate: segments that stay. Default: 10."
)
@click.option("--trigger", metavar="TIME", help="End when a stall is longer than this, as 50ms.")
@click.option("--keep-last", metavar="TIME", help="With --trigger: what stays of the trace. Default: 10s.")
@click.option(
    "--reserve", metavar="SIZE", default="256M", show_default=True, help="Stop before the disk has less than this free."
)
@click.option("--force", is_flag=True, help="Replace an existing trace.")
@gathered(_Given)
def command(given: _Given) -> None:
    """Record faults, userfaults and KVM events of processes, or of a command that it runs.

    Ends after -d, when all targets have ended, or on Ctrl-C; a COMMAND that still runs then gets SIGTERM.
    """
    if owns_process():
        for name, value in _LIGHT.items():
            os.environ.setdefault(name, value)
    import faultreplay
    from faultreplay.collect.backends.probes import DEFAULT_GROUPS
    from faultreplay.collect.recorder.limits import Limits

    spec = faultreplay.RecordSpec(
        pids=_pids(given.pids),
        children=given.children,
        with_handler=given.with_handler,
        vms=given.vms,
        all_vms=given.all_vms,
        cgroup=given.cgroup,
        command=given.command_line,
        duration_ns=parse_duration_ns(given.duration, default_unit="s") if given.duration else None,
        groups=tuple(dict.fromkeys(given.groups.split(","))) if given.groups else DEFAULT_GROUPS,
        ring_bytes=parse_size_bytes(given.ring) if given.ring else None,
        backend=given.backend,
        limits=Limits(given.max_rate, given.max_cpu),
        rotation=_rotation(given.rotate, given.keep),
        trigger=_trigger(given.trigger, given.keep_last),
        vcpu_threads=tuple(name for name in (given.vcpu_threads or "").split(",") if name),
        reserve_bytes=parse_size_bytes(given.reserve),
        force=given.force,
        drop_privileges=owns_process(),
    )
    if spec.rotation and spec.trigger:
        raise UsageError("--rotate and --trigger: choose one of them")
    if spec.duration_ns == 0:
        raise UsageError("-d 0: a recording needs a duration")
    if spec.ring_bytes == 0:
        raise UsageError("--ring-size 0: a ring buffer needs a size")
    stop = threading.Event()
    with _signals_set(stop), _status_line() as (show, step):
        summary = faultreplay.record(spec, _trace_path(given.out), stop, show, step)
    _report(summary)
    if summary.nothing_because:
        raise IncompleteData(f"{summary.path}: no event was recorded: {'; '.join(summary.nothing_because)}")


def _pids(texts: tuple[str, ...]) -> tuple[int, ...]:
    words = [word.strip() for text in texts for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word) < 1 << 31):
            raise UsageError(f"-p {word!r}: a process id is a whole number above 0")
    return tuple(dict.fromkeys(int(word) for word in words))


def _rotation(text: str | None, keep: int | None) -> Rotation | None:
    from faultreplay.collect.recorder.keep import Rotation

    if text is None:
        if keep is not None:
            raise UsageError("--keep goes with --rotate")
        return None
    try:
        rotation = Rotation(keep or 10, segment_ns=parse_duration_ns(text))
    except UsageError:
        rotation = Rotation(keep or 10, segment_bytes=parse_size_bytes(text))
    if not (rotation.segment_ns or rotation.segment_bytes):
        raise UsageError(f"--rotate {text}: a segment needs a size or a time")
    return rotation


def _trigger(text: str | None, keep_last: str | None) -> Trigger | None:
    from faultreplay.collect.recorder.keep import Trigger

    if text is None:
        if keep_last is not None:
            raise UsageError("--keep-last goes with --trigger")
        return None
    return Trigger(parse_duration_ns(text), parse_duration_ns(keep_last or "10s"))


def _trace_path(out: Path) -> Path:
    """Traces end in .trace, so that other verbs and people know them."""
    return out if out.suffix == ".trace" else out.with_name(out.name + ".trace")


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a recording normally."""

    def ask(*_: object) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_LIGHT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Libraries that recording loads start no threads of their own, which would keep privileges, and hold less memory."""
_LONG_S = 0.5
_LOSS_ADVICE = {
    "ring": "the ring was full: a larger --ring-size, or fewer --probes, may help",
    "shed": "dropped above --max-rate or --max-cpu: raise the ceiling, or leave the group out with --probes",
    "nested": "a probe fired inside another one on the same CPU: nothing helps; fewer --probes make it rarer",
    "printing": "bpftrace could not print as fast: use --backend precompiled or bcc, or fewer --probes",
}
"""By cause; only remedies that help against that cause."""


@contextmanager
def _status_line() -> Iterator[Any]:
    """Functions that show a status, and a step before it: a live line on a terminal; elsewhere lines, each once."""
    if not person_watches():
        said: set[str] = set()

        waiting: list[threading.Timer] = []

        def say_step(text: str) -> None:
            """Only what takes long is worth a line."""
            for timer in waiting:
                timer.cancel()
            waiting[:] = [threading.Timer(_LONG_S, say, [text])] if text else []
            for timer in waiting:
                timer.daemon = True
                timer.start()

        def say_once(status: RecordStatus) -> None:
            say_step("")
            for line in ("recording: Ctrl-C ends it", *_silence(status)):
                if line not in said:
                    said.add(line)
                    say(line)

        try:
            yield say_once, say_step
        finally:
            say_step("")
        return
    from faultreplay.cli.progress import steps

    with steps() as step:

        def show(status: RecordStatus) -> None:
            lost = f"{status.lost:,} LOST" if status.lost else "0 lost"
            stall = f"p99 stall {format_ns(status.p99_stall_ns)}, " if status.p99_stall_ns else ""
            gone = f"{status.dropped:,} older events deleted, " if status.dropped else ""
            step(
                f"recording {format_ns(status.elapsed_ns)}: {status.events_per_s:,.0f} events/s, "
                f"{status.events:,} events, {status.faults:,} faults, {stall}{lost}, "
                f"{format_bytes(status.bytes_written)}, {gone}{status.cpu_percent:.0f} % CPU"
                + "".join(f"; {text}" for text in _silence(status))
            )

        yield show, step


def _silence(status: RecordStatus) -> list[str]:
    return [f"no fault yet: {reason}" for reason in status.silent_because]


def _report(summary: RecordSummary) -> None:
    """What was recorded, on stderr: stdout carries data only."""

    lost = sum(summary.lost.values())
    say(
        f"recorded {summary.events:,} events in {format_ns(summary.duration_ns)} ({summary.ended_by}) "
        f"with {summary.backend}, ring {format_bytes(summary.ring_bytes)}"
    )
    say(f"recorder: {format_ns(summary.cpu_ns)} CPU, {format_bytes(summary.max_rss_bytes)} memory at most")
    if lost:
        share = lost / (summary.events + lost)
        by_probe = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.lost.items()))
        say(f"LOST {lost:,} events ({share:.2%}): {by_probe}", always=True)
        for cause, count in sorted(summary.loss_causes.items()):
            say(f"lost, {count:,}: {_LOSS_ADVICE[cause]}", always=True)
    else:
        say("lost: none")
    if summary.dropped:
        say(f"deleted again, as asked for (--rotate, --keep-last): {summary.dropped:,} older events")
    for name, reason in summary.missing.items():
        say(f"missing probe {name}: {reason}", always=True)
    for note in summary.notes:
        say(f"note: {note}")
    if summary.exit_status is not None:
        status = summary.exit_status
        say(f"command ended with {f'status {status}' if status >= 0 else f'signal {-status}'}")
    say(f"wrote {summary.path} ({format_bytes(summary.bytes_written)})")
