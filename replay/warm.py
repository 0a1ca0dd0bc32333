"""The engine compiled, or its cache loaded, before processes are started that would each do so."""

from __future__ import annotations

from replay.costs import load_costs
from replay.engine import simulate
from replay.mechanism import load_mechanism
from replay.workload import make_workload


def warm_engine() -> None:
    """Replay one fault."""
    simulate(make_workload([{"think_ns": [0]}]), load_mechanism("ideal"), load_costs())
