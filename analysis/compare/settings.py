"""`--set` and its like in the library: what a user sets must change something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faultreplay.analysis.compare.predict import split_choice
from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.replay.engine.windows import WINDOW_KINDS


def check_settings(
    settings: Mapping[str, Mapping[str, Any]], names: Sequence[str], window_kinds: Iterable[str]
) -> None:
    """Refuse settings of a mechanism that is not replayed: they would change nothing, without a word.

    Raises:
        UsageError: one is set that is neither among `names` nor the rule of a window.
    """
    plain = [split_choice(name)[0] for name in names]
    replayed = {*plain, *(Path(name).stem for name in plain)}
    replayed |= {WINDOW_KINDS[kind] for kind in window_kinds if kind}
    for name, values in settings.items():
        if name not in replayed:
            what = f"--set {name}.{next(iter(values))}: '{name}' is not replayed"
            raise UsageError(f"{what}:{nearest(name, sorted(replayed))} add it with -m {name}")
