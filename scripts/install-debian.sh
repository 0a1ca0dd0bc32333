#!/bin/sh
# Installs what recording needs on Debian 12 and later. Safe to run again; says what it does.
#
#   scripts/install-debian.sh           packages, kernel headers, tracefs
#   scripts/install-debian.sh --tests   the same, and what only tests need (QEMU, peers to compare with, a browser)
#   scripts/install-debian.sh --check   says what is missing, changes nothing (exit 1 if anything is)
set -eu

packages="python3-venv libbpf1 python3-bpfcc bpftrace stress-ng gcc libc6-dev make"
release=$(uname -r)
modules=/lib/modules/$release
check=
case "${1:-}" in
    --check) check=1 ;;
    --tests) packages="$packages clang llvm libbpf-dev qemu-system-x86 busybox-static kmod trace-cmd linux-perf chromium" ;;
    "") ;;
    *) echo "usage: $0 [--check|--tests]" >&2; exit 2 ;;
esac
missing=0

say() { echo "install-debian: $*"; }
lack() { say "missing: $*"; missing=1; }
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }
fetch() {
    [ -n "${updated:-}" ] || { apt-get update -q; updated=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

if [ -z "$check" ] && [ "$(id -u)" != 0 ]; then
    say "must run as root (try: sudo $0)" >&2
    exit 77
fi

todo=
for package in $packages; do
    installed "$package" || todo="$todo $package"
done
if [ -z "$todo" ]; then
    say "packages: all installed"
elif [ -n "$check" ]; then
    lack "packages:$todo"
else
    say "installing$todo"
    # shellcheck disable=SC2086
    fetch $todo
fi

# BCC compiles at run time and looks in $modules/build and $modules/source.
if [ -e "$modules/build/Makefile" ]; then
    say "kernel headers: $modules/build"
elif [ -n "$check" ]; then
    lack "kernel headers in $modules/build"
else
    [ -n "${updated:-}" ] || { apt-get update -q; updated=1; }
    if apt-cache show "linux-headers-$release" >/dev/null 2>&1; then
        say "installing linux-headers-$release"
        fetch "linux-headers-$release"
    else
        arch=$(dpkg --print-architecture)
        say "no headers are packaged for the running kernel $release: borrowing the distribution's linux-headers-$arch."
        say "That is safe for faultreplay: its programs take every layout from the running kernel (tracefs, BTF), none from the headers."
        installed "linux-headers-$arch" || fetch "linux-headers-$arch"
        tree=
        for candidate in /usr/src/linux-headers-*-"$arch"; do
            [ -e "$candidate/Makefile" ] && tree=$candidate
        done
        [ -n "$tree" ] || { say "linux-headers-$arch left no tree in /usr/src" >&2; exit 5; }
        common=${tree%-"$arch"}-common
        mkdir -p "$modules"
        ln -sfn "$tree" "$modules/build"
        [ -d "$common" ] && ln -sfn "$common" "$modules/source"
        say "linked $modules/build -> $tree, source -> $common"
    fi
fi

if [ -e /sys/kernel/tracing/events/header_page ]; then
    say "tracefs: /sys/kernel/tracing"
elif [ -n "$check" ]; then
    lack "tracefs on /sys/kernel/tracing (mount -t tracefs tracefs /sys/kernel/tracing)"
else
    say "mounting tracefs on /sys/kernel/tracing"
    mount -t tracefs tracefs /sys/kernel/tracing
fi
# bcc and bpftrace of Debian 12 look for tracefs below debugfs, which mounts it on its own.
if [ -e /sys/kernel/debug/tracing/events/header_page ]; then
    say "debugfs: /sys/kernel/debug"
elif [ -n "$check" ]; then
    lack "debugfs on /sys/kernel/debug (mount -t debugfs debugfs /sys/kernel/debug)"
else
    say "mounting debugfs on /sys/kernel/debug"
    mount -t debugfs debugfs /sys/kernel/debug || say "debugfs could not be mounted: going on without"
fi

[ "$missing" = 0 ] || exit 1
say "done"
