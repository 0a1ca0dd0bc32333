"""The probe table, the layouts from tracefs and the C text made of both."""

from __future__ import annotations

import re

import pytest

from faultreplay.collect.backends.probes import DEFAULT_GROUPS, GROUPS, PROBES, select
from faultreplay.collect.backends.program import Available, function_name, generate
from faultreplay.collect.backends.ring import EVENT_DTYPE
from faultreplay.collect.backends.tracefs import Field, Format, parse_format
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import EVENTS, Kind

FORMAT = """name: kvm_mmu_set_spte
ID: 1
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:u8 level;\toffset:32;\tsize:1;\tsigned:0;
\tfield:bool x;\toffset:34;\tsize:1;\tsigned:0;
\tfield:char comm[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:u64 * sptep;\toffset:56;\tsize:8;\tsigned:0;
\tfield:__data_loc char[] filename;\toffset:64;\tsize:4;\tsigned:0;

print fmt: "gfn %llx", REC->gfn
"""


def test_format_is_parsed() -> None:
    fields = parse_format("kvmmmu:kvm_mmu_set_spte", FORMAT).fields
    assert fields["gfn"] == Field("gfn", 8, 8, False, False)
    assert fields["common_pid"].signed
    assert fields["comm"].array
    assert fields["sptep"].offset == 56
    assert fields["filename"].array


def test_every_kind_has_a_probe_and_no_two() -> None:
    given = [kind for probe in PROBES for kind in probe.kinds]
    assert {kind for kind in given if given.count(kind) > 1} == {Kind.MM_CAUSE}  # each tells another cause
    assert set(Kind) == set(given)


def test_probes_fill_only_columns_of_the_schema() -> None:
    columns = set(EVENTS.names)
    assert all(set(probe.columns) <= columns for probe in PROBES)
    assert {name for name in EVENT_DTYPE.names or () if name != "pad"} == columns


def test_select_takes_groups_and_what_following_needs() -> None:
    names = {probe.tracepoint for probe in select(["sched"])}
    assert names == {
        "task:task_newtask",
        "sched:sched_process_exit",
        "sched:sched_process_exec",
        "sched:sched_switch",
        "sched:sched_waking",
    }
    assert set(DEFAULT_GROUPS) == set(GROUPS) - {"locks"}


def test_unknown_group_is_named() -> None:
    with pytest.raises(UsageError, match=r"'fautls'.*faults, kvm"):
        select(["faults", "fautls"])


def _fake(tracepoint: str, *names: str) -> Available:
    probe = next(p for p in PROBES if p.tracepoint == tracepoint)
    layout = {name: Field(name, 8 + 8 * i, 8, False, False) for i, name in enumerate(names)}
    return Available(probe, Format(tracepoint, layout))


def test_generated_struct_follows_the_layout_of_this_kernel() -> None:
    item = Available(
        next(p for p in PROBES if p.tracepoint == "kvm:kvm_entry"),
        Format("kvm:kvm_entry", {"rip": Field("rip", 16, 8, False, False)}),
    )
    text = generate([item], ["kvm"], 16)
    assert re.search(r"struct tp_kvm__kvm_entry \{\s+char pad0\[16\];\s+u64 rip;\s+\};", text)
    assert "e->ip = args->rip;" in text
    assert function_name(item.probe) + "(struct tp_kvm__kvm_entry *args)" in text


def test_a_column_whose_field_this_kernel_lacks_is_left_out() -> None:
    text = generate([_fake("kvm:kvm_exit", "exit_reason", "guest_rip")], ["kvm"], 16)
    assert "e->code = args->exit_reason;" in text
    assert "info1" not in text


def test_c_record_and_numpy_record_agree() -> None:
    text = generate([], [], 16)
    (body,) = re.findall(r"struct event \{(.*?)\};", text, re.DOTALL)
    declared = re.findall(r"\b([us])(\d+) (\w+)(?:\[(\d+)\])?;", body)
    offset = 0
    for sign, bits, name, count in declared:
        size = int(bits) // 8 * int(count or 1)
        assert EVENT_DTYPE.fields is not None
        dtype, at = EVENT_DTYPE.fields[name][:2]
        assert (at, dtype.itemsize) == (offset, size), name
        if not count and name != "ts_ns":  # a clock that starts at boot fits both
            assert dtype.kind == {"s": "i", "u": "u"}[sign], name
        offset += size
    assert offset == EVENT_DTYPE.itemsize


def test_arm64_fields_of_a_tracepoint_of_the_same_name_are_taken() -> None:
    item = _fake("kvm:kvm_exit", "ret", "esr_ec", "vcpu_pc")
    assert item.probe.filled(item.format.fields) == {
        "code": "args->esr_ec", "ip": "args->vcpu_pc", "addr": "args->ret",
    }  # fmt: skip
    assert item.probe.reads_of(item.format.fields) == ("esr_ec", "vcpu_pc", "ret")
    text = generate([item], ["kvm"], 16)
    assert "e->code = args->esr_ec;" in text and "exit_reason" not in text


def test_probes_of_another_machine_are_not_asked_for() -> None:
    here, there = ({p.tracepoint for p in select(["kvm"], m)} for m in ("x86_64", "aarch64"))
    assert there - here == {"kvm:kvm_guest_fault"}
    assert "kvm:kvm_page_fault" in here & there  # and reported as missing where the kernel has none


def test_a_fast_fault_says_whether_the_entry_was_changed() -> None:
    names = ("cr2_or_gpa", "error_code", "old_spte", "new_spte", "ret")
    assert "e->size = 1 + (args->old_spte != args->new_spte);" in generate(
        [_fake("kvmmmu:fast_page_fault", *names)], ["kvm"], 16
    )
