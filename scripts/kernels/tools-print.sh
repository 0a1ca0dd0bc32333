#!/bin/sh
# What perf and trace-cmd print of the files that tools.sh left in SHARE: here, as under emulation it takes minutes.
#
#   tools-print.sh SHARE
set -eu
cd "$1"

columns=comm,pid,tid,cpu,time,event,trace
perf script --kallsyms kallsyms --ns -i perf.data -F $columns >perf.txt
perf script --kallsyms kallsyms --ns -i perf.data >perf-callgraph.txt
perf script --kallsyms kallsyms -i perf.data -F $columns,ip,sym >perf-ip-sym.txt
perf script --kallsyms kallsyms --ns -i perf.data -F tid,time,event,trace >perf-few.txt
if [ -e stat.data ]; then
    perf script --kallsyms kallsyms --ns --show-lost-events -i stat.data >perf-kvm-stat.txt
fi
if [ -e trace.dat ]; then
    trace-cmd report -t -i trace.dat >trace-cmd.txt
    trace-cmd report -t -R -i trace.dat >trace-cmd-R.txt
    trace-cmd report -t -l -i trace.dat >trace-cmd-l.txt
fi
