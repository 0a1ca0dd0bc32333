"""The notes under a table: costs and their provenance, losses, what was left out, what a trace cannot show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from faultreplay.analysis.compare.blackout import Blackout
from faultreplay.analysis.compare.case import REFERENCES, Case
from faultreplay.analysis.compare.extrapolation import beyond_note
from faultreplay.analysis.compare.metrics import Metrics
from faultreplay.analysis.compare.predict import HOST_SETTINGS
from faultreplay.analysis.compare.restore_notes import restore_notes
from faultreplay.analysis.compare.served import Served
from faultreplay.analysis.compare.sources import CostSource, Origin, words_of
from faultreplay.faulttrace.slowed import slowed_words
from faultreplay.faulttrace.store import UNCHECKED
from faultreplay.faulttrace.units import format_bytes, format_ns
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import WINDOW_KINDS
from faultreplay.replay.workload.faults import NO_PROGRESS


class Charged(Protocol):
    """What a note on costs needs of a row."""

    @property
    def mechanism(self) -> str: ...  # noqa: D102
    @property
    def costs(self) -> Mapping[str, CostSource]: ...  # noqa: D102
    @property
    def borrowed(self) -> Mapping[str, CostSource]: ...  # noqa: D102


class Predicted(Charged, Protocol):
    """What a note needs of a row."""

    @property
    def warnings(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def metrics(self) -> Metrics: ...  # noqa: D102
    @property
    def result(self) -> Result: ...  # noqa: D102
    @property
    def served(self) -> Served: ...  # noqa: D102
    @property
    def sets(self) -> tuple[str, ...]: ...  # noqa: D102


def notes_of(case: Case, rows: Sequence[Predicted], blackouts: Sequence[Blackout] = ()) -> list[str]:
    """One line a fact, the ones that change how a number is read first."""
    at_hand = {r.mechanism for r in rows} | {WINDOW_KINDS[w.kind] for w in case.windows if w.kind}
    at_hand |= {b.mechanism for b in blackouts}
    return [
        *_loss_notes(case),
        *([words] if (words := slowed_words(case.trace.meta)) else []),
        *(note for note in case.workload.notes if note.startswith(NO_PROGRESS)),
        *(note for note in case.trace.notes if note != UNCHECKED),
        *_reading_notes(case, rows),
        *restore_notes(case, rows),
        *_hazard_notes(rows),
        *_window_notes(case, rows, blackouts),
        *_blackout_cost_notes(blackouts),
        *cost_notes([*rows, *blackouts]),
        *beyond_notes(case, rows, blackouts),
        *_uncontended_notes(case),
        *_trace_notes(case),
        *_row_notes(rows),
        *host_notes(case, at_hand),
        *_model_notes(case),
    ]


def beyond_notes(case: Case, rows: Sequence[Predicted], blackouts: Sequence[Blackout] = ()) -> list[str]:
    """Whether more accessors fault at once than the costs of contention were fitted with."""
    results = [row.result for row in rows if row.mechanism not in REFERENCES]
    return beyond_note(case.costs(), [*results, *(still.result for still in blackouts)])


def cost_notes(rows: Sequence[Charged]) -> list[str]:
    """Which costs come from where."""
    by_source: dict[CostSource, set[str]] = {}
    for row in rows:
        for cost, source in row.costs.items():
            by_source.setdefault(source, set()).add(cost)
    order = list(Origin)
    return [
        f"{words_of(source)}: {', '.join(sorted(by_source[source]))}"
        for source in sorted(by_source, key=lambda s: (order.index(s.origin), s.file))
    ]


def _uncontended_notes(case: Case) -> list[str]:
    share = case.uncontended_share
    if share == 1.0:
        return []
    return [
        f"costs measured in this trace contain the contention of the recording: each is taken {1 - share:.1%} "
        "shorter, so that it is not charged twice"
    ]


def _blackout_cost_notes(blackouts: Sequence[Blackout]) -> list[str]:
    effects = [
        f"{b.mechanism} {b.borrowed_effect_percent:+.1f} %"
        for b in blackouts
        if b.borrowed and b.borrowed_effect_percent is not None
    ]
    if not effects:
        return []
    return [
        "* foreign costs twice as high would change the longest stand-still of a blackout by: " + ", ".join(effects)
    ]


def _loss_notes(case: Case) -> list[str]:
    losses, events = case.trace.meta.losses, case.trace.event_rows
    by_probe = ", ".join(f"{probe} {n}" for probe, n in sorted(losses.by_probe.items()))
    return [f"losses: {losses.total} of {losses.total + events} events ({by_probe})"] if losses.total else []


def _trace_notes(case: Case) -> list[str]:
    events = case.trace.event_rows
    left = [note for note in case.workload.notes if not note.startswith(NO_PROGRESS)]
    notes = [*left, *(note for note in case.trace.notes if note == UNCHECKED)]
    if events and not case.trace.meta.losses.total:
        notes.append(f"losses: none of {events} events")
    if not case.workload.measured:
        notes.append("synthetic trace: nothing was measured, so there is nothing to compare the predictions with")
    elif case.used is None:
        notes.append("recorded mechanism: unknown (neither the trace nor its faults say): nothing to judge against")
    elif case.used.inferred:
        notes.append(f"recorded mechanism: {case.used.name}, inferred from the faults; the trace does not name it")
    if case.used and case.used.asynchronous:
        notes.append(
            f"its handler served up to {case.used.params['handlers']} faults at once: replayed as so many handlers"
        )
    if not (case.workload.accessor_kind == 0).any():
        notes.append("no vCPUs in this trace: its threads are counted in their place")
    return notes


def _reading_notes(case: Case, rows: Sequence[Predicted]) -> list[str]:
    """How the faults were read, and what of the environment that leaves open."""
    notes = []
    if case.reading == "first-touch":
        notes.append(
            f"what-if reading: the first touch of each page is taken as missing memory ({case.read_as_missing:,} of "
            f"{case.read.faults:,} faults), the others as recorded (--reading recorded: all as recorded)"
        )
    fetching = [row for row in rows if "fetch" in row.costs and row.costs["fetch"].foreign]
    if fetching:
        notes.append("this trace does not show how long content takes to arrive: give it with --fetch, as --fetch 30us")
    for row in rows:
        if row.result.params.get("memory", 0) > 0:
            notes.append(f"{row.mechanism} sends {format_bytes(row.result.params['memory'])}: the guest's memory")
    if "TCG" in case.trace.meta.host.cpu_model and any(source.foreign for row in rows for source in row.costs.values()):
        notes.append(
            "the host's own CPU is emulated (QEMU TCG), where each step takes many times as long as on hardware: "
            "foreign costs, and their ranges, are those of hardware, so rows that need them are too fast"
        )
    vcpus = [name for name in case.workload.accessor_name if name.startswith("vcpu")]
    if vcpus and not case.on_kvm:
        notes.append(
            "its vCPUs are threads that never call KVM_RUN: "
            "costs of exits and re-entries are those of another host's KVM"
        )
    if case.setup.link_bytes_per_s:
        notes.append(
            f"link: {format_bytes(case.setup.link_bytes_per_s)}/s for every row; the time of "
            f"{format_bytes(case.brought)} on it is part of the fetch and taken off it"
        )
    return notes


def _window_notes(case: Case, rows: Sequence[Predicted], blackouts: Sequence[Blackout]) -> list[str]:
    notes = []
    bound = [r.mechanism for r in rows if r.result.windows]
    if bound:
        spans = ", ".join(
            f"{format_ns(w.start_ns)}+{format_ns(w.length_ns)}{w.kind and ':'}{w.kind}" for w in case.windows
        )
        notes.append(f"windows {case.windows_from}: {spans.replace(' ', '')} (bind {', '.join(bound)})")
        if case.setup.retouch == "recorded":
            notes.append("inside windows: lower bound, a trace shows first touches only (upper: --retouch working-set)")
    if blackouts:
        notes.append(
            "blackout: a trace shows first touches only, so each row is a lower bound; at most: all memory touched so "
            "far is touched again at once; interval: over both bounds, costs and seeds, of this one window at this one "
            "moment; hazards: recorded writes inside the window that nothing stops"
        )
    if case.setup.retouch == "working-set":
        notes.append("inside windows: upper bound, all memory touched so far is taken to be touched again at once")
    return notes


def host_notes(case: Case, names: Collection[str]) -> list[str]:
    """Parameters of `names` (mechanisms, whose rules hold in windows) that the trace's kind of host set."""
    flavour = case.trace.meta.host.kvm_flavour
    notes = []
    for name, known in HOST_SETTINGS.get(flavour, {}).items():
        kept = [f"{name}.{k}={v}" for k, v in known.items() if case.setup.settings[name][k] == v]
        if kept and name in names:
            notes.append(f"as on every {flavour} host: {', '.join(kept)}")
    return notes


