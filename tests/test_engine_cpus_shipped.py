"""Every shipped mechanism on host CPUs equals `cpu_paths` row by row; those with storage or streams: other tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cpu_paths import CpuPaths
from hypothesis import given, settings
from hypothesis import strategies as st

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.workload.workload import Workload, make_workload

COSTS = load_costs().with_constants(
    **{name: 211 + 97 * number for number, name in enumerate(COST_NAMES)}
    | {"fetch": 30_011, "resolve": 6_007, "preempt": 1_709}
)
"""All different, some of them long enough to be preempted in (5 us) or to be slept through."""
SERVERS = ("handlers", "tasks", "readers", "placers")


def without_storage(mechanism: Mechanism) -> bool:
    verbs = {stage.verb for path in mechanism.paths.values() for stage in path}
    return not verbs & {"read", "around"} and not mechanism.streams and not mechanism.push


NAMES = [name for name in list_mechanisms() if without_storage(load_mechanism(name))]


def cause_of(mechanism: Mechanism) -> str:
    return next(name for name in ("missing", "write-protect") if name in mechanism.paths)


def random_workload(seed: int, accessors: int, faults: int, scale: int, mechanism: Mechanism, shared: bool) -> Workload:  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    streams: list[dict[str, Any]] = []
    for a in range(accessors):
        own = rng.permutation(faults) + a * faults
        streams.append(
            {
                "think_ns": rng.integers(1, scale, faults),
                "access": rng.integers(0, 3, faults),
                "recorded_stall_ns": rng.integers(0, 30_000, faults),
                "cause": cause_of(mechanism),
                "page": rng.integers(0, accessors * faults // 3 + 1, faults) if shared else own,
            }
        )
    return make_workload(streams)


def assert_equal(work: Workload, mechanism: Mechanism, cpus: int, pinned: bool) -> None:
    paths = CpuPaths(work, mechanism, COSTS, cpus, pinned)
    model = paths.run()
    result = simulate(work, mechanism, COSTS, cpus=cpus, pinned=pinned)
    np.testing.assert_array_equal(result.start_ns, model.start)
    np.testing.assert_array_equal(result.stall_ns, model.stall)
    if result.latency_ns.size:
        np.testing.assert_array_equal(result.latency_ns, paths.latency)
    assert result.resources["cpus"].busy_ns == model.host.worked


def test_only_mechanisms_with_storage_or_a_stream_are_left_out() -> None:
    left = set(list_mechanisms()) - set(NAMES)
    assert left == {
        "file-private", "file-private-prefetch", "hugetlb-2m-file", "precopy-push", "prefault-all", "prefetch-before",
        "prefetch-beside", "prefetch-working-set", "restore-copy", "uffd-fault-around", "uffd-handler-process",
    }  # fmt: skip


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_mechanism_on_cpus_equals_the_model(name: str, shared: bool, pinned: bool) -> None:
    mechanism = load_mechanism(name)
    for cpus, servers in ((1, 1), (2, 2), (3, 3)):
        mechanism = mechanism.with_params({key: servers for key in SERVERS if key in mechanism.params})
        work = random_workload(cpus, 5, 60, 200_000, mechanism, shared)
        assert_equal(work, mechanism, cpus, pinned)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    accessors=st.integers(1, 6),
    cpus=st.integers(1, 4),
    pinned=st.booleans(),
    shared=st.booleans(),
    servers=st.integers(1, 3),
    scale=st.sampled_from([20, 20_000, 400_000, 9_000_000]),  # 20: many events at one instant
    seed=st.integers(0, 10_000),
)
def test_drawn_workloads_of_shipped_mechanisms_equal_the_model(  # noqa: PLR0917
    name: str, accessors: int, cpus: int, pinned: bool, shared: bool, servers: int, scale: int, seed: int
) -> None:
    mechanism = load_mechanism(name)
    mechanism = mechanism.with_params({key: servers for key in SERVERS if key in mechanism.params})
    assert_equal(random_workload(seed, accessors, 30, scale, mechanism, shared), mechanism, cpus, pinned)
