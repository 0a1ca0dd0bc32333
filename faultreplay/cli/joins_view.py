"""How well events were joined to faults, for people: what was not joined and why, what was left out, what repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.faulttrace.stitch import StitchReport
    from faultreplay.faulttrace.stitch.report import Repeat

_WORST = 3
_PAGES = "record kvm:kvm_page_fault too: perf record -e 'kvm:*', trace-cmd record -e kvm"
_CALLS = "record syscalls:sys_enter_ioctl and sys_exit_ioctl too"


def join_lines(report: StitchReport) -> list[str]:
    """Lines to stand under the table of faults."""
    lines = []
    if report.messages:
        lines.append(f"messages: {report.messages:,} read, {report.messages_joined:,} joined")
        lines += [f"  not joined, {reason}: {count:,}" for reason, count in report.messages_unjoined.items()]
    counts = (
        (report.messages_repeated, "second messages of one fault"),
        (report.messages_without_thread, "messages without a known thread id, their waiter found by page and wake"),
        (report.waiters_without_message, "waiters whose page came before their message was read"),
        (report.wakes_unexplained, "threads woken by a placing ioctl, not seen to fault on its range (they may read)"),
        (report.messages_late, "messages read after their page was placed"),
        (report.placements_unasked, f"of {report.placements:,} placing ioctls that no fault waited for"),
        (report.exits_unjoined, f"of {report.exits:,} EFAULT exits without an end"),
        (
            report.exits_untimed,
            f"of {report.exits:,} EFAULT exits known from kvm_userspace_exit alone: service and re-entry cannot be "
            f"told apart ({_CALLS})",
        ),
        (report.walks_without_entry, _walks(report)),
        (report.mmio_of_devices, "MMIO exits at emulated devices, left out"),
        (sum(report.unjoined_shed_by_cause.values()), "faults without an end while a group of probes was shed"),
        (report.page_faults_unjoined, f"of {report.page_faults:,} page faults of processes without an end"),
        (report.doubled, "guest exits, entries or faults stand twice in the trace: counted once"),
    )
    lines += [f"{count:,} {words}" for count, words in counts if count]
    lines += _guest_lines(report)
    lines += [
        f"{count:,} placing ioctls failed with errno {errno}" for errno, count in report.placements_failed.items()
    ]
    ways = sorted(report.joins.items(), key=lambda item: -item[1])
    if ways:
        lines.append("start and end taken from: " + ", ".join(f"{way} {count:,}" for way, count in ways))
    return lines


def repeat_words(repeat: Repeat) -> str:
    """One access that faulted again and again."""
    who = f"vcpu {repeat.vcpu}" if repeat.vcpu >= 0 else f"thread {repeat.tid}"
    useless = f", {repeat.spurious:,} of them spurious" if repeat.spurious else ""
    end = "" if repeat.ended else ", end not seen"
    return (
        f"{who}, rip {repeat.ip:#x}, page {repeat.gpa:#x}: {repeat.rounds:,} faults{useless} in "
        f"{format_ns(repeat.duration_ns)}{end}"
    )


def _walks(report: StitchReport) -> str:
    if report.mappings_told:
        return f"of {report.walks:,} walks of a guest's page table mapped nothing"
    return (
        "walks of a guest's page table: what they mapped was not recorded (kvmmmu:kvm_mmu_set_spte), so none of them "
        "is known to be a fault"
    )


def _guest_lines(report: StitchReport) -> list[str]:
    lines = [
        f"{count:,} guest faults whose end was not recorded ({reason})"
        for reason, count in report.guest_faults_unended.items()
    ]
    if report.guest_faults_untold:
        unknown = report.guest_faults_page_unknown
        pages = f", {unknown:,} of them on an unknown page" if unknown else ""
        lines.append(
            f"{report.guest_faults_untold:,} of {report.guest_faults:,} guest faults are exits without a "
            f"kvm_page_fault{pages} ({_PAGES})"
        )
    if report.device_exits:
        spent = f"{format_ns(report.device_ns)} in them, in no stall"
        cut = f", {report.device_unended:,} without an end" if report.device_unended else ""
        lines.append(f"{report.device_exits:,} guest exits for emulated devices: {spent}{cut}")
    if report.guest_faults_spurious:
        lines.append(f"{report.guest_faults_spurious:,} guest faults were spurious: KVM found nothing to do")
    if report.repeated:
        lines.append(
            f"{report.repeated:,} accesses faulted again with nothing mapped between ({report.retries:,} faults more), "
            "the worst:"
        )
        lines += [f"  {repeat_words(repeat)}" for repeat in report.worst_repeats[:_WORST]]
        lines += [
            f"no progress: {repeat_words(repeat)}" for repeat in report.worst_repeats[_WORST:] if not repeat.ended
        ]
    return lines
