"""Which thread carries out a slot, and on which CPU: it sleeps, wakes as another thread, or comes back as its own."""

from __future__ import annotations

from typing import Any

from faultreplay.replay.engine.cpus import give_up, hand_over, want
from faultreplay.replay.engine.jit import part
from faultreplay.replay.engine.layout import ON, T_LEFT, T_QUEUE, T_STATE, T_WHO


@part
def rest(host: Any, slot: Any, now: Any) -> None:
    """`slot` sleeps; its CPU, if it has one, goes to whoever is next."""
    if host.th[slot, T_STATE] == ON:
        give_up(host, slot, now)


@part
def wake_up(host: Any, slot: Any, now: Any, who: Any, ns: Any) -> Any:
    """`slot` goes on as thread `who`, which wakes and has `ns` to do first; the key of its next event."""
    rest(host, slot, now)  # whoever brought it here leaves the CPU to who waits
    host.th[slot, T_QUEUE] = who % host.queues.shape[0]
    host.th[slot, T_WHO] = who
    return want(host, slot, now, ns, 0)


@part
def wake_server(host: Any, slot: Any, now: Any, q: Any, who: Any, ns: Any) -> Any:  # noqa: PLR0917
    """`slot` goes on as the server's thread `who` of run queue `q`, which wakes in `ns`: whether that takes time."""
    th = host.th
    if th[slot, T_STATE] == ON and th[slot, T_QUEUE] == q:
        hand_over(host, slot, now, who, ns)
        return True
    rest(host, slot, now)
    th[slot, T_QUEUE] = q
    th[slot, T_WHO] = who
    if ns > 0:
        want(host, slot, now, ns, 0)
    return ns > 0


@part
def come_back(host: Any, slot: Any, now: Any, who: Any) -> Any:
    """`slot`, woken, runs as thread `who`: whether it does so now."""
    th = host.th
    if th[slot, T_WHO] != who:  # a server's thread brought it here, on that thread's CPU
        rest(host, slot, now)
        th[slot, T_QUEUE] = who % host.queues.shape[0]
        th[slot, T_WHO] = who
    if th[slot, T_STATE] == ON:
        return True
    want(host, slot, now, 0, 0)
    return th[slot, T_STATE] == ON and th[slot, T_LEFT] <= 0  # it took another's CPU: it pays for that first
