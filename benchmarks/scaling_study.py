"""docs/scaling.md: published tables under the shipped mechanisms and costs, and the questions of the thread.

    python benchmarks/scaling_study.py docs/scaling.md          # a minute or two

The costs are those of replay/costs/default.toml. `--fit` fits its eight host costs anew and prints them.
Figures and message ids: benchmarks/published.toml. Which mechanism a row is: benchmarks/scaling_law.py.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scaling_law as law
from scaling_law import BLOCKS, PUBLISHED, ROWS, VCPUS, Setup
from scaling_postcopy import postcopy_table

from faultreplay.replay.language.costs import CostTable, load_costs

HERE = Path(__file__).parent
OWN = {
    "no-userfault": ("host_fault", "host_fault_minor"),
    "kvm-userfault": ("exit_userspace",),
    "uffd-and-kvm-userfault": ("exit_userspace",),
    "single-reader": ("fault_entry",),
    "several-readers": ("fault_entry",),
}
"""What a row's own 2-vCPU figure sets, where a block is predicted from the others."""


def vcpu_tables(costs: CostTable) -> tuple[list[str], dict[str, float]]:
    """Every published figure, the model with the shipped costs, and the prediction without this block."""
    there = law.figures()
    lines: list[str] = []
    worst = {"fit": 0.0, "prediction": 0.0}
    for block, entries in BLOCKS.items():
        others = law.fit(costs, law.figures([b for b in BLOCKS if b != block]), rounds=1)
        lines += ["", f"### {entries['memory']}", ""]
        lines += ["| thousand pages/s of each vCPU |" + " published | fit | error | predicted | error |" * 3]
        lines += ["|---|" + "--:|" * 15]
        for row in (r for r in ROWS if r in entries):
            own = law.fit(others, {(block, row, 2): there[block, row, 2]}, OWN[row], rounds=6)
            cells = []
            for vcpus in VCPUS:
                figure = there[block, row, vcpus]
                cells.append(f"**{figure / 1e3:.3g}**")
                for kind, table in (("fit", costs), ("prediction", own)):
                    here = law.rate(law.setup(block, row, vcpus), vcpus, table)
                    error = here / figure - 1
                    given = kind == "prediction" and vcpus == 2
                    if not given:
                        worst[kind] = max(worst[kind], abs(error))
                    cells += [f"{here / 1e3:.3g}", "(own)" if given else f"{100 * error:+.0f} %"]
            lines.append(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    return lines, worst


def readers_table(costs: CostTable) -> list[str]:
    """More readers on one userfaultfd, 4 vCPUs: the shipped costs, nothing fitted."""
    figures = PUBLISHED["moorthy"]
    lines = ["", "| k pages/s in all, readers | " + " | ".join(str(n) for n in figures["readers"]) + " |"]
    lines += ["|---|" + "--:|" * len(figures["readers"])]
    for name, mechanism in (("poll", "uffd-poll-minor"), ("epoll", "uffd-minor")):
        lines.append(f"| {name}, published | " + " | ".join(str(k) for k in figures[name]) + " |")
        here = [4 * law.rate(Setup(mechanism, "missing", {"handlers": n}), 4, costs) for n in figures["readers"]]
        lines.append(f"| {name}, model | " + " | ".join(f"{k / 1e3:.0f}" for k in here) + " |")
    return lines


LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FETCHES_US = (0, 30, 230)


def contenders(vcpus: int) -> dict[str, Setup]:
    """What is compared: the best that each can be given at this number of vCPUs."""
    return {
        "one userfaultfd, one reader": Setup("uffd-minor", "missing", {"handlers": 1}),
        "one userfaultfd, a reader each vCPU": Setup("uffd-minor", "missing", {"handlers": vcpus}),
        "one userfaultfd each vCPU": Setup("uffd-sharded-minor", "missing", {"shards": vcpus, "handlers": 1}),
        "KVM exit": Setup("kvm-exit-minor", "missing", {}),
        "KVM Userfault": Setup("kvm-userfault", "minor", {}),
        "no userfault": Setup("host-lazy", "minor", {}),
    }


def ladder(costs: CostTable, fetch_us: int) -> dict[str, list[float]]:
    """Thousand pages/s of all vCPUs, by contender, over `LADDER`."""
    costs = costs.with_constants(fetch=fetch_us * 1000)
    out: dict[str, list[float]] = {}
    for vcpus in LADDER:
        for name, what in contenders(vcpus).items():
            out.setdefault(name, []).append(law.rate(what, vcpus, costs, keep_fetch=True) * vcpus / 1e3)
    return out


def crossing(rows: dict[str, list[float]], better: str, than: str) -> str:
    """From how many vCPUs on `better` makes half as many pages again, at every step of the ladder."""
    ahead = [b > 1.5 * t for b, t in zip(rows[better], rows[than], strict=True)]
    first = next((n for n in range(len(ahead)) if all(ahead[n:])), None)
    return "never" if first is None else f"from {LADDER[first]} on"


def ends(costs: CostTable) -> list[CostTable]:
    """The shipped costs, and all costs of contention at the low and at the high end of what is known of hosts."""
    names = ("lock_contended", "mm_once", "mm_share", "mm_serial_contended", "wake_cold", "herd_per_reader")
    low = costs.with_constants(**{name: costs[name].low for name in names})
    high = costs.with_constants(**{name: costs[name].high for name in names})
    return [costs, low, high]


def questions(costs: CostTable) -> list[str]:
    """The thread's questions, each as a table."""
    lines = ["", "### From how many vCPUs on", ""]
    lines += ["the one makes half as many pages again as the other, and more. By less, an exit is ahead everywhere."]
    lines += ["In brackets: with the costs of contention at the low and high ends of their ranges.", ""]
    pairs = (
        ("KVM exit", "one userfaultfd, one reader"),
        ("KVM exit", "one userfaultfd, a reader each vCPU"),
        ("one userfaultfd each vCPU", "one userfaultfd, a reader each vCPU"),
        ("KVM exit", "one userfaultfd each vCPU"),
    )
    rows = [[ladder(table, us) for table in ends(costs)] for us in FETCHES_US]
    lines += [
        "| is ahead | of | " + " | ".join(f"{us} us behind the fault" for us in FETCHES_US) + " |",
        "|---|---|---|---|---|",
    ]
    for better, than in pairs:
        cells = []
        for tables in rows:
            found = [crossing(table, better, than) for table in tables]
            cells.append(f"{found[0]} ({found[1]}; {found[2]})")
        lines.append(f"| {better} | {than} | " + " | ".join(cells) + " |")
    for us, tables in zip(FETCHES_US, rows, strict=True):
        lines += ["", f"### 1 to 256 vCPUs, {us} us behind the fault: thousand pages/s in all", ""]
        lines += ["| vCPUs | " + " | ".join(str(n) for n in LADDER) + " |", "|---|" + "--:|" * len(LADDER)]
        lines += [f"| {name} | " + " | ".join(f"{k:.0f}" for k in row) + " |" for name, row in tables[0].items()]
    return lines + best_readers(costs) + no_walk(costs)


def best_readers(costs: CostTable) -> list[str]:
    """How many readers of one userfaultfd are best."""
    lines = ["", "### When more readers harm", "", "| vCPUs | " + " | ".join(f"{us} us" for us in FETCHES_US) + " |"]
    lines += ["|--:|---|---|---|"]
    for vcpus in (2, 8, 64):
        cells = []
        for us in FETCHES_US:
            table = costs.with_constants(fetch=us * 1000)
            counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= vcpus]
            rates = [
                law.rate(Setup("uffd-minor", "missing", {"handlers": n}), vcpus, table, keep_fetch=True) * vcpus / 1e3
                for n in counts
            ]
            best = int(np.argmax(rates))
            cells.append(f"best {counts[best]}: {rates[best]:.0f} k/s; with {counts[-1]}: {rates[-1]:.0f} k/s")
        lines.append(f"| {vcpus} | " + " | ".join(cells) + " |")
    return lines


