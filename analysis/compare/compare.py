"""One trace under several mechanisms, beside what was measured. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from faultreplay.analysis.compare.alike import Question, less_than, question_of
from faultreplay.analysis.compare.blackout import BLACKOUTS, Blackout, Stillness, blackout, measured_stillness
from faultreplay.analysis.compare.case import REFERENCES, Case, loss_percent
from faultreplay.analysis.compare.judged import Judged, Trust, differences, judge
from faultreplay.analysis.compare.metrics import Metrics
from faultreplay.analysis.compare.notes import notes_of
from faultreplay.analysis.compare.predict import (
    load_with,
    mean_metrics,
    measured_metrics,
    metrics_of,
    replications,
)
from faultreplay.analysis.compare.served import Served, served, why_no_row
from faultreplay.analysis.compare.settings import check_settings
from faultreplay.analysis.compare.sources import CostSource
from faultreplay.analysis.compare.uncertainty import Doubt, Replayed, Uncertainty
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.workload import Workload

DEFAULT_MECHANISMS: Final = ("as-recorded", "uffd-missing", "kvm-exit", "ideal")
MARKED_FROM_PERCENT: Final = 1.0
Progress = Callable[[str], None]
Look = Callable[[Result], object]
"""What is to be known of a replay before its rows are dropped."""


@dataclass(frozen=True)
class Row:
    """One mechanism's prediction."""

    mechanism: str
    title: str
    params: Mapping[str, float]
    metrics: Metrics
    costs: Mapping[str, CostSource]
    cost_means_ns: Mapping[str, float]
    warnings: tuple[str, ...]
    result: Result
    served: Served = field(default_factory=Served)
    uncertainty: Uncertainty | None = None
    """None: not looked at"""
    recorded: bool = False
    """of the recorded mechanism, with nothing set otherwise: its errors are errors"""
    differs: tuple[str, ...] = ()
    """of the recorded mechanism: in what it is a what-if"""
    sets: tuple[str, ...] = ()
    """what its streams bring: words of `language.words.SETS`"""
    question: Question | None = None
    """what its stall is the stall of"""
    leaves_out: str = ""
    """what it does not do and the baseline does: then less stall is no gain, and nothing may call it better"""
    adds: str = ""
    """the other way round: what the baseline leaves out"""
    seen: object = None
    """what `compare`'s `look` returned; then `result` has no row a fault"""

    @property
    def marked(self) -> bool:
        """True when costs of other hardware matter for this row."""
        foreign = self.uncertainty.foreign if self.uncertainty else None
        return foreign is not None and foreign.high - foreign.low >= MARKED_FROM_PERCENT

    @property
    def borrowed(self) -> dict[str, CostSource]:
        """The costs of other hardware."""
        return {name: source for name, source in self.costs.items() if source.foreign}


@dataclass(frozen=True)
class Unanswered:
    """A mechanism that has no numbers for this trace, and why."""

    mechanism: str
    title: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything that `faultreplay compare` prints."""

    trace: str
    origin: str
    faults: int
    vcpus: int
    measured: Metrics
    rows: tuple[Row, ...]
    judged: Judged | None
    windows: tuple[Window, ...]
    lost_events: int
    events: int
    workload: Workload
    notes: tuple[str, ...]
    asked: tuple[str, ...] = ()
    """all mechanisms of the table on missing memory, in order, with numbers or without"""
    unanswered: tuple[Unanswered, ...] = ()
    blackouts: tuple[Blackout, ...] = ()
    blackout_measured: Stillness | None = None
    windows_from: str = ""
    what_if: tuple[str, ...] = ()
    baseline: str = ""
    """what rows are compared with; empty: nothing"""
    seed: int = 0
    others_share: float = 0.0
    """of the recorded stall, made by other processes' load"""
    first: int = 1000
    """accesses that the restores' times wait for"""

    @property
    def trust(self) -> Trust:
        """What its rows are worth."""
        return self.judged.trust if self.judged else Trust.UNJUDGED

    @property
    def loss_percent(self) -> float:
        """Lost events in percent of all that happened."""
        return loss_percent(self.lost_events, self.events)


