"""What is replayed stays what it was, to the nanosecond: every figure of every result, or the change is meant.

Small runs of each shipped mechanism, of forty drawn mechanism files (kept in the golden file as they were drawn), of
restores with what earlier runs tell, and the workloads themselves: made ones, and those of the sample traces. An oracle
says whether figures are right (test_engine_simpy.py, test_engine_theory.py); this says that none of them moved. After a
change that is meant, say in CHANGELOG.md what moves, and run

    python tests/test_replay_pinned.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from made_mechanisms import write_mechanism
from random_runs import COSTS, NAMES, drawn_case

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.workload.faults import workload_from_faults
from faultreplay.replay.workload.reading import first_touch
from faultreplay.replay.workload.synth import SynthSpec, Think, synthesize
from faultreplay.replay.workload.synth_restore import Restore
from faultreplay.replay.workload.workload import Workload

HERE: Final = Path(__file__).parent
PINNED: Final = HERE / "golden" / "replayed.json"
SAMPLES: Final = sorted((HERE.parent / "sample-traces").glob("*.trace"))
SETTINGS: Final = (
    (None, "closed", 0), (2, "closed", 0), (None, "open", 0), (2, "closed", 1), (3, "open", 0), (3, "open", 1),
    (None, "closed", 0), (1, "closed", 0),
)  # fmt: skip
"""CPUs, loop, pinned"""
_MOST_FAULTS: Final = 220
_DRAWN: Final = 40
_NOT_PINNED: Final = {"events"}
"""how often the loop went round is no figure"""
THINK: Final = Think(20_000, exponential=True)
SPECS: Final = {
    "demand-paging": SynthSpec("demand-paging", 3, 40, THINK, seed=1),
    "constant": SynthSpec("demand-paging", 2, 5, Think(7, exponential=False), seed=1),
    "zipf": SynthSpec("zipf", 3, 60, THINK, seed=2, skew=0.8),
    "uniform": SynthSpec("zipf", 2, 30, THINK, seed=2, skew=0),
    "phases": SynthSpec("phases", 2, 30, THINK, seed=3, phases=4, quiet_ns=1_000_000),
    "restore": SynthSpec("restore", 2, 60, THINK, seed=4, restore=Restore()),
}


def _told(value: Any) -> Iterator[bytes]:
    """Everything in a record, as bytes that are the same everywhere."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name not in _NOT_PINNED:
                yield field.name.encode()
                yield from _told(getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        yield np.ascontiguousarray(value, dtype=np.int64).tobytes()
    elif hasattr(value, "items"):
        for key in value:
            yield str(key).encode()
            yield from _told(value[key])
    elif isinstance(value, int | np.integer):
        yield str(int(value)).encode()
    else:
        yield repr(value).encode()


def digest(value: Any) -> str:
    """Of a result or a workload."""
    data = hashlib.sha256()
    for part in _told(value):
        data.update(len(part).to_bytes(8, "little") + part)
    return data.hexdigest()[:12]


def _replayed(run: Any) -> str:
    try:
        return digest(run())
    except UsageError as error:
        return f"refused: {error}"


def of_mechanism(mechanism: Mechanism) -> list[str]:
    """Digests of small drawn runs, in each of `SETTINGS`."""
    found = []
    seed = 0
    for cpus, loop, pinned in SETTINGS:
        while True:
            seed += 1
            case = drawn_case(seed, mechanism, cpus, loop, pinned)
            if 20 < case.work.faults < _MOST_FAULTS:
                break
        found.append(_replayed(case.run))
    return found


def of_restore(name: str) -> list[str]:
    """Digests of one guest's restore, told what another one touched; none where the mechanism cares for neither."""
    first, second = (synthesize(replace(SPECS["restore"], seed=seed)) for seed in (4, 5))
    pages = np.unique(first.page.astype(np.int64))
    memory = ((int(pages[0]) // 512 * 512, int(pages[-1]) - int(pages[0]) // 512 * 512 + 600),)
    found = []
    for known in (Knowledge(), Knowledge(pages[::-1].copy()), Knowledge(pages, memory)):
        for options in ({}, {"cpus": 2, "pinned": True}, {"loop": "open"}):
            run = partial(simulate, second, load_mechanism(name), COSTS, seed=3, known=known, **options)
            found.append(_replayed(run))
    return found


def of_drawn(row: dict[str, Any], folder: Path) -> str:
    """Digest of a drawn mechanism file's run."""
    mechanism = load_mechanism(write_mechanism(folder, row["text"]))
    return _replayed(drawn_case(row["seed"], mechanism, row["cpus"], row["loop"], row["pinned"]).run)


def of_trace(path: Path) -> dict[str, str]:
    """Digests of what is replayed of a trace."""
    trace = open_trace(path)
    work = workload_from_faults(trace.faults(), meta=trace.meta)
    first, rest = work.split(0.4)
    found: dict[str, Workload] = {"recorded": work, "first": first, "rest": rest, "first touch": first_touch(work)}
    return {name: digest(part) for name, part in found.items()}


def pinned() -> dict[str, Any]:
    return dict(json.loads(PINNED.read_text()))


RUNS: Final = pinned() if PINNED.exists() else {"drawn": []}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_mechanisms_figures_are_pinned(name: str) -> None:
    assert of_mechanism(load_mechanism(name)) == RUNS["shipped"][name]


@pytest.mark.parametrize("name", NAMES)
def test_a_restores_figures_are_pinned(name: str) -> None:
    assert of_restore(name) == RUNS["restored"][name]


@pytest.mark.parametrize("number", range(len(RUNS["drawn"])))
def test_a_drawn_mechanisms_figures_are_pinned(number: int, tmp_path: Path) -> None:
    row = RUNS["drawn"][number]
    assert of_drawn(row, tmp_path) == row["digest"], row["text"]


@pytest.mark.parametrize("name", SPECS)
def test_made_workloads_are_pinned(name: str) -> None:
    assert digest(synthesize(SPECS[name])) == RUNS["made"][name]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.stem))
def test_workloads_of_traces_are_pinned(path: Path) -> None:
    assert of_trace(path) == RUNS["read"][path.stem]


def test_a_digest_tells_one_nanosecond_apart() -> None:
    work = synthesize(SPECS["demand-paging"])
    later = work.think_ns.copy()
    later[7] += parse_duration_ns("1ns")
    assert digest(replace(work, think_ns=later)) != digest(work) == digest(replace(work, think_ns=work.think_ns.copy()))


def _drawn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mechanism files as hypothesis draws them: those that are kept, and new ones where there are too few."""
    from drawn_mechanisms import mechanisms
    from hypothesis import HealthCheck, Phase, given, settings

    texts: list[str] = []

    @settings(max_examples=8 * _DRAWN, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(mechanisms())
    def draw(text: str) -> None:
        texts.append(text)

    if not rows:
        draw()
    chosen = sorted(set(texts), key=len)[-3 * _DRAWN :: 3]  # the longer ones say more
    for number, text in enumerate(chosen):
        cpus, loop, pinned = SETTINGS[number % len(SETTINGS)]
        rows.append({"text": text, "seed": number, "cpus": cpus, "loop": loop, "pinned": pinned})
    return rows


def main() -> None:
    """Write the golden file anew; drawn files that are kept there stay."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = [dict(row, digest=of_drawn(row, Path(folder))) for row in _drawn(RUNS["drawn"])]
    written = {
        "shipped": {name: of_mechanism(load_mechanism(name)) for name in NAMES},
        "restored": {name: of_restore(name) for name in NAMES},
        "made": {name: digest(synthesize(spec)) for name, spec in SPECS.items()},
        "read": {path.stem: of_trace(path) for path in SAMPLES},
        "drawn": drawn,
    }
    PINNED.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
