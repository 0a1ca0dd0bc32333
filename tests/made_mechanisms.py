"""Small mechanism files for tests."""

from __future__ import annotations

from pathlib import Path

HEAD = """title = "t"
stands_for = "a test"
source = "here"
limits = "all"
granule = "4K"
"""
"""What every file must say before its resources and paths."""


def pool_path(*between: str) -> str:
    """`[[paths.missing]]` through the resource `pool`: `between`, then acquire, resolve, release, wake."""
    stages = (*between, 'acquire = "pool"', 'delay = "resolve"', 'release = "pool"')
    return "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)


def write_mechanism(tmp_path: Path, text: str, name: str = "m.toml") -> Path:
    """A file of `text` to be loaded."""
    path = tmp_path / name
    path.write_text(text)
    return path
