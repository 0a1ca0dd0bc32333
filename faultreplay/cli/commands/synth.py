"""`faultreplay synth`: a synthetic trace, for scaling studies beyond this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from faultreplay.cli.options import MOST_CPUS, SEED, Finite, NewPath, gathered

_KINDS = ("demand-paging", "zipf", "phases", "restore")


@dataclass(frozen=True)
class _Given:
    """What the command line says."""

    kind: str
    vcpus: int
    pages: int
    think: str
    seed: int
    skew: float
    phases: int
    quiet: str
    run: int
    jaccard: float
    next_page: float
    ramp: str
    writes: float
    memory: str
    output: Path
    force: bool


@click.command(name="synth")
@click.argument("kind", type=click.Choice(_KINDS))
@click.option("--vcpus", type=click.IntRange(1, MOST_CPUS), default=8, show_default=True)
@click.option("--pages", type=click.IntRange(1), default=16384, show_default=True, help="Accesses of each vCPU.")
@click.option("--think", default="20us", show_default=True, help="Before each access: 20us or exp:20us.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--skew", type=Finite(0, 10), default=1.0, show_default=True, help="zipf: chance of page k is k^-SKEW.")
@click.option("--phases", type=click.IntRange(1), default=4, show_default=True, help="phases: bursts of each vCPU.")
@click.option("--quiet", default="10ms", show_default=True, help="phases: pause between two bursts.")
@click.option("--run", type=click.IntRange(1, 1000), default=1, show_default=True, help="restore: which run.")
@click.option("--jaccard", type=Finite(0, 1), default=0.927, show_default=True, help="restore: of two runs' pages.")
@click.option("--next-page", type=Finite(0, 0.99), default=0.086, show_default=True, help="restore: share of touches.")
@click.option(
    "--ramp",
    default="300ms:0.5,750ms:0.98,1s:1",
    show_default=True,
    help="restore: when which share is touched, without stalls.",
)
@click.option("--writes", type=Finite(0, 1), default=0.5, show_default=True, help="restore: share of touches.")
@click.option("--memory", default="0", help="restore: the guest's. Default: ten times what a run touches.")
@click.option("-o", "--output", type=NewPath(), required=True, help="Trace to write, NAME.trace.")
@click.option("--force", is_flag=True, help="Write over an existing trace.")
@gathered(_Given)
def command(given: _Given) -> None:  # noqa: D103 - the help text is below
    from faultreplay import __version__
    from faultreplay.cli.render import say
    from faultreplay.faulttrace.units import parse_duration_ns, parse_size_bytes
    from faultreplay.replay.workload.synth import PAGE_BYTES, SynthSpec, Think, write_synthetic
    from faultreplay.replay.workload.synth_restore import Restore, parse_ramp

    spec = SynthSpec(
        given.kind,
        given.vcpus,
        given.pages,
        Think.parse(given.think),
        given.seed,
        given.skew,
        given.phases,
        parse_duration_ns(given.quiet),
        Restore(
            given.run,
            given.jaccard,
            given.next_page,
            parse_ramp(given.ramp),
            given.writes,
            parse_size_bytes(given.memory) // PAGE_BYTES,
        ),
    )
    faults = write_synthetic(spec, given.output, version=__version__, force=given.force)
    say(f"wrote {given.output}: {faults} synthetic faults of {given.vcpus} vCPUs, seed {given.seed}")


command.help = """Make a synthetic trace, marked as such wherever it is shown.

demand-paging: each vCPU touches its own region, page by page. zipf: all vCPUs share one memory, some pages are far
more popular; a fault is a vCPU's first touch of a page. phases: demand paging in bursts with a pause between them.
restore: a guest resumes from a snapshot; two runs of one seed have the pages in common that --jaccard says.

Nothing was measured: there is no stall in it, only who touches what and when.
"""
