"""The engine compiled, or its cache loaded, before processes are started that would each do so."""

from __future__ import annotations

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import make_workload


def warm_engine() -> None:
    """Replay one fault."""
    simulate(make_workload([{"think_ns": [0]}]), load_mechanism("ideal"), load_costs())