def _model_notes(case: Case) -> list[str]:
    setup = case.setup
    notes = []
    if setup.cpus is None:
        notes.append("host CPUs: as many as threads can run (--cpus N makes them a shared resource)")
    else:
        whose = "each vCPU and handler on one of them" if setup.pinned else "vCPUs and handlers on any of them"
        notes.append(f"host CPUs: {setup.cpus}, {whose}, scheduled as by EEVDF")
    if setup.loop == "open":
        notes.append("open loop: faults begin when they were recorded, however long the stalls before them")
    if setup.seeds > 1:
        notes.append(f"means over {setup.seeds} seeds from {setup.seed}")
    return notes


def _row_notes(rows: Sequence[Predicted]) -> list[str]:
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.mechanism not in REFERENCES and not row.served.whole:
            said.setdefault(_served_words(row.served), []).append(row.mechanism)
    return [f"served by {', '.join(names)}: {words}" for words, names in said.items()]


def _hazard_notes(rows: Sequence[Predicted]) -> list[str]:
    return [
        f"hazard: {count} writes by {kind} inside a window that {row.mechanism} does not stop"
        for row in rows
        for kind, count in row.metrics.hazards.items()
        if count
    ]


def _served_words(served: Served) -> str:
    """Which mechanism's paths served which share of the faults and of their stall."""
    faults, stall = max(served.faults, 1), max(served.stall_ns, 1)
    own = (
        f"{_percent(served.own_faults / faults)} of the faults, {_percent(served.own_stall_ns / stall)} of their stall"
    )
    others = []
    if served.fallback_faults:
        others.append(f"its fall-back {', '.join(served.fallbacks)}: {_percent(served.fallback_faults / faults)}")
    if served.recorded_faults:
        classes = ", ".join(served.recorded_classes)
        others.append(f"with the stall they had: {served.recorded_faults:,} faults ({classes})")
    return "; ".join([own, *others])


def _percent(share: float) -> str:
    percent = 100 * share
    if 99.95 <= percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %"
