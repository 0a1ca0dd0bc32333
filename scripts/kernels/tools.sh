#!/bin/sh
# As root, on this host or inside a booted kernel (tools.py): a guest of a known number of pages, twice, recorded by each
# tool into SHARE; tools-print.sh prints. For tests/golden. A BPF program on a tracepoint that returns 0 (ours do) takes the
# event from perf, so the first run is recorded by faultreplay, ftrace and trace-cmd, the second by perf and ftrace.
#
#   tools.sh REPO PYTHON GUEST SHARE PAGES BACKING BACKEND
set -eu
repo=$1 python=$2 guest=$3 share=$4 pages=$5 backing=$6 backend=$7
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$repo XDG_CACHE_HOME=/tmp/cache
cd "$(mktemp -d)"
cp "$guest" guest

uname -srv
[ -e /dev/kvm ] || modprobe kvm_amd
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs tracefs $tracing

# ftrace, in an instance of its own
text=$tracing/instances/faultreplay-text
mkdir $text
trap 'rmdir $text' EXIT
echo mono >$text/trace_clock
echo 8192 >$text/buffer_size_kb
echo 0 >$text/tracing_on
for event in kvm kvmmmu syscalls/sys_enter_ioctl syscalls/sys_exit_ioctl sched/sched_switch; do
    echo 1 >$text/events/$event/enable
done
say() { echo "$(cut -d' ' -f1 /proc/uptime) s: $*"; }
ftrace() { # NAME COMMAND...: events of this command and its children
    name=$1
    shift
    echo >$text/trace
    echo event-fork >$text/trace_options
    echo $$ >$text/set_event_pid
    echo 1 >$text/tracing_on
    "$@"
    echo 0 >$text/tracing_on
    cat $text/trace >"$share/$name.txt"
}

command="./guest $pages $backing"
traced=$command
if trace-cmd record -q -o try.dat -e kvm true 2>/dev/null; then # not where tracefs' first instance is taken or locked
    traced="trace-cmd record -q -C mono -o trace.dat -e kvm -e kvmmmu $command"
fi
say "record, ftrace: $traced"
# shellcheck disable=SC2086
ftrace ftrace-own "$python" -m faultreplay record -o own.trace --backend "$backend" --probes faults,kvm,sched -- $traced \
    >"$share/own.jsonl"
cp -r own.trace "$share/"
[ ! -e trace.dat ] || cp trace.dat "$share/"

# Few events: under emulation each one takes seconds to switch on.
events=
for event in kvm:kvm_exit kvm:kvm_entry kvm:kvm_page_fault kvm:kvm_userspace_exit kvmmmu:kvm_mmu_pagetable_walk \
    kvmmmu:kvm_mmu_set_spte syscalls:sys_enter_ioctl syscalls:sys_exit_ioctl; do
    [ -d "$tracing/events/$(echo $event | tr : /)" ] && events="$events -e $event"
done
say "perf record, perf kvm stat record, ftrace: $command"
# shellcheck disable=SC2086
ftrace ftrace-perf perf record -q -B -N -k CLOCK_MONOTONIC -g -o perf.data $events -- \
    perf kvm stat record -q -k CLOCK_MONOTONIC -a -o stat.data $command >"$share/perf.jsonl"
echo latency-format >$text/trace_options
cat $text/trace >"$share/ftrace-latency.txt"
cp perf.data "$share/"
[ ! -e stat.data ] || cp stat.data "$share/"
cat /proc/kallsyms >"$share/kallsyms"
say done
