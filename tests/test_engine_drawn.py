"""Mechanisms of every kind of stage together, any workload, any options: each fault ends once, all books add up.

The engine checks each run itself and refuses one that loses a fault or is busier than it can be; nothing that is drawn
here may be refused, and a second call must give the same to the last bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_mechanisms import mechanisms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_mechanisms import write_mechanism
from random_runs import drawn_case, run_and_check

from faultreplay.replay.language.mechanism import load_mechanism

OPTIONS = {
    "text": mechanisms(),
    "seed": st.integers(0, 1 << 30),
    "cpus": st.sampled_from((None, None, 1, 2, 3, 5)),
    "loop": st.sampled_from(("closed", "open")),
    "pinned": st.booleans(),
}
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def _one(folder: Path, text: str, seed: int, cpus: int | None, loop: str, pinned: bool) -> None:  # noqa: PLR0917
    mechanism = load_mechanism(write_mechanism(folder, text))
    case = drawn_case(seed, mechanism, cpus, loop, pinned)
    name = f"seed {seed} {case.options}\n{text}"
    first = run_and_check(case, name)
    assert not first.startswith("refused"), f"{first}\n{name}"
    assert run_and_check(case, name) == first, name


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(**OPTIONS)
def test_every_stage_kind_together_loses_no_fault(  # noqa: PLR0917
    tmp_path: Path, text: str, seed: int, cpus: int | None, loop: str, pinned: bool
) -> None:
    _one(tmp_path, text, seed, cpus, loop, pinned)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=QUIET, phases=[Phase.explicit, Phase.generate])
@given(**OPTIONS)
def test_five_thousand_drawn_mechanisms(  # noqa: PLR0917
    tmp_path: Path, text: str, seed: int, cpus: int | None, loop: str, pinned: bool
) -> None:
    _one(tmp_path, text, seed, cpus, loop, pinned)
