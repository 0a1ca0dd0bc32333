"""Contention: nothing of it with costs of zero, to the row; and the shapes that published tables show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_mechanisms import HEAD, write_mechanism

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.language.names import CONTENTION
from faultreplay.replay.language.stages import Stage
from faultreplay.replay.workload.workload import Workload, make_workload

READY = load_costs().with_constants(fetch=0)
PLAIN = """
[params]
handlers = 1
granule = "4K"
spin = "5us"

[resources.handler]
kind = "servers"
servers = "$handlers"

[resources.sleepers]
kind = "waitqueue"

[[paths.missing]]
delay = "fault_entry"
[[paths.missing]]
sleep = "sleepers"
[[paths.missing]]
coalesce = "join"
[[paths.missing]]
acquire = "handler"
idle = "reader_wakeup"
[[paths.missing]]
delay = "fetch"
asleep = "$spin"
[[paths.missing]]
delay = "resolve"
[[paths.missing]]
delay = "resolve_per_page"
times = "further_pages"
[[paths.missing]]
wake = "wake"
from = "sleepers"
walk = "wake_per_waiter"
[[paths.missing]]
delay = "handler_loop"
[[paths.missing]]
release = "handler"
"""


def as_it_was(tmp_path: Path) -> Mechanism:
    """uffd-missing before it knew of contention."""
    return load_mechanism(write_mechanism(tmp_path, HEAD.replace('granule = "4K"', 'granule = "$granule"') + PLAIN))


def touching(vcpus: int, faults: int, think_ns: int = 0) -> Workload:
    return make_workload([{"think_ns": np.full(faults, think_ns)} for _ in range(vcpus)])


def rate(name: str, vcpus: int, costs: CostTable = READY, think_ns: int = 0, **params: float) -> float:
    """Pages/s of all vCPUs."""
    work = touching(vcpus, max(40, 3000 // vcpus), think_ns)
    return work.faults / simulate(work, load_mechanism(name).with_params(params), costs).run_time_ns * 1e9


def rows(result: Result) -> np.ndarray:
    return np.stack([result.start_ns, result.stall_ns])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    vcpus=st.integers(1, 9),
    handlers=st.integers(1, 5),
    think=st.sampled_from([500, 20_000, 200_000]),
    cpus=st.sampled_from([None, 2]),
)
def test_with_costs_of_zero_nobody_is_in_anybodys_way(  # noqa: PLR0917
    seed: int, vcpus: int, handlers: int, think: int, cpus: int | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    work = make_workload(
        [{"think_ns": rng.integers(0, think, 60), "page": rng.integers(0, 300, 60)} for _ in range(vcpus)]
    )
    costs = load_costs().without_contention().with_constants(wake_per_waiter=0)
    before = simulate(work, as_it_was(tmp_path).with_params({"handlers": handlers}), costs, seed=seed, cpus=cpus)
    now = simulate(
        work, load_mechanism("uffd-missing").with_params({"handlers": handlers}), costs, seed=seed, cpus=cpus
    )
    np.testing.assert_array_equal(rows(now), rows(before))
    assert not set(CONTENTION) - {name for name, cost in costs.items() if cost.distribution.mean == 0}


CONTENDING = ("enter", "leave", "hold")
UNCONTENDED: dict[str, Any] = dict.fromkeys(("each", "once", "takes", "contended", "cold")) | dict.fromkeys(
    ("within", "under", "readers"), ""
)
SERVING = [
    name for name in list_mechanisms() if name not in ("ideal", "as-recorded") and load_mechanism(name).window is None
]


def stripped(mechanism: Mechanism) -> Mechanism:
    """The same without a word on contention."""

    def plain(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        left = [stage for stage in stages if stage.verb not in CONTENDING]
        return tuple(
            stage if stage.verb == "around" else replace(stage, options=replace(stage.options, **UNCONTENDED))
            for stage in left
        )

    return replace(
        mechanism,
        paths={name: plain(path) for name, path in mechanism.paths.items()},
        fallback={kind: stripped(other) for kind, other in mechanism.fallback.items()},
    )


@pytest.mark.parametrize("name", SERVING)
def test_costs_of_zero_are_no_contention_in_every_shipped_mechanism(name: str) -> None:
    rng = np.random.default_rng(len(name))
    work = make_workload(
        [{"think_ns": rng.integers(0, 20_000, 60), "page": rng.integers(0, 300, 60)} for _ in range(7)]
    )
    # A cold entry is walked for wake_cold instead of wake_per_waiter: without contention neither is paid.
    costs = load_costs().without_contention().with_constants(wake_per_waiter=0)
    mechanism = load_mechanism(name)
    before = simulate(work, stripped(mechanism), costs, seed=3)
    now = simulate(work, mechanism, costs, seed=3)
    np.testing.assert_array_equal(rows(now), rows(before))


# Stage-2 faults on memory that the host has do not contend (docs/limitations.md): nothing else is left to these.
AFTER_ALL = [name for name in SERVING if any(stream.before for stream in load_mechanism(name).streams)]


@pytest.mark.parametrize("name", [name for name in SERVING if name not in AFTER_ALL])
def test_no_shipped_mechanism_grows_without_end(name: str) -> None:
    """From 64 to 256 vCPUs, each on pages of its own and with all that it can be given: less than 1.3 times as much."""
    params = load_mechanism(name).params
    # A read from swap takes 100 us, which limits 256 vCPUs, too.
    costs = READY.with_constants(swap_in=0) if name == "swap" else READY
    at = {}
    for vcpus in (64, 256):
        given = {"shards": vcpus} if "shards" in params else {"handlers": vcpus} if "handlers" in params else {}
        work = make_workload(
            [{"think_ns": np.zeros(12), "page": (np.arange(12) + 12 * vcpu) << 18} for vcpu in range(vcpus)]
        )
        result = simulate(work, load_mechanism(name).with_params(given), costs)
        at[vcpus] = work.faults / result.run_time_ns * 1e9
    assert at[256] < 1.3 * at[64]
    assert at[256] < 4.5e6


def test_one_accessor_alone_meets_no_contention(tmp_path: Path) -> None:
    work = touching(1, 300, 1_000)
    free = READY.with_constants(lock=0, mm_serial=0)
    alone = simulate(work, load_mechanism("uffd-missing"), free)
    before = simulate(work, as_it_was(tmp_path), free)
    np.testing.assert_array_equal(rows(alone), rows(before))


def test_one_userfaultfd_peaks_and_falls() -> None:
    by_vcpus = {vcpus: rate("uffd-minor", vcpus, handlers=vcpus) for vcpus in (1, 2, 4, 8, 16, 64, 256)}
    peak = max(by_vcpus, key=by_vcpus.__getitem__)
    assert 2 <= peak <= 16
    assert by_vcpus[64] < by_vcpus[peak] / 2
    assert by_vcpus[256] < by_vcpus[64]


@pytest.mark.parametrize("name", ["kvm-exit", "kvm-userfault", "host-lazy", "uffd-sigbus"])
def test_exits_and_plain_faults_saturate_at_three_to_four_million_pages(name: str) -> None:
    at = {vcpus: rate(name, vcpus) for vcpus in (1, 8, 64, 256)}
    assert at[1] < at[8] < at[64]
    assert at[64] < at[256] * 1.2
    assert 2e6 < at[256] < 4.2e6


def test_one_userfaultfd_each_does_not_scale_without_end() -> None:
    at = {vcpus: rate("uffd-sharded", vcpus, shards=vcpus) for vcpus in (1, 8, 64, 256)}
    assert at[1] < at[8] < at[64]
    assert at[256] < 1e6


def test_the_commands_of_the_issue_give_what_was_published() -> None:
    """64 vCPUs on one userfaultfd: 107 k pages/s with as many readers, 208 k with one (Houghton)."""
    assert rate("uffd-minor", 64, handlers=64) == pytest.approx(107e3, rel=0.25)
    assert rate("uffd-minor", 64, handlers=1) == pytest.approx(208e3, rel=0.25)


def test_more_readers_that_poll_are_slower_and_those_that_do_not_hardly_are() -> None:
    """Published with poll(): 249, 201, 186, 150, 89 k pages/s for 1, 2, 4, 16, 32 readers; epoll: no trend."""
    costs = READY.merge({"resolve": READY["resolve_continue"]})
    readers = (1, 2, 4, 16, 32)
    poll = dict(zip(readers, (rate("uffd-poll", 4, costs, handlers=n) for n in readers), strict=True))
    rest = [rate("uffd-missing", 4, costs, handlers=n) for n in readers[1:]]
    assert poll[2] > poll[4] > poll[16] > poll[32]
    assert poll[32] < poll[2] * 0.5
    assert max(rest) < min(rest) * 1.15
    for n, published in zip(readers, (249e3, 201e3, 186e3, 150e3, 89e3), strict=True):
        assert poll[n] == pytest.approx(published, rel=0.28), n
    assert poll[2] < 1.15 * poll[1], "a second reader gains little where each comes back under the queue's lock"


def test_a_reader_that_hands_fetches_on_has_many_under_way() -> None:
    costs = load_costs().with_constants(fetch=230_000)
    assert rate("uffd-handoff", 16, costs) > 8 * rate("uffd-missing", 16, costs)
    assert rate("uffd-handoff", 16, costs) == pytest.approx(rate("uffd-missing", 16, costs, handlers=16), rel=0.25)


BROKEN = [
    ('enter = "mm"', 'delay = "fault_entry"', "'mm' is left but not entered here"),
    ('leave = "mm"', 'delay = "fault_entry"', "'mm' is entered and never left"),
    ('leave = "mm"', 'enter = "mm"', "'mm' is entered twice"),
    ('hold = "spin"', 'hold = "mm"', "'mm' is no resource of kind lock"),
    ('takes = "lock"', 'takes = "lock"\nalso = "fault_entry"', "also and times must be given together"),
    ('takes = "lock"', 'takes = "lock"\nalso = "fault_entry"\ntimes = "granule_pages"', "for what is counted"),
    ('wake = "wake"', 'wake = "wake"\neach = "mm_share"', 'need within = "SECTION"'),
    ('wake = "wake"', 'wake = "wake"\ncontended = "lock"', 'need under = "LOCK"'),
    ('wake = "wake"', 'wake = "wake"\nunder = "spin"', "under, cold and walk need from"),
    ('leave = "mm"', 'coalesce = "join"', "would never leave the section"),
]
SOUND = f"""{HEAD}
[resources.spin]
kind = "lock"
[resources.mm]
kind = "section"
[[paths.missing]]
enter = "mm"
[[paths.missing]]
hold = "spin"
takes = "lock"
[[paths.missing]]
leave = "mm"
[[paths.missing]]
wake = "wake"
"""


@pytest.mark.parametrize(("old", "new", "reason"), BROKEN)
def test_a_broken_lock_or_section_is_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    load_mechanism(write_mechanism(tmp_path, SOUND))
    assert old in SOUND
    with pytest.raises(UsageError, match=reason):
        load_mechanism(write_mechanism(tmp_path, SOUND.replace(old, new)))
