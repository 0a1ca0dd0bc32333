"""Fields of the most frequent events, for many lines at once; `printed` reads all events, one line at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.collect.importers.printed import task_state
from faultreplay.faulttrace.exits import exit_number

_RIP: Final = r"rip 0x(?P<{0}_16>[0-9a-f]{{1,16}})"
# Groups are FIELD_BASE; base 0 is a name that `_NAMED` makes a number of. A form is strict: what it does not fit is
# read line by line. An event's own fields are all of a form, so a group that took no part means: no such field.
_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "kvm:kvm_exit": (
        r"^(?:vcpu (?P<vcpu_id_10>[0-9]{1,9}) )?reason (?P<exit_reason_0>[A-Za-z0-9_]+) " + _RIP.format("guest_rip")
        + r" info1 0x(?P<info1_16>[0-9a-f]{16}) info2 0x(?P<info2_16>[0-9a-f]{16})"
        r" intr_info 0x[0-9a-f]{8} error_code 0x[0-9a-f]{8}(?: requests 0x[0-9a-f]{16})?$",
        r"^reason (?P<exit_reason_0>[A-Za-z0-9_]+) " + _RIP.format("guest_rip")
        + r" info (?P<info1_16>[0-9a-f]{1,16}) (?P<info2_16>[0-9a-f]{1,16})$",
    ),
    "kvm:kvm_entry": (
        r"^vcpu (?P<vcpu_id_10>[0-9]{1,9}), " + _RIP.format("rip")
        + r"(?: intr_info 0x[0-9a-f]{8} error_code 0x[0-9a-f]{8})?$",
    ),
    "kvm:kvm_page_fault": (
        r"^vcpu (?P<vcpu_id_10>[0-9]{1,9}) " + _RIP.format("guest_rip")
        + r" address 0x(?P<fault_address_16>[0-9a-f]{16}) error_code 0x(?P<error_code_16>[0-9a-f]{1,16})$",
        r"^address (?P<fault_address_16>[0-9a-f]{1,16}) error_code (?P<error_code_16>[0-9a-f]{1,16})$",
    ),
    "sched:sched_switch": (
        r"^prev_comm=.* prev_pid=(?P<prev_pid_10>[0-9]{1,9}) prev_prio=-?[0-9]+ "
        r"prev_state=(?P<prev_state_0>[A-Za-z+|]+) ==> next_comm=.* "
        r"next_pid=(?P<next_pid_10>[0-9]{1,9}) next_prio=-?[0-9]+$",
        # as libtraceevent's plugin prints it
        r"^[^:]*:(?P<prev_pid_10>[0-9]{1,9}) \[-?[0-9]+\] (?P<prev_state_0>[A-Za-z+|]+) ==> "
        r"[^:]*:(?P<next_pid_10>[0-9]{1,9}) \[-?[0-9]+\]$",
    ),
    "sched:sched_waking": (
        r"^comm=.* pid=(?P<pid_10>[0-9]{1,9}) prio=-?[0-9]+ target_cpu=[0-9]+$",
        r"^[^:]*:(?P<pid_10>[0-9]{1,9}) \[-?[0-9]+\] CPU:[0-9]+$",
    ),
}  # fmt: skip
_NAMED: Final[dict[str, Callable[[str], int]]] = {"exit_reason": exit_number, "prev_state": task_state}

Fields = dict[str, npt.NDArray[np.uint64] | npt.NDArray[np.int64]]


def has_forms(event: str) -> bool:
    """Whether events of this name can be read many at once."""
    return event in _FORMS


def read_columns(event: str, lines: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, Fields | None]]:
    """Parts of `lines` (column `text`) with the fields of each, then those that no form fits with None."""
    for form in _FORMS[event]:
        if not lines.height:
            return
        found = lines.select(found=pl.col("text").str.extract_groups(form)).unnest("found")
        must = [name for name in found.columns if name != "vcpu_id_10"]
        fits = found.select(pl.all_horizontal(pl.col(must).is_not_null())).to_series()
        if not fits.any():
            continue
        taken, groups = lines.filter(fits), found.filter(fits)
        if "vcpu_id_10" not in groups.columns:
            yield taken, _fields(groups)
        else:
            named = groups["vcpu_id_10"].is_not_null()
            if named.any():
                yield taken.filter(named), _fields(groups.filter(named))
            if not named.all():
                yield taken.filter(~named), _fields(groups.filter(~named).drop("vcpu_id_10"))
        lines = lines.filter(~fits)
    if lines.height:
        yield lines, None


def _fields(groups: pl.DataFrame) -> Fields:
    fields: Fields = {}
    for group in groups.columns:
        name, _, base = group.rpartition("_")
        words = groups[group]
        if base == "16":
            fields[name] = words.str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
        elif base == "10":
            fields[name] = words.cast(pl.Int64).to_numpy()
        else:
            numbers = {word: _NAMED[name](word) for word in words.unique().to_list()}
            fields[name] = words.replace_strict(numbers, return_dtype=pl.Int64).to_numpy()
    return fields
