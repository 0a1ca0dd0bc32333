"""Mechanism files: all shipped ones are sound; a broken one is refused with file, line and reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_mechanisms import HEAD, pool_path, write_mechanism

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

GOOD = f"""{HEAD}
[params.handlers]
default = 1
min = 1
max = 8
unit = "threads"
help = "h"

[resources.pool]
kind = "servers"
servers = "$handlers"

[resources.queue]
kind = "waitqueue"

"""
GOOD += pool_path('delay = "fault_entry"\nlabel = "again"') + '[[paths.missing]]\nwake = "wake"\n'


def test_the_pattern_of_the_refusals_is_itself_accepted(tmp_path: Path) -> None:
    mechanism = load_mechanism(write_mechanism(tmp_path, GOOD))
    assert [stage.verb for stage in mechanism.paths["missing"]] == ["delay", "acquire", "delay", "release", "wake"]
    assert [stage.line for stage in mechanism.paths["missing"]] == [22, 25, 27, 29, 31]


REFUSED = [
    ('granule = "4K"', 'granule = "4K"\ncolour = 3', 6, "colour", "unknown key"),
    ('unit = "threads"', 'unit = "threads"\nhue = 1', 12, "params.handlers.hue", "unknown key"),
    ('servers = "$handlers"', 'servers = "$handlers"\nsize = 2', 17, "resources.pool.size", "unknown key"),
    ('acquire = "pool"', 'acquire = "pool"\nspeed = 1', 26, "paths.missing.2.speed", "unknown key"),
    ('release = "pool"', 'delay = "fault_entry"', 25, "paths.missing", "'pool' is acquired and never released"),
    ('acquire = "pool"', 'delay = "fault_entry"', 29, "paths.missing", "'pool' is released but not held"),
    ('[[paths.missing]]\nwake = "wake"\n', "", 1, "paths.missing", "missing wake"),
    ('wake = "wake"', 'wake = "wake"\n[[paths.missing]]\nwake = "0ns"', 33, "paths.missing", "a second wake"),
    ('delay = "resolve"', 'delay = "-5us"', 27, "paths.missing.3.delay", "negative cost"),
    ('delay = "resolve"', "delay = -5", 27, "paths.missing.3.delay", "negative cost"),
    ('delay = "resolve"', "delay = 5", 27, "paths.missing.3.delay", "has no unit"),
    ('delay = "resolve"', 'delay = "resolv"', 27, "paths.missing.3.delay", "unknown cost 'resolv'"),
    ('delay = "resolve"', 'delay = "$speed"', 27, "paths.missing.3.delay", "unknown parameter '$speed'"),
    ("default = 1", "default = 9", 8, "params.handlers.default", "9 is out of bounds: 1 to 8 threads"),
    ("min = 1", "min = 9", 9, "params.handlers.min", "min 9 is above max 8"),
    ('kind = "waitqueue"', 'kind = "heap"', 18, "resources.queue", "kind must be one of"),
    ('acquire = "pool"', 'acquire = "queue"', 25, "paths.missing.2.acquire", "no resource of kind servers"),
    ('acquire = "pool"', 'sleep = "queue"', 29, "paths.missing", "released but not held"),
    ('delay = "resolve"', 'sleep = "queue"', 27, "paths.missing", 'the wake has no from = "queue"'),
    ('wake = "wake"', 'wake = "wake"\nfrom = "queue"', 31, "paths.missing", "this path does not sleep"),
    ('delay = "resolve"', 'retry = "again"\nchance = 2\nmost = 3', 28, "paths.missing.3.chance", "not between 0 and 1"),
    ('delay = "resolve"', 'retry = "agan"\nchance = 0.1\nmost = 3', 27, "paths.missing", "no label above"),
    ('delay = "resolve"', 'retry = "again"\nchance = 0.1', 26, "paths.missing.3", "missing 'most'"),
    ('delay = "resolve"', 'delay = "resolve"\ntimes = "sheep"', 28, "paths.missing.3.times", "'sheep' is none of"),
    ('delay = "resolve"', 'delay = "resolve"\nwhen = "noon"', 28, "paths.missing.3.when", "'noon' is none of"),
    ('delay = "resolve"', 'says = "nothing"', 26, "paths.missing.3", "exactly one of"),
    (
        '[[paths.missing]]\ndelay = "fault_entry"',
        '[[paths.lost]]\nwake = "0ns"\n[[paths.missing]]\ndelay = "fault_entry"',
        21,
        "paths.lost",
        "unknown class",
    ),
    ('granule = "4K"', 'granule = "4K"\nserves = ["cat"]', 6, "serves", "'cat' is no accessor"),
    (
        'granule = "4K"',
        'granule = "4K"\n[fallback]\nvcpu = "ideal"',
        7,
        "fallback.vcpu",
        "served by this mechanism and falls back",
    ),
    ('granule = "4K"', 'granule = "-4K"', 5, "granule", "is not a size"),
    ('granule = "4K"', 'granule = "4K"\n[window]\nstops = ["dog"]', 7, "window.stops", "'dog' is no accessor"),
    ('granule = "4K"', 'granule = "4K"\n[window]\nenter = ["kick * pages"]', 7, "window.enter", "touched_pages only"),
    ('title = "t"\n', "", 1, "file", "missing 'title'"),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "place", "reason"), REFUSED, ids=[f"{r[3]}-{n}" for n, r in enumerate(REFUSED)]
)
def test_a_broken_file_is_refused_with_place_and_reason(  # noqa: PLR0917
    old: str, new: str, line: int, place: str, reason: str, tmp_path: Path
) -> None:
    assert old in GOOD
    path = write_mechanism(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_mechanism(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: {place}") or message.startswith(f"{path}: {place}"), message
    assert reason in message
    assert "\n" not in message


def test_a_cycle_of_fall_backs_is_refused_and_shown(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        text = GOOD.replace(
            'granule = "4K"', f'granule = "4K"\nserves = ["vcpu"]\n[fallback]\nvmm = "{tmp_path}/{other}.toml"'
        )
        write_mechanism(tmp_path, text, f"{name}.toml")
    with pytest.raises(UsageError, match="cycle: a -> b -> c -> a"):
        load_mechanism(tmp_path / "a.toml")


def test_not_toml_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not TOML"):
        load_mechanism(write_mechanism(tmp_path, "= 3"))
    with pytest.raises(UsageError, match=r"no mechanism 'uffd': did you mean 'uffd-wp'\? shipped are"):
        load_mechanism("uffd")


def test_parameters_are_checked_and_read_with_units() -> None:
    mechanism = load_mechanism("uffd-missing").with_params({"granule": "2M", "bandwidth": "1G", "handlers": 3})
    assert mechanism.granule_bytes == 2 << 20
    assert mechanism.values["bandwidth"] == 1 << 30
    with pytest.raises(UsageError, match=r"uffd-missing\.handlers: 0 is out of bounds: 1 to 4096 threads"):
        mechanism.with_params({"handlers": 0})
    with pytest.raises(UsageError, match=r"no parameter 'hands': did you mean 'handlers'\? it has handlers, granule"):
        mechanism.with_params({"hands": 1})
    other = load_mechanism("kvm-exit").with_params({"fallback.handlers": 7})
    assert other.fallback["vmm"].values["handlers"] == 7


NAMES = """
uffd-missing uffd-minor uffd-sharded uffd-sigbus uffd-wp kvm-exit kvm-userfault kvm-notify-wait kvm-notify-external
async-pf swap host-lazy mmio-exit hugetlb-1g hugetlb-2m hgm guest-memfd prefetch-working-set precopy-push pause-only
freeze uffd-handoff uffd-poll memslot-destroy uffd-wp-freeze as-recorded ideal
file-private file-private-prefetch restore-copy uffd-handler-process uffd-fault-around hugetlb-2m-file prefault-all
prefetch-before prefetch-beside
"""
EXPECTED = set(NAMES.split())


def mixed(seed: int = 1) -> Workload:
    rng = np.random.default_rng(seed)

    def stream(kind: str) -> dict[str, object]:
        return {
            "think_ns": rng.integers(1_000, 200_000, 300), "page": rng.integers(0, 2_000, 300), "kind": kind,
            "recorded_stall_ns": rng.integers(5_000, 90_000, 300), "access": rng.integers(0, 2, 300),
        }  # fmt: skip

    return make_workload([stream("vcpu") for _ in range(4)] + [stream("vmm"), stream("kernel")])


def test_the_mechanisms_of_the_discussion_are_all_there() -> None:
    assert set(list_mechanisms()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_shipped_mechanism_says_what_it_is_and_ends_every_fault_once(name: str) -> None:
    mechanism = load_mechanism(name)
    assert mechanism.title
    assert mechanism.stands_for
    assert all(mechanism.source)
    assert all(mechanism.limits)
    work = mixed()
    result = simulate(work, mechanism, load_costs(), seed=4)
    assert (result.start_ns >= 0).all()
    assert (result.stall_ns >= 0).all()
    assert result.accessor_faults.sum() == work.faults
    ideal = simulate(work, load_mechanism("ideal"), load_costs())
    assert result.run_time_ns >= ideal.run_time_ns
    for use in result.resources.values():
        assert use.busy_ns >= 0
        if use.kind == "servers" and use.servers:
            assert use.busy_ns <= use.servers * use.instances * (result.run_time_ns + 1_000_000_000)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_no_mechanism_depends_on_the_order_in_which_accessors_are_listed(name: str) -> None:
    """Reversed accessors: the same faults (costs are constant, as randomness depends on the fault's number)."""
    table = load_costs()
    table = table.with_constants(**{key: round(cost.distribution.mean) for key, cost in table.items()})
    rng = np.random.default_rng(2)
    streams = [{"think_ns": rng.integers(10_000, 900_000_000, 50), "recorded_stall_ns": rng.integers(1, 10**6, 50),
                "page": np.arange(50) + 50 * a} for a in range(3)]  # fmt: skip
    mechanism = load_mechanism(name)
    there = simulate(make_workload(streams), mechanism, table)
    back = simulate(make_workload(streams[::-1]), mechanism, table)
    np.testing.assert_array_equal(there.stall_ns.reshape(3, 50), back.stall_ns.reshape(3, 50)[::-1])


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_workload_without_missing_content_is_replayed_too(name: str) -> None:
    """A stream that brings content has nothing to bring to stage-2 faults and writes to protected memory."""
    work = make_workload(
        [
            {"think_ns": [1_000] * 5, "cause": cause, "page": range(5), "recorded_stall_ns": [2_000] * 5}
            for cause in ("stage2", "write-protect")
        ]
    )
    result = simulate(work, load_mechanism(name), load_costs(), seed=4)
    assert result.accessor_faults.sum() == work.faults
    assert (result.stall_ns >= 0).all()


def test_a_stream_of_untouched_memory_needs_no_content_fault() -> None:
    mechanism = load_mechanism("prefetch-working-set").with_params({"memory": "1M"})
    work = make_workload([{"think_ns": [10_000_000], "cause": "stage2", "recorded_stall_ns": [2_000]}])
    result = simulate(work, mechanism, load_costs())
    assert result.resources["link"].bytes_moved == 1 << 20
