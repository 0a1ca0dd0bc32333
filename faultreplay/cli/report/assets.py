"""Style and script of the page, and the policy that forbids all else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FETCHES_NOTHING: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


def policy(scripts: Sequence[str]) -> str:
    """The page's content security policy: nothing is fetched, and no script runs but these, whatever a text
    contains."""
    named = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    return f"{FETCHES_NOTHING}; script-src {named}" if named else FETCHES_NOTHING


def asset(name: str) -> str:
    """The text of a file beside this module: ``page.css`` or ``page.js``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
