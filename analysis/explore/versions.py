"""What must be the same on every worker: the tool's version, mechanism files, cost tables, options."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.sources import load_cost_files
from faultreplay.replay.language.filed import filed_dir
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism


def version() -> str:
    """The tool's version, part of each key."""
    try:
        return metadata.version("faultreplay")
    except metadata.PackageNotFoundError:
        return "unknown"


def fingerprint(setup: Setup, windows: tuple[tuple[int, int, str], ...], fit: bool) -> str:
    """A hash of the version, the cost tables and all that decides how a trace is replayed."""
    costs, _ = load_cost_files(setup.cost_files)
    filed = [path.read_text(encoding="utf-8") for path in sorted(filed_dir().glob("*.toml"))]
    table = {name: [repr(cost.distribution), cost.provenance] for name, cost in costs.items()}
    how: list[Any] = [setup.reading, setup.fetch_ns, setup.link_bytes_per_s, list(setup.vcpu_threads)]
    how += [setup.loop, setup.retouch, setup.cpus, setup.pinned, setup.seed, setup.seeds, windows, fit]
    return hash_of([version(), table, filed, how, setup.settings])


def mechanism_text(mechanism: Mechanism) -> list[str]:
    """The text of its file, of the one that it extends, and of those that it falls back on."""
    text = Path(mechanism.file).read_text(encoding="utf-8")
    base = tomllib.loads(text).get("extends")
    below = [mechanism_text(load_mechanism(str(base)))] if base else []
    below += [mechanism_text(other) for _, other in sorted(mechanism.fallback.items())]
    return [text, *(line for lines in below for line in lines)]


def hash_of(what: Any) -> str:
    """A hash of anything that JSON, or its own words, can tell."""
    return hashlib.blake2b(as_json(what).encode(), digest_size=12).hexdigest()


def as_json(what: Any) -> str:
    """The same text for the same content."""
    return json.dumps(what, sort_keys=True, separators=(",", ":"), default=str)
