"""Every shipped mechanism without storage equals the simpy model row by row: both loops, shared pages, the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_model import Model
from test_engine_cpus_shipped import NAMES, SERVERS, cause_of

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.workload.workload import Workload, make_workload

COSTS = load_costs().with_constants(
    **{name: 211_003 + 97_021 * n + 1_013 * n**2 + 17 * n**3 for n, name in enumerate(COST_NAMES)}
    | {"fetch": 30_011_017}
)
"""A thousand times the real ones, and no two sums alike: two events on one instant are all but impossible."""
PUSHED = [name for name in list_mechanisms() if load_mechanism(name).push]


def random_workload(seed: int, accessors: int, faults: int, mechanism: Mechanism, shared: bool, kind: str) -> Workload:  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    streams: list[dict[str, Any]] = []
    for a in range(accessors):
        pages = rng.integers(0, accessors * faults // 3 + 1, faults) if shared else rng.permutation(faults) + a * faults
        streams.append(
            {
                "think_ns": rng.integers(1, 3_000_000_000, faults) // rng.integers(1, 100),
                "access": rng.integers(0, 3, faults),
                "recorded_stall_ns": rng.integers(0, 1_000_000_000, faults),
                "cause": cause_of(mechanism),
                "page": pages,
                "kind": kind,
            }
        )
    return make_workload(streams)


def assert_equal(work: Workload, mechanism: Mechanism, loop: str) -> None:
    result = simulate(work, mechanism, COSTS, loop=loop)
    model = Model(work, mechanism, COSTS).run(loop)
    np.testing.assert_array_equal(result.start_ns, model.start)
    np.testing.assert_array_equal(result.stall_ns, model.stall)
    if result.latency_ns.size:
        np.testing.assert_array_equal(result.latency_ns, model.latency)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loop", ["closed", "open"])
@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_mechanism_equals_simpy(name: str, loop: str, shared: bool) -> None:
    mechanism = load_mechanism(name)
    for servers in (1, 3):
        mechanism = mechanism.with_params({key: servers for key in SERVERS if key in mechanism.params})
        assert_equal(random_workload(servers, 6, 60, mechanism, shared, "vcpu"), mechanism, loop)


@pytest.mark.parametrize("kind", ["vcpu", "vmm"])
@pytest.mark.parametrize("backlog", [0, 40_000])
@pytest.mark.parametrize("loop", ["closed", "open"])
@pytest.mark.parametrize("name", PUSHED)
def test_the_background_stream_equals_simpy(name: str, loop: str, backlog: int, kind: str) -> None:
    """Its pages, those that faults ask for, and faults that meet a page on its way, on one link."""
    slow = {"bandwidth": 999_983, "backlog": backlog, "handlers": 2}
    mechanism = load_mechanism(name).with_params(slow)
    for shared in (False, True):
        assert_equal(random_workload(5, 6, 60, mechanism, shared, kind), mechanism, loop)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(NAMES + PUSHED),
    accessors=st.integers(1, 6),
    loop=st.sampled_from(["closed", "open"]),
    shared=st.booleans(),
    servers=st.integers(1, 4),
    bandwidth=st.sampled_from([0, 999_983, 99_999_989]),
    seed=st.integers(0, 10_000),
)
def test_drawn_workloads_of_shipped_mechanisms_equal_simpy(  # noqa: PLR0917
    name: str, accessors: int, loop: str, shared: bool, servers: int, bandwidth: int, seed: int
) -> None:
    mechanism = load_mechanism(name)
    if "bandwidth" in mechanism.params and (bandwidth or not mechanism.push):
        mechanism = mechanism.with_params({"bandwidth": bandwidth})
    mechanism = mechanism.with_params({key: servers for key in SERVERS if key in mechanism.params})
    assert_equal(random_workload(seed, accessors, 30, mechanism, shared, "vcpu"), mechanism, loop)
