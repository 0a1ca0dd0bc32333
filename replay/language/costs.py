"""Costs as data: a table from cost name to distribution, each with where its value comes from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.units import LONGEST_NS, parse_duration_ns
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.names import CONTENTION, COST_NAMES, current_name
from faultreplay.replay.language.reading import TomlFile, shown

__all__ = ["COST_NAMES", "PROVENANCES", "Cost", "CostTable", "Distribution", "list_costs", "load_costs", "save_costs"]

PROVENANCES: Final = ("published", "derived", "measured-host", "measured-trace", "assumed")
"""``derived``: worked out from published figures (a difference, a share, a fit), which are not this cost itself."""
COSTS_DIR: Final = Path(__file__).parent.parent / "costs"
_HEAD: Final = ("title", "host", "date", "kvm_flavour", "fingerprint")
_ON_CPU: Final = ("on_idle_cpu", "on_busy_cpu")
_KEYS: Final = frozenset(
    {"value", "median", "sigma", "quantiles", "provenance", "source", "n", "low", "high", *_ON_CPU}
)
_MOST_POINTS: Final = 10_000
_MOST_SAMPLES: Final = 1 << 53


@dataclass(frozen=True)
class Cost:
    """One cost: how long, and how we know."""

    distribution: Distribution
    provenance: str
    source: str
    n: int = 0
    """samples behind it; 0 when that is not known"""
    on_idle_cpu: Distribution | None = None
    """of a thread that was woken: where the CPU it got was idle; used where host CPUs are counted"""
    on_busy_cpu: Distribution | None = None
    """the same from getting a CPU that another thread had, so without the wait for it"""
    low: float = 0.0
    """with `high`: the range, ns, that holds the cost's mean nine times in ten; both 0 where that is not known"""
    high: float = 0.0


class CostTable(Mapping[str, Cost]):
    """Cost name -> `Cost`. Immutable; `merge` makes a new one."""

    def __init__(
        self,
        costs: Mapping[str, Cost],
        name: str = "",
        kvm_flavour: str = "",
        fingerprint: str = "",
        *,
        shipped: bool = False,
        fitted_to: int = 0,
    ) -> None:
        for key, cost in costs.items():
            if key not in COST_NAMES:
                raise UsageError(f"unknown cost '{key}':{_known(key)}")
            if cost.provenance not in PROVENANCES:
                raise UsageError(f"cost '{key}': provenance '{cost.provenance}' is none of {', '.join(PROVENANCES)}")
        self._costs = dict(costs)
        self.name = name
        self.kvm_flavour = kvm_flavour
        """of the hosts it was measured on (vmx, svm, pvm); empty: of no one kind"""
        self.fingerprint = fingerprint
        """of the host it was measured on (`faulttrace.meta.fingerprint_of`); empty: not known"""
        self.shipped = shipped
        """comes with faultreplay"""
        self.fitted_to = fitted_to
        """up to how many simultaneous accessors the costs of contention were fitted; 0: unknown"""

    def __getitem__(self, key: str) -> Cost:
        return self._costs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._costs)

    def __len__(self) -> int:
        return len(self._costs)

    def merge(self, *others: Mapping[str, Cost]) -> CostTable:
        """A table in which later ones win."""
        merged = dict(self._costs)
        for other in others:
            merged.update(other)
        fitted = [table.fitted_to for table in others if isinstance(table, CostTable) and table.fitted_to]
        return CostTable(merged, self.name, fitted_to=fitted[-1] if fitted else self.fitted_to)

    def with_distributions(self, distributions: Mapping[str, Distribution]) -> CostTable:
        """The table with other values for some costs, which keep their provenance, source and range."""
        return self.merge({k: replace(self._costs[k], distribution=v) for k, v in distributions.items()})

    def without_contention(self) -> CostTable:
        """The table with the costs of contention (`names.CONTENTION`) set to 0."""
        return self.with_constants(**dict.fromkeys(CONTENTION, 0))

    def with_constants(self, **ns: float) -> CostTable:
        """The table with some costs set to constants of `ns`, marked as assumed."""
        return self.merge({k: Cost(Distribution.constant(v), "assumed", "set by the caller") for k, v in ns.items()})


def _known(name: str) -> str:
    return f"{nearest(name, COST_NAMES)} the costs are {', '.join(COST_NAMES)}"


def list_costs() -> list[str]:
    """Names of the shipped cost files."""
    return sorted(path.stem for path in COSTS_DIR.glob("*.toml"))


def load_costs(name_or_path: str | Path = "default") -> CostTable:
    """A shipped cost table by name, or a user's file.

    Raises:
        UsageError: no such table, or the file breaks the format; the message names file, line and key.
    """
    text = str(name_or_path)
    return _shipped(text) if "/" not in text and not text.endswith(".toml") else _load(text, Path(text))


@functools.lru_cache
def _shipped(name: str) -> CostTable:
    return _load(name, COSTS_DIR / f"{name}.toml", shipped=True)


def _load(text: str, path: Path, *, shipped: bool = False) -> CostTable:
    try:
        file = TomlFile.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"no cost table '{text}': shipped are {', '.join(list_costs())}; or give a .toml file"
        ) from None
    for key in file.data:
        if key not in (*_HEAD, "fitted_to", "costs"):
            known = ", ".join((*_HEAD, "fitted_to"))
            raise file.fail(f"unknown key '{key}': a cost file has {known}, [costs.NAME]", key)
    for key in _HEAD:
        if key != "date":  # TOML has dates of its own
            file.words(file.data.get(key, ""), key)
    costs: dict[str, Cost] = {}
    for key, entry in file.table(file.data.get("costs", {}), "costs").items():
        name = current_name(key, file.place("costs", key))
        if name in costs:
            raise file.fail(f"'{name}' is given twice, once under its former name", "costs", key)
        costs[name] = _cost(file, key, name, entry)
    flavour, fingerprint = (file.data.get(key, "") for key in ("kvm_flavour", "fingerprint"))
    fitted_to = file.whole(file.data.get("fitted_to", 0), 0, 1 << 20, "fitted_to")
    return CostTable(costs, path.stem, flavour, fingerprint, shipped=shipped, fitted_to=fitted_to)