def compare(
    case: Case,
    mechanisms: Sequence[str] = (),
    *,
    baseline: str = "",
    weigh: bool = True,
    look: Look | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Replay a trace under `mechanisms`.

    Args:
        case: from `open_case`.
        mechanisms: names or files; by default `DEFAULT_MECHANISMS` and the recorded one.
        baseline: what rows are compared with, named in the same way; by default the recorded mechanism as it was
            recorded, else the first row that is a mechanism.
        weigh: also judge the recorded mechanism against the recording, and say how sure each row is.
        look: called with each replay (of several seeds the first); then what the replay has of each fault is dropped,
            so that one replay at a time is in memory.
        progress: called with a word on each long step.

    Raises:
        UsageError: an unknown mechanism, parameter or cost; one is set for a mechanism that is not replayed; or
            `baseline` has no numbers for this trace.
    """
    step = progress or (lambda _: None)
    asked = mechanisms or [*default_names(case), *blackout_names(case, ())]
    check_settings(case.set_by_user, asked, (window.kind for window in case.windows))
    startup_ns = int(case.trace.meta.lab.get("startup_ns", 0))
    measured = measured_metrics(case.workload, case.stops, startup_ns=startup_ns, first=case.setup.first)
    loaded = [case.load(name) for name in mechanisms or default_names(case)]
    missing = [mechanism for mechanism in loaded if mechanism.window is None]
    judged, weigher = None, None
    if weigh:
        step("judging the recorded mechanism on faults held out")
        judged = judge(case)
        step("computing the baseline's interval")
        weigher = _Weigher.of(case, missing, judged, baseline)
    rows: list[Row] = []
    unanswered: list[Unanswered] = []
    for number, mechanism in enumerate(missing, 1):
        step(f"replaying {mechanism.name} ({number} of {len(missing)})")
        found = (weigher.known(mechanism) if weigher else None) or _row(mechanism, case)
        if isinstance(found, Unanswered):
            unanswered.append(found)
            continue
        row = weigher.weighed(*found) if weigher else found[0]
        rows.append(replace(row, seen=look(row.result), result=row.result.without_rows()) if look else row)
        del found, row
    still = []
    for name in blackout_names(case, mechanisms):
        step(f"replaying windows under {name}")
        one = blackout(name, case, case.costs(), weigh=weigh)
        still.append(replace(one, seen=look(one.result), result=one.result.without_rows()) if look else one)
    return Comparison(
        trace=str(case.trace.path),
        origin=str(case.trace.meta.origin),
        faults=case.workload.faults,
        vcpus=measured.vcpus,
        measured=measured,
        rows=tuple(rows),
        judged=judged,
        windows=case.windows,
        lost_events=case.trace.meta.losses.total,
        events=case.trace.event_rows,
        workload=case.workload,
        notes=tuple(notes_of(case, rows, still)),
        asked=tuple(mechanism.name for mechanism in missing),
        unanswered=tuple(unanswered),
        blackouts=tuple(still),
        blackout_measured=measured_stillness(case) if still else None,
        windows_from=case.windows_from,
        what_if=case.what_if,
        baseline=weigher.name if weigher else "",
        seed=case.setup.seed,
        others_share=case.others_share,
        first=case.setup.first,
    )


@dataclass(frozen=True)
class _Weigher:
    """Says how sure rows are, and how they differ from a baseline."""

    name: str
    question: Question | None
    doubt: Doubt
    base: tuple[Row, Replayed]

    @classmethod
    def of(cls, case: Case, mechanisms: Sequence[Mechanism], judged: Judged | None, baseline: str) -> _Weigher | None:
        """None: no mechanism has numbers."""
        found = _baseline(case, mechanisms, baseline)
        if found is None:
            return None
        base, doubt = found[1], Doubt(case, judged)
        doubt.against(base.mechanism.name, base)
        return cls(base.mechanism.name, _question_of_base(case, base), doubt, found)

    def known(self, mechanism: Mechanism) -> tuple[Row, Replayed] | None:
        """The baseline's own replay, where it is that of `mechanism`: none is made twice."""
        return self.base if self.base[1].mechanism == mechanism else None

    def weighed(self, row: Row, one: Replayed) -> Row:
        asked, mine = self.question, None if row.mechanism in REFERENCES else row.question
        words = ("", "")
        if mine and asked:
            words = less_than(mine, asked, self.name), less_than(asked, mine, row.mechanism)
        return replace(row, uncertainty=self.doubt.of(one), leaves_out=words[0], adds=words[1])


def _question_of_base(case: Case, base: Replayed) -> Question | None:
    """What the baseline's stall is the stall of; of a reference: of the recorded mechanism, where it is known."""
    if base.mechanism.name not in REFERENCES:
        return question_of(case.read, base.mechanism)
    known = case.used is not None and case.used.name in case.known
    return question_of(case.read, case.load(case.used.name)) if case.used and known else None


def _baseline(case: Case, mechanisms: Sequence[Mechanism], asked: str) -> tuple[Row, Replayed] | None:
    used = case.used
    if asked:
        found = _row(load_with(asked, case.setup, used), case)
        if isinstance(found, Unanswered):
            raise UsageError(f"--baseline {asked}: {found.reason}")
        return found
    if used is not None and used.name in case.known and case.reading == "recorded":
        mechanism = load_with(used.name, replace(case.setup, settings={}), used)
        found = _row(mechanism, case)
        if not isinstance(found, Unanswered):
            return found
    choices = (mechanism for mechanism in mechanisms if mechanism.name not in REFERENCES)
    tried = (_row(mechanism, case) for mechanism in choices)
    return next((found for found in tried if not isinstance(found, Unanswered)), None)


def blackout_names(case: Case, mechanisms: Sequence[str]) -> list[str]:
    """The rows of the blackout table: the mechanisms requested, and the kinds of the windows, recorded or requested.

    Where no mechanism was named and there are windows, all that are shipped.
    """
    if not mechanisms:
        return list(BLACKOUTS) if any(w.kind for w in case.windows) else []
    asked = [name for name in mechanisms if load_with(name, case.setup, case.used).window is not None]
    of_windows = [WINDOW_KINDS[w.kind] for w in case.windows if w.kind]
    return list(dict.fromkeys((*asked, *of_windows)))


def default_names(case: Case) -> list[str]:
    """What is compared by default: the default mechanisms and the recorded one."""
    from faultreplay.replay.language.mechanism import list_mechanisms

    used = case.used
    names = [n for n in DEFAULT_MECHANISMS if case.workload.measured or n != "as-recorded"]
    mine = load_with(used.name, case.setup, used) if used and used.name in list_mechanisms() else None
    if case.reading == "recorded" and used and used.name not in names and mine and served(case.read, mine).own_faults:
        names.insert(1, used.name)
    return names


def _row(mechanism: Mechanism, case: Case) -> tuple[Row, Replayed] | Unanswered:
    setup, workload = case.setup, case.read
    is_used = case.used is not None and mechanism.name.split(":")[0] == case.used.name
    as_it_was = mechanism.name == "as-recorded"
    if as_it_was:
        workload = case.workload
    if reason := why_no_row(case, mechanism):
        return Unanswered(mechanism.name, mechanism.title, reason)
    stops = case.stops if as_it_was else None
    costs = case.costs()
    windows = case.windows_of(mechanism.name)
    results = replications(workload, mechanism, costs, setup, windows)
    first = results[0]
    sources = case.sources(first.costs_used)
    differs = differences(case, mechanism) if is_used else ()
    row = Row(
        mechanism=mechanism.name,
        title=mechanism.title,
        params=dict(mechanism.values),
        metrics=mean_metrics([metrics_of(result, workload, stops, setup.first) for result in results]),
        costs=sources,
        cost_means_ns={cost: costs[cost].distribution.mean for cost in sources},
        warnings=first.warnings,
        result=first,
        served=served(workload, mechanism, first),
        recorded=is_used and not differs and case.workload.measured,
        differs=differs,
        sets=tuple(stream.set for stream in mechanism.streams),
        question=question_of(workload, mechanism),
    )
    return row, Replayed(mechanism, costs, windows, first)
