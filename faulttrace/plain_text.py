r"""Escape untrusted text: what would control a terminal, fake a line or reverse text is shown as an escape.

Names of threads and files and replies of a QEMU monitor are untrusted and may contain anything. Every output except
JSON and Parquet, which escape it themselves, writes such text through `plain`.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import polars as pl

_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of control characters, zero-width marks (such as bidi marks), surrogates (undecodable bytes of
file names), line and paragraph separators."""
_JOINERS: Final = "\u200c\u200d"  # some scripts and emoji need them; they do not control a terminal


def plain(text: str) -> str:
    r"""`text` as one line of printable characters: ESC becomes ``\x1b``, a line break ``\n``, U+202E ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _STEERING or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def plain_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with every text column through `plain`; a column is rewritten only where a value needs it."""
    import polars as pl

    for name, dtype in frame.schema.items():
        if dtype not in (pl.String, pl.Categorical, pl.Enum):
            continue
        values = frame[name].cast(pl.String).unique().drop_nulls().to_list()
        changed = {value: shown for value in values if (shown := plain(value)) != value}
        if changed:
            frame = frame.with_columns(pl.col(name).cast(pl.String).replace(changed))
    return frame
