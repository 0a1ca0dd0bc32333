#!/bin/sh
# Runs inside the booted kernel, as root: loads KVM, records the guest of a known number of pages, leaves traces in SHARE.
#
#   inside.sh REPO PYTHON GUEST SHARE PAGES "BACKENDS" "BACKINGS" [doctor]
set -eu
repo=$1 python=$2 guest=$3 share=$4 pages=$5 backends=$6 backings=$7
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$repo XDG_CACHE_HOME=/tmp/cache
cd /tmp

uname -srv
modprobe kvm_amd
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
for backend in $backends; do
    # One recording for all guests: compiling the probes and loading Python are what takes time under TCG.
    runs=
    options=
    for backing in $backings; do
        runs="$runs $guest $pages $backing;"
    done
    # bpftrace compiles for minutes in there: without the groups that are not counted, and see types_btf.py.
    if [ "$backend" = bpftrace ]; then
        options="--probes faults,kvm --ring-size 4M"
        export BPFTRACE_BTF="$share/types.btf"
    fi
    # shellcheck disable=SC2086
    "$python" -m faultreplay record -o "/tmp/$backend.trace" --backend "$backend" $options -- \
        /bin/sh -c "$runs" >"$share/$backend.jsonl"
    cp -r "/tmp/$backend.trace" "$share/"
done
if [ -n "${8:-}" ]; then
    "$python" -m faultreplay doctor --format json >"$share/doctor.json"
fi