def no_walk(costs: CostTable) -> list[str]:
    """A wake that walks no sleepers (Peter Xu's series of 2023 looks up the waiters of one page)."""
    lines = ["", "### What a wake that walks no sleepers would be worth", ""]
    lines += ["| vCPUs, a reader each | with the walk, k/s | without | gain |", "|--:|--:|--:|--:|"]
    without = costs.with_constants(wake_per_waiter=0, wake_cold=0)
    for vcpus in (8, 64, 256):
        what = Setup("uffd-minor", "missing", {"handlers": vcpus})
        walk, none = (law.rate(what, vcpus, table) * vcpus / 1e3 for table in (costs, without))
        lines.append(f"| {vcpus} | {walk:.0f} | {none:.0f} | {none / walk:.1f} x |")
    return lines


def cost_table(costs: CostTable) -> list[str]:
    """The eight fitted costs."""
    lines = ["", "| cost | mean, ns | low to high | where it is from |", "|---|--:|---|---|"]
    for name in law.FITTED:
        cost = costs[name]
        lines.append(f"| {name} | {cost.distribution.mean:.0f} | {cost.low:.0f} to {cost.high:.0f} | {cost.source} |")
    return lines


def report(explain: Callable[[str], str]) -> str:
    """The whole page."""
    costs = load_costs()
    tables, worst = vcpu_tables(costs)
    postcopy, fetch_us, backlog = postcopy_table()
    about = PUBLISHED["houghton"]
    lines = [
        "# Scaling: published figures under the shipped mechanisms",
        "",
        "What this is for: to see how far replays for many vCPUs can be trusted, and what they say about the",
        "mailing list's questions. Made by `python benchmarks/scaling_study.py docs/scaling.md`; not measured here.",
        "Figures and where they come from: `benchmarks/published.toml`. Mechanisms and costs are the shipped ones:",
        "`faultreplay models show uffd-minor` draws the model of the tables.",
        "",
        "## vCPUs that touch memory as fast as they can",
        "",
        f"{about['author']}, {about['message_id']}:",
        f"{about['title']}. {about['host']}.",
        explain("method"),
        *cost_table(costs),
        "",
        f"**fit**: the shipped costs; largest error {100 * worst['fit']:.0f} %. **predicted**: the eight costs",
        "fitted to the two other blocks, and one cost (`host_fault`, `exit_userspace` or `fault_entry`) set by the",
        f"row's 2-vCPU figure; largest error {100 * worst['prediction']:.0f} %. Errors are of the rate: at +20 %"
        " the model is too fast.",
        *tables,
        explain("vcpus"),
        "",
        "## More readers on one userfaultfd",
        *readers_table(costs),
        explain("readers"),
        "",
        "## Questions of the thread",
        *questions(costs),
        explain("questions"),
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
    """Write the page, or fit the costs."""
    if "--fit" in sys.argv:
        fitted = law.fit(load_costs(), law.figures(), rounds=8)
        print({name: round(fitted[name].distribution.mean) for name in (*law.FITTED, "wake", "reenter")})
        return
    words = (HERE / "scaling_words.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in words.split("<!-- part: ")[1:])
    parts = {name.removesuffix(" -->"): "\n" + text.strip() for name, text in parts.items()}
    wrap = runpy.run_path(str(HERE.parent / "scripts" / "docs" / "wrap.py"))
    text = wrap["wrapped"](report(lambda name: parts[name]))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
        print(f"wrote {sys.argv[1]}", file=sys.stderr)
    else:
        print(text)


if __name__ == "__main__":
    main()