def shipped_for(kvm_flavour: str) -> tuple[CostTable, ...]:
    """The shipped tables that were measured on hosts of this kind of KVM, in order of name."""
    tables = (load_costs(name) for name in list_costs())
    return tuple(table for table in tables if table.kvm_flavour and table.kvm_flavour == kvm_flavour)


def save_costs(
    costs: CostTable,
    path: Path,
    *,
    title: str,
    host: str = "",
    date: str = "",
    kvm_flavour: str = "",
    fingerprint: str = "",
    fitted_to: int = 0,
) -> None:
    """Write `costs` as a file that `load_costs` reads back."""
    lines = [f"title = {_quoted(title)}", f"host = {_quoted(host)}", f"date = {_quoted(date)}"]
    more = {"kvm_flavour": kvm_flavour, "fingerprint": fingerprint}
    lines += [f"{key} = {_quoted(value)}" for key, value in more.items() if value]
    lines += [f"fitted_to = {fitted_to}"] if fitted_to else []
    for name, cost in costs.items():
        lines += ["", f"[costs.{name}]", *_distribution_lines(cost.distribution)]
        parts = {key: getattr(cost, key) for key in _ON_CPU}
        lines += [f"{key} = {_points(part)}" for key, part in parts.items() if part is not None]
        if cost.high:
            lines += [f"low = {cost.low!r}", f"high = {cost.high!r}"]
        lines += [f"provenance = {_quoted(cost.provenance)}", f"source = {_quoted(cost.source)}", f"n = {cost.n}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cost(file: TomlFile, key: str, name: str, entry: Any) -> Cost:
    place = ("costs", key)
    if name not in COST_NAMES:
        raise file.fail(f"cost '{name}': unknown name;{_known(name)}", *place)
    if not isinstance(entry, dict):
        raise file.fail("must be a table with value (or median and sigma, or quantiles), provenance and source", *place)
    for part in entry:
        if part not in _KEYS:
            raise file.fail(f"unknown key '{part}'; known are {', '.join(sorted(_KEYS))}", *place, part)
    provenance = entry.get("provenance")
    if provenance not in PROVENANCES:
        raise file.fail(f"provenance must be one of {', '.join(PROVENANCES)}", *place, "provenance")
    source = file.words(entry.get("source", ""), *place, "source")
    if not source.strip():
        raise file.fail("source must say where the figure comes from", *place, "source")
    shapes = [part for part in ("value", "median", "quantiles") if part in entry]
    if len(shapes) != 1:
        raise file.fail("give exactly one of value, median (with sigma) or quantiles", *place)
    if "sigma" in entry and shapes != ["median"]:
        raise file.fail("sigma goes with median", *place, "sigma")
    n = file.whole(entry.get("n", 0), 0, _MOST_SAMPLES, *place, "n")
    try:
        if "value" in entry:
            distribution = Distribution.constant(_ns(entry["value"]))
        elif "median" in entry:
            distribution = Distribution.lognormal(_ns(entry["median"]), _number(entry.get("sigma", 0)))
        else:
            distribution = _table("quantiles", entry["quantiles"])
        idle, busy = (_table(part, entry[part]) if part in entry else None for part in _ON_CPU)
        low, high = _range(entry, distribution.mean)
    except UsageError as error:
        raise file.fail(str(error), *place) from None
    return Cost(distribution, provenance, source, n, idle, busy, low, high)


def _range(entry: Mapping[str, Any], mean: float) -> tuple[float, float]:
    """`low` and `high` of an entry; 0 and 0 where it states none."""
    if "low" not in entry and "high" not in entry:
        return 0.0, 0.0
    if "low" not in entry or "high" not in entry:
        raise UsageError("low and high go together")
    low, high = _ns(entry["low"]), _ns(entry["high"])
    if not 0 < low <= high <= LONGEST_NS:
        raise UsageError(f"low must be above 0, high neither below it nor above {LONGEST_NS:g} ns (11 days): "
                         f"they are {low:g} and {high:g} ns")  # fmt: skip
    if not low <= mean <= high:
        raise UsageError(f"the mean, {mean:g} ns, is not between low and high")
    return low, high


def _table(key: str, points: Any) -> Distribution:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise UsageError(f"{key} must be a list of [share, time], as [[0, '1us'], [1, '9us']]")
    if len(points) > _MOST_POINTS:
        raise UsageError(f"{key} has {len(points)} points: at most {_MOST_POINTS}")
    return Distribution.from_quantiles([(_number(p), _ns(v)) for p, v in points])


def _ns(value: Any) -> float:
    return float(parse_duration_ns(value)) if isinstance(value, str) else _number(value)


def _number(value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise UsageError(f"{shown(value)} is not a number")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def _distribution_lines(distribution: Distribution) -> list[str]:
    first, second = distribution.knots[0]
    if distribution.kind == "constant":
        return [f"value = {second!r}"]
    if distribution.kind == "lognormal":
        return [f"median = {first!r}", f"sigma = {second!r}"]
    return [f"quantiles = {_points(distribution)}"]


def _points(distribution: Distribution) -> str:
    return "[" + ", ".join(f"[{p!r}, {ns!r}]" for p, ns in distribution.knots) + "]"
