"""Several VMs on one storage device: against queueing theory, and nothing but the device is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.engine.several import together
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

ROOT = Path(__file__).resolve().parent.parent
NOTHING = Knowledge()
COSTS = load_costs()
FLAT = COSTS.with_constants(**{name: 1_000 for name in COSTS})


def vms(*works: Workload, known: Knowledge = NOTHING) -> tuple[Workload, Knowledge]:
    return together([(f"vm{n}", work, known) for n, work in enumerate(works)])


def touches(count: int, rng: np.random.Generator, vcpus: int = 2, first: int = 1 << 30) -> Workload:
    pages = [first + rng.permutation(4 * count)[:count] + 10_000 * n for n in range(vcpus)]
    return make_workload(
        [
            {"think_ns": rng.integers(0, 50_000, count), "page": page, "access": rng.integers(0, 2, count)}
            for page in pages
        ]
    )


def test_poisson_reads_of_many_vms_are_an_m_d_1_queue() -> None:
    """Each VM alone hardly waits; together they load the device to 0.7."""
    load, latency, each, count = 0.7, 100_000, 2_000, 20
    rng = np.random.default_rng(3)
    works = []
    for _ in range(count):
        arrivals = np.cumsum(rng.exponential(latency * count / load, each)).astype(np.int64)
        streams = [{"think_ns": [int(t)], "page": [n * 64], "access": "r"} for n, t in enumerate(arrivals)]
        works.append(make_workload(streams))
    mechanism = load_mechanism("file-private").with_params({"queue_depth": 1, "storage_bandwidth": 0, "readahead": 0})
    costs = COSTS.with_constants(**dict.fromkeys(COSTS, 0) | {"storage_read": latency})
    workload, _ = vms(*works)
    result = simulate(workload, mechanism, costs)
    expected = load * latency / (2 * (1 - load))
    assert result.stall_ns.mean() - latency == pytest.approx(expected, rel=0.07)
    alone = simulate(works[0], mechanism, costs).stall_ns.mean() - latency
    assert alone < 0.03 * latency
    assert result.resources["disk"].acquired == each * count


@pytest.mark.parametrize("name", ["uffd-handler-process", "uffd-fault-around", "prefetch-beside", "file-private"])
@pytest.mark.parametrize("costs", [FLAT, COSTS])
def test_where_the_device_is_idle_each_vm_is_as_alone(name: str, costs: Any) -> None:
    """Handlers, locks, sections and streams are each VM's own: nothing else may couple them."""
    rng = np.random.default_rng(1)
    works = [touches(150, rng), touches(150, rng, vcpus=3, first=5 << 20), touches(40, rng, vcpus=1)]
    constant = costs.with_constants(**{n: round(c.distribution.mean) for n, c in costs.items()})
    mechanism = load_mechanism(name).with_params({"cached": 1})
    workload, known = vms(*works)
    result = simulate(workload, mechanism, constant, known=known)
    alone = [simulate(work, mechanism, constant) for work in works]
    assert result.stall_ns.tolist() == np.concatenate([one.stall_ns for one in alone]).tolist()
    assert result.start_ns.tolist() == np.concatenate([one.start_ns for one in alone]).tolist()


@pytest.mark.parametrize("name", ["file-private", "uffd-handler-process", "prefetch-before", "restore-copy"])
def test_on_one_device_they_wait_for_each_other(name: str) -> None:
    rng = np.random.default_rng(2)
    works = [touches(100, rng, vcpus=1) for _ in range(4)]
    memory = Knowledge(memory=((1 << 30, 1024),))
    mechanism = load_mechanism(name).with_params({"queue_depth": 1, "storage_bandwidth": 10**8})
    workload, known = vms(*works, known=memory)
    result = simulate(workload, mechanism, COSTS, known=known)
    alone = [simulate(work, mechanism, COSTS, known=memory) for work in works]
    assert result.bytes_moved == sum(one.bytes_moved for one in alone)
    assert result.resources["disk"].acquired == sum(one.resources["disk"].acquired for one in alone)
    took = [int(one.stall_ns.sum()) + one.restored.startup_ns for one in (result, *alone)]  # type: ignore[union-attr]
    assert took[0] > 1.5 * max(took[1:])


def test_pages_keep_their_place_in_ranges_and_vms_lie_apart() -> None:
    one = make_workload([{"think_ns": [0, 0], "page": [(1 << 40) + 3, (1 << 40) + 700], "access": "r"}])
    two = make_workload([{"think_ns": [0], "page": [5], "access": "r"}])
    workload, known = vms(one, two, known=Knowledge(working_set=np.array([7])))
    block = (64 << 20) // 4096
    assert (workload.page % block).tolist() == [3, 700, 5]
    assert workload.vm_of_page(workload.page).tolist() == [0, 0, 1]
    assert workload.vm_of_accessor().tolist() == [0, 1]
    assert workload.vm_of_page(known.working_set).tolist() == [0, 1]  # type: ignore[arg-type]


def test_shards_of_several_vms_are_refused() -> None:
    work = make_workload([{"think_ns": [0], "page": [1], "access": "r"}])
    workload, _ = vms(work, work)
    sharded = load_mechanism("uffd-sharded").with_params({"shards": 2})
    with pytest.raises(UsageError, match="shards=1"):
        simulate(workload, sharded, COSTS)
    with pytest.raises(UsageError, match="two and more"):
        vms(work)


def test_the_command_tells_each_vms_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (str(ROOT / f"sample-traces/restore-firmware-hot-{n}.trace") for n in (1, 2))
    asked = ["replay", one, "--beside", two, "--page-cache", "none", "--storage", "1ms,10MB/s,1"]
    assert _exit_code([*asked, "-m", "file-private,prefetch-before", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["records"]
    assert [row["mechanism"] for row in rows] == ["file-private"] * 2 + ["prefetch-before"] * 2
    assert all(row["last_ns"] > row["alone_last_ns"] for row in rows)
    for wrong, words in (
        (["-m", "uffd-missing"], "nothing to share"),
        (["-m", "file-private", "--cpus", "2"], "--cpus"),
    ):
        assert _exit_code([*asked, *wrong]) == 2
        assert words in capsys.readouterr().err
