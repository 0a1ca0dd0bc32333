"""How well a handful of costs, fitted at a small scale, foretell published figures at a large one: docs/scaling.md.

    python benchmarks/scaling_study.py docs/scaling.md

Costs are set on one block of James Houghton's table and the other two blocks are predicted; Peter Xu's post-copy
latencies are predicted from the two 4K rows. Figures and message ids: benchmarks/published.toml. Nothing here enters
the engine's cost tables.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import Cost, CostTable, load_costs
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.synth import SynthSpec, Think, synthesize
from faultreplay.replay.workload.workload import Workload, make_workload

HERE = Path(__file__).parent
PUBLISHED: dict[str, Any] = tomllib.loads((HERE / "published.toml").read_text(encoding="utf-8"))
MODELS = HERE / "mechanisms"
VCPUS: tuple[int, ...] = tuple(PUBLISHED["houghton"]["vcpus"])
FITTED_ON = "anon-one-uffd"
ROWS = {
    "no-userfault": "no userfault",
    "single-reader": "userfaultfd, single reader",
    "several-readers": "userfaultfd, several readers",
    "uffd-and-kvm-userfault": "userfaultfd + KVM Userfault",
    "kvm-userfault": "KVM Userfault",
}
SPREAD = 0.3
ASSUMED_MESSAGE = 2000.0
"""An idle reader is woken, ns: as in replay/costs/default.toml."""
PAGES = {2: 3000, 8: 1500, 64: 600}
"""Touched by each vCPU here; 16384 there. The rate settles after some hundreds."""


@dataclass
class Fit:
    """The ten numbers, ns. Each is set by one figure of the anonymous block; the wake of an idle reader is assumed.

    `law` says what vCPUs share in memory management. ``share``: a fault takes longer for each other vCPU in a fault.
    ``line``: they pass one server, first come first served (the shipped mechanisms with mm_servers = 1).
    """

    law: str = "share"
    host_fault: float = 2900.0
    mm_fault: float = 330.0
    exit: float = 3000.0
    place: float = 700.0
    mm_place: float = 50.0
    trap: float = 3000.0
    loop: float = 2500.0
    walk_alone: float = 7.0
    lock: float = 300.0
    walk_shared: float = 100.0
    set_by: dict[str, str] = field(default_factory=dict)


@cache
def workload(vcpus: int) -> Workload:
    return synthesize(SynthSpec("demand-paging", vcpus, PAGES[vcpus], Think(0)))


def rate(name: str, params: Mapping[str, float], costs_ns: Mapping[str, float], vcpus: int) -> float:
    """Pages/s of each vCPU."""
    spread = {k: Cost(Distribution.lognormal(v, SPREAD), "assumed", "scaling study") for k, v in costs_ns.items()}
    costs = load_costs().with_constants(fetch=0, mark_present=0, wake=0).merge(CostTable(spread))
    work = workload(vcpus)
    result = simulate(work, load_mechanism(name).with_params(params), costs)
    return work.faults / vcpus / result.run_time_ns * 1e9


def predict(block: str, row: str, fit: Fit, vcpus: int) -> float:
    """Pages/s of each vCPU under one row of the table."""
    exits = 0.0 if row == "no-userfault" else fit.exit
    both = row == "uffd-and-kvm-userfault"
    place = fit.place if both else 0.0
    shared = fit.mm_fault + (fit.mm_place if both else 0.0)
    if row in ("no-userfault", "kvm-userfault", "uffd-and-kvm-userfault"):
        if fit.law == "share":
            costs = {"host_fault": fit.host_fault, "exit_userspace": exits, "resolve": place}
            return rate(str(MODELS / "host-shared.toml"), {"share": shared}, costs, vcpus)
        params = {"mm_servers": 1, "mm_serial": shared}
        if row == "no-userfault":
            return rate("host-lazy", params, {"host_fault": fit.host_fault, "host_fault_read": fit.host_fault}, vcpus)
        costs = {"exit_userspace": exits, "mark_present": place, "reenter": fit.host_fault}
        return rate("kvm-userfault", params, costs, vcpus)
    # How many readers "several" are is not stated: one for each vCPU in all, whether on one userfaultfd or on many.
    split = block.endswith("per-vcpu")
    single = row == "single-reader"
    params = {
        "shards": vcpus if split else 1,
        "readers": 1 if single or split else vcpus,
        "walk": 0.0 if split else fit.walk_alone if single else fit.walk_shared,
    }
    costs = {
        "trap": fit.trap,
        "message": ASSUMED_MESSAGE,
        "lock": fit.lock,
        "resolve": fit.place,
        "handler_loop": fit.loop,
    }
    if fit.law == "line":
        more = {"mm_fault": fit.mm_fault, "mm_place": fit.mm_place}
        return rate(str(MODELS / "uffd-queue-lock.toml"), {**params, **more}, costs, vcpus)
    # On one userfaultfd most vCPUs are asleep while a page is placed; with one each, all of them are at it.
    more = {"share": fit.mm_fault, "place_share": fit.mm_place if split else 0.0}
    return rate(str(MODELS / "uffd-shared.toml"), {**params, **more}, costs, vcpus)


def solve(fit: Fit, name: str, block: str, row: str, vcpus: int) -> None:
    """Set `fit.name` so that one figure comes out; the nearest end where none does (a slower cost: a lower rate)."""
    target = PUBLISHED["houghton"][block][row][VCPUS.index(vcpus)]
    low, high = 1.0, 20_000.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        setattr(fit, name, middle)
        if predict(block, row, fit, vcpus) > target:
            low = middle
        else:
            high = middle
    setattr(fit, name, math.sqrt(low * high))
    fit.set_by[name] = f"{ROWS[row]}, {vcpus} vCPUs"


def fit_on_anonymous(law: str) -> Fit:
    """One cost after the other, four rounds: each is set by the figure that it moves most."""
    fit = Fit(law)
    order = [
        ("mm_fault", "no-userfault", 64),
        ("host_fault", "no-userfault", 2),
        ("exit", "kvm-userfault", 2),
        ("place", "uffd-and-kvm-userfault", 2),
        ("mm_place", "uffd-and-kvm-userfault", 64),
        ("trap", "single-reader", 2),
        ("loop", "single-reader", 8),
        ("walk_alone", "single-reader", 64),
        ("lock", "several-readers", 8),
        ("walk_shared", "several-readers", 64),
    ]
    for round_ in range(4):
        for name, row, vcpus in order:
            if round_ and name in ("mm_fault", "host_fault", "exit", "place", "mm_place"):
                continue
            solve(fit, name, FITTED_ON, row, vcpus)
    return fit


def for_block(fit: Fit, block: str, row: str) -> Fit:
    """The costs of another block: its own row at 2 vCPUs sets the cost of placing the page, nothing else."""
    if block == FITTED_ON:
        return fit
    own = Fit(**{k: v for k, v in fit.__dict__.items() if k != "set_by"})
    if row in ("no-userfault", "kvm-userfault"):
        solve(own, "host_fault", block, row, 2)
        return own
    if row == "uffd-and-kvm-userfault":
        # the fault on re-entry is that of this memory without userfault
        solve(own, "host_fault", block, "no-userfault", 2)
    solve(own, "place", block, row, 2)
    return own


def vcpu_tables(fit: Fit) -> list[str]:
    lines: list[str] = []
    for block, figures in PUBLISHED["houghton"].items():
        if not isinstance(figures, dict):
            continue
        fitted = block == FITTED_ON
        lines += ["", f"### {figures['memory']}" + (" (the costs are set here)" if fitted else " (predicted)"), ""]
        lines += ["| stall a page, us | 2 vCPUs | | | 8 vCPUs | | | 64 vCPUs | | |"]
        lines += [
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            "| | published | model | error" + " | published | model | error" * 2 + " |",
        ]
        for row in (r for r in ROWS if r in figures):
            own = for_block(fit, block, row)
            used = {v for v in (fit.set_by if fitted else {}).values()}
            cells = []
            for vcpus, there in zip(VCPUS, figures[row], strict=True):
                here = predict(block, row, own, vcpus)
                given = f"{ROWS[row]}, {vcpus} vCPUs" in used if fitted else vcpus == 2
                error = f"{100 * (there / here - 1):+.0f} %" + (" (set)" if given else "")
                cells += [f"{1e6 / there:.3g}", f"{1e6 / here:.3g}", error]
            lines.append(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    return lines


def mean_error(fit: Fit, vcpus: int) -> float:
    """Mean size of the errors of the stall in the two predicted blocks, percent."""
    sizes = []
    for block, figures in PUBLISHED["houghton"].items():
        for row in ROWS if isinstance(figures, dict) and block != FITTED_ON else ():
            if row in figures:
                here = predict(block, row, for_block(fit, block, row), vcpus)
                sizes.append(abs(figures[row][VCPUS.index(vcpus)] / here - 1))
    return 100 * sum(sizes) / len(sizes)


def cost_table(fit: Fit) -> list[str]:
    says = {
        "host_fault": "a fault that the host resolves, alone on the machine",
        "mm_fault": "one attempt at a fault, for each other vCPU in a fault",
        "exit": "KVM_RUN returns to the VMM and is called again",
        "place": "the placing ioctl",
        "mm_place": "the placing ioctl, for each other vCPU in a fault",
        "trap": "userfaultfd: the accessor's own time (exits, attempts, wake-up)",
        "loop": "the reader's own time round its loop",
        "walk_alone": "each other sleeper a wake visits, one reader",
        "lock": "each taking of the queue lock, three a fault",
        "walk_shared": "each other sleeper a wake visits, several readers",
    }
    lines = ["", "| cost | ns | what | set by |", "|---|--:|---|---|"]
    return lines + [f"| {n} | {getattr(fit, n):.0f} | {says[n]} | {fit.set_by[n]} |" for n in says]


# ---- post-copy over a link

GUEST_BYTES: int = PUBLISHED["xu"]["guest_bytes"]
BANDWIDTH = PUBLISHED["xu"]["link_bits_per_s"] / 8
SIZES = {"4K": 4 << 10, "2M": 2 << 20, "1G": 1 << 30}


@cache
def random_touches(vcpus: int, size: str) -> Workload:
    """Each vCPU touches pages of the guest at random, with 10 us between."""
    each = {"4K": 40_000, "2M": 8_000, "1G": 4_000}[size] // vcpus
    rng = np.random.default_rng(1)
    pages = rng.choice(GUEST_BYTES // 4096, size=each * vcpus, replace=False)
    streams = [
        {"think_ns": np.full(each, 10_000), "page": pages[v * each : (v + 1) * each], "name": f"vcpu{v}"}
        for v in range(vcpus)
    ]
    return make_workload(streams)


def latency_ms(variant: str, size: str, vcpus: int, *, fetch_us: float, backlog_bytes: float) -> float:
    """Mean of the stalls that were requests over the link."""
    costs = load_costs().with_constants(fetch=fetch_us * 1e3)
    shared = {"granule": SIZES[size], "bandwidth": BANDWIDTH, "handlers": 1024}
    if variant == "hgm":
        mechanism = load_mechanism("hgm").with_params({k: v for k, v in shared.items() if k != "granule"})
    elif variant == "preempt" and size != "4K":
        # A page in transit is interrupted: the request has the link to itself.
        mechanism = load_mechanism("hugetlb-1g").with_params(shared)
    else:
        more = {"memory": GUEST_BYTES, "backlog": backlog_bytes if variant == "vanilla" else 0}
        mechanism = load_mechanism("precopy-push").with_params({**shared, **more})
    result = simulate(random_touches(vcpus, size), mechanism, costs)
    reached = result.stall_ns[(result.start_ns >= 0) & (result.stall_ns > 100_000)]
    return float(reached.mean()) / 1e6 if reached.size else math.nan


def postcopy_table() -> tuple[list[str], float, float]:
    figures = PUBLISHED["xu"]["mean_ms"]
    fetch_us, backlog = 230.0, 13e6
    for _ in range(3):
        low, high = 1.0, 2000.0
        for _ in range(14):
            fetch_us = math.sqrt(low * high)
            slow = latency_ms("preempt", "4K", 1, fetch_us=fetch_us, backlog_bytes=0) > figures["preempt"]["4K"]
            low, high = (low, fetch_us) if slow else (fetch_us, high)
    low, high = 1e5, 1e9
    for _ in range(14):
        backlog = math.sqrt(low * high)
        slow = latency_ms("vanilla", "4K", 1, fetch_us=fetch_us, backlog_bytes=backlog) > figures["vanilla"]["4K"]
        low, high = (low, backlog) if slow else (backlog, high)
    lines = ["", "| | page | published, ms | 1 vCPU faults | error | 40 vCPUs fault |", "|---|---|--:|--:|--:|--:|"]
    for variant, row in figures.items():
        for size, there in row.items():
            one, many = (
                latency_ms(variant, size, v, fetch_us=fetch_us, backlog_bytes=backlog)
                for v in (1, PUBLISHED["xu"]["vcpus"])
            )
            given = " (set)" if size == "4K" else ""
            lines.append(
                f"| {variant} | {size} | {there:g} | {_three(one)} | {100 * (one / there - 1):+.0f} %{given} "
                f"| {_three(many)} |"
            )
    there = PUBLISHED["single"]["hgm_us"]["value"] / 1000
    round_trip = PUBLISHED["single"]["qemu_round_trip_us"]["value"]
    here = latency_ms("hgm", "4K", 1, fetch_us=round_trip, backlog_bytes=0)
    lines.append(
        f"| 1G filled at 4K (HGM) | 4K | about {there:g} | {here:.3g} | {100 * (here / there - 1):+.0f} % | - |"
    )
    return lines, fetch_us, backlog


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def report(explain: Callable[[str], str]) -> str:
    fit = fit_on_anonymous("share")
    line = fit_on_anonymous("line")
    postcopy, fetch_us, backlog = postcopy_table()
    about = PUBLISHED["houghton"]
    lines = [
        "# Scaling: published figures, predicted from small ones",
        "",
        "Made by `python benchmarks/scaling_study.py docs/scaling.md`; not measured here. Figures and where they come",
        "from: `benchmarks/published.toml`. The workloads are synthetic (`faultreplay synth demand-paging`), the costs",
        "below are this study's own and enter no cost table of the engine.",
        "",
        "## vCPUs that touch memory as fast as they can",
        "",
        f"{about['author']}, {about['message_id']}:",
        f"{about['title']}. {about['host']}.",
        "A stall is the inverse of the rate. Errors are of the stall: at +20 % the model is too slow. (set): this",
        "figure set a cost.",
        explain("method"),
        *cost_table(fit),
        *vcpu_tables(fit),
        "",
        "| what vCPUs share in memory management | mean error at 8 vCPUs, predicted rows | at 64 |",
        "|---|--:|--:|",
        *(
            f"| {says} | {mean_error(one, 8):.0f} % | {mean_error(one, 64):.0f} % |"
            for one, says in (
                (fit, "a cost for each other vCPU in a fault (the tables above)"),
                (line, "one server, first come first served (`mm_servers=1` of the shipped mechanisms)"),
            )
        ),
        explain("vcpus"),
        "",
        "## Post-copy: the page size over a 10 Gb/s link",
        "",
        f"{PUBLISHED['xu']['author']}, {PUBLISHED['xu']['message_id']}: {PUBLISHED['xu']['title']}. 20 GiB, 40 vCPUs.",
        f"Two numbers are set: the round trip by `preempt` at 4K ({fetch_us:.0f} us) and the backlog on the one",
        f"channel by `vanilla` at 4K ({backlog / 1e6:.1f} MB). The rest is the link, and UFFDIO_COPY at 2.3 us each 4K",
        "(published).",
        "What ran in the guest is not stated: one vCPU that faults, and all 40, are two ends.",
        *postcopy,
        explain("postcopy"),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    words = (HERE / "scaling_words.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in words.split("<!-- part: ")[1:])
    parts = {name.removesuffix(" -->"): "\n" + text.strip() for name, text in parts.items()}
    text = report(lambda name: parts[name])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
        print(f"wrote {sys.argv[1]}", file=sys.stderr)
    else:
        print(text)


if __name__ == "__main__":
    main()
