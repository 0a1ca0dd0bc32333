"""Which vCPU each thread is."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.stitch.keys import I64
from faultreplay.faulttrace.stitch.whole import Whole


def vcpu_numbers(whole: Whole, meta: Meta) -> I64:
    """Per thread its vCPU number: from the targets, else from the events, else by the order of the vCPU fds; or -1."""
    threads = whole.threads
    number = whole.run_vcpus()
    told = whole.told_runs
    unknown = told[number[told] < 0]
    if len(unknown):
        fd = whole.run_fds()
        owner = whole.owner[unknown]
        for tgid in np.unique(owner):
            mine = unknown[owner == tgid]
            number[mine[np.lexsort((mine, fd[mine]))]] = np.arange(len(mine))
    for target in meta.targets:
        for member in target.threads:
            at = threads.of(np.array([member.tid], np.int64))[0]
            if at >= 0 and member.role == "vcpu" and member.vcpu >= 0:
                number[at] = member.vcpu
    return np.where(number >= 0, number, whole.named_vcpus())
