"""Costs that `calibrate --lab` filed for this user: one file a kind of host, found by the host's fingerprint."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from faultreplay.replay.language.costs import CostTable, load_costs


def filed_dir() -> Path:
    """`$XDG_CONFIG_HOME/faultreplay/costs`, or `~/.config/faultreplay/costs`.

    Under sudo it is the directory of the user who called it, who will compare traces without sudo.
    """
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else _home() / ".config") / "faultreplay" / "costs"


def filed_path(fingerprint: str) -> Path:
    """The file of hosts with this fingerprint; it need not exist."""
    return filed_dir() / f"{fingerprint}.toml"


def filed_costs(fingerprint: str) -> CostTable | None:
    """The costs that were filed on a host with this fingerprint, if there are any.

    Raises:
        UsageError: the file breaks the format.
    """
    if not fingerprint or not filed_path(fingerprint).is_file():
        return None
    return load_costs(filed_path(fingerprint))


def hand_over(path: Path) -> None:
    """Under sudo, give `path` and the folders made for it to the user who called it."""
    owner = _caller()
    if owner is None or os.environ.get("XDG_CONFIG_HOME"):
        return
    home = Path(owner.pw_dir)
    for part in (path, *path.parents):
        if part == home or home not in part.parents:
            return
        with contextlib.suppress(OSError):
            os.chown(part, owner.pw_uid, owner.pw_gid)


def _home() -> Path:
    owner = _caller()
    return Path(owner.pw_dir) if owner else Path.home()


def _caller() -> pwd.struct_passwd | None:
    number = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not number.isdigit():
        return None
    try:
        return pwd.getpwuid(int(number))
    except KeyError:
        return None
