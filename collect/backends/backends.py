"""Choosing a backend, and keeping one attached between recordings.

Compiling takes a second or two and detaching about 50 ms a probe (the kernel waits for all CPUs each time), so a
series of recordings runs inside `kept_attached`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from faultreplay.collect.backends.backend import Backend, Key
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.errors import MissingFeature, UsageError

ORDER: Final = ("precompiled", "bcc", "bpftrace")
"""What ``auto`` tries, the lightest first."""

_STEPS: Final = {
    "precompiled": "loading the precompiled programs and attaching them",
    "bcc": "compiling the programs with BCC and attaching them (2 to 9 s)",
    "bpftrace": "looking what bpftrace can attach to",
}
_parked: dict[Key, Backend] = {}
_parking = 0


def acquire_backend(key: Key, on_step: Callable[[str], None] = lambda _: None) -> Backend:
    """A backend without targets, its probes attached; `on_step` gets what is being tried.

    Raises:
        UsageError: no such backend or group.
        MissingFeature: the host lacks what it needs.
    """
    parked = _parked.pop(key, None)
    if parked is not None:
        parked.resume()
        return parked
    backend = _open(key, on_step)
    backend.key = key
    return backend


def _open(key: Key, on_step: Callable[[str], None]) -> Backend:
    name, groups, ring_bytes, wanted = key
    if name in ORDER:
        on_step(_STEPS[name])
        return _make(name, groups, ring_bytes, wanted)
    if name != "auto":
        raise UsageError(f"no backend '{name}': choose auto, {', '.join(ORDER)}")
    without: list[str] = []
    for candidate in ORDER:
        on_step(_STEPS[candidate])
        try:
            backend = _make(candidate, groups, ring_bytes, wanted)
        except MissingFeature as error:
            without.append(f"{candidate}: {error}")
            continue
        if without:
            backend.why = f"{candidate}, because {'; '.join(without)}"
        return backend
    raise MissingFeature(f"no way to run the probes: {'; '.join(without)}")


def _make(name: str, groups: tuple[str, ...], ring_bytes: int, wanted: Filter) -> Backend:
    if name == "precompiled":
        from faultreplay.collect.backends.precompiled_backend import PrecompiledBackend

        return PrecompiledBackend(groups, ring_bytes, wanted)
    if name == "bcc":
        from faultreplay.collect.backends.bcc_backend import BccBackend

        return BccBackend(groups, ring_bytes, wanted)
    from faultreplay.collect.backends.bpftrace_backend import BpftraceBackend

    return BpftraceBackend(groups, ring_bytes, wanted)


def release_backend(backend: Backend) -> None:
    """Detach, or inside `kept_attached` park for the next recording of the same kind."""
    if _parking and backend.reusable and backend.key not in _parked:
        backend.pause()
        _parked[backend.key] = backend
    else:
        backend.free()


@contextmanager
def kept_attached() -> Iterator[None]:
    """Recordings inside the body share attached probes; the last one out detaches them."""
    global _parking  # noqa: PLW0603  (one per process, as the probes are)
    _parking += 1
    try:
        yield
    finally:
        _parking -= 1
        if not _parking:
            while _parked:
                _parked.popitem()[1].free()
