#!/bin/sh
# Runs inside the booted kernel, as root: one guest, recorded at once by faultreplay, perf, perf kvm stat, trace-cmd and
# ftrace; what each prints of it goes to SHARE. For tests/golden.
#
#   tools.sh REPO PYTHON GUEST SHARE PAGES BACKING
set -eu
repo=$1 python=$2 guest=$3 share=$4 pages=$5 backing=$6
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$repo XDG_CACHE_HOME=/tmp/cache
cd /tmp

uname -srv
modprobe kvm_amd
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs tracefs $tracing

# ftrace, in an instance of its own
text=$tracing/instances/text
mkdir $text
echo mono >$text/trace_clock
for event in kvm kvmmmu syscalls/sys_enter_ioctl syscalls/sys_exit_ioctl; do
    echo 1 >$text/events/$event/enable
done

# Few events: under emulation each one takes seconds to switch on.
events=kvm:kvm_exit,kvm:kvm_entry,kvm:kvm_page_fault,kvm:kvm_userspace_exit,kvm:kvm_fpu
events=$events,syscalls:sys_enter_ioctl,syscalls:sys_exit_ioctl
cat >run.sh <<EOF
exec perf record -k CLOCK_MONOTONIC -a -g -o perf.data -e $events -- \
    perf kvm stat record -k CLOCK_MONOTONIC -a -o stat.data \
    trace-cmd record -q -C mono -o trace.dat -e kvm -e kvmmmu $guest $pages $backing
EOF
"$python" -m faultreplay record -o /tmp/own.trace --backend bcc --probes faults,kvm -- /bin/sh run.sh >"$share/own.jsonl"
echo 0 >$text/tracing_on
cp -r own.trace "$share/"
cat $text/trace >"$share/ftrace.txt"
echo 1 >$text/options/latency-format 2>/dev/null || echo latency-format >$text/trace_options
cat $text/trace >"$share/ftrace-latency.txt"

columns=comm,pid,tid,cpu,time,event,trace
perf script --ns -i perf.data -F $columns >"$share/perf.txt"
perf script --ns -i perf.data >"$share/perf-callgraph.txt"
perf script -i perf.data -F $columns,ip,sym >"$share/perf-ip-sym.txt"
perf script --ns -i perf.data -F tid,time,event,trace >"$share/perf-few.txt"
perf script --ns --header --show-lost-events -i stat.data >"$share/perf-kvm-stat.txt"
trace-cmd report -t -i trace.dat >"$share/trace-cmd.txt"
trace-cmd report -t -R -i trace.dat >"$share/trace-cmd-R.txt"
trace-cmd report -t -l -i trace.dat >"$share/trace-cmd-l.txt"
trace-cmd report -t -N -i trace.dat >"$share/trace-cmd-N.txt"
cp perf.data stat.data trace.dat "$share/"
