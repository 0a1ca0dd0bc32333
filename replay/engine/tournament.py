"""A tournament tree over slots: the least key is at the root, a change mends one path."""

from __future__ import annotations

from typing import Any

from faultreplay.replay.engine.jit import inline


@inline
def set_key(tree: Any, leaves: Any, slot: Any, key: Any) -> None:
    """Put `key` in the leaf of `slot` and mend the path to the root."""
    i = leaves + slot
    tree[i] = key
    while i > 1:
        key = min(key, tree[i ^ 1])
        i >>= 1
        tree[i] = key
