"""Checks of tools: what each backend needs, and a compiler for the lab."""

from __future__ import annotations

import re
from collections.abc import Iterator

from faultreplay.collect.doctor.checks import Check, Surroundings

_INSTALL = "scripts/install-debian.sh, or: apt-get install"


def backends(here: Surroundings) -> Iterator[Check]:
    """The precompiled object with libbpf, BCC (module, library, headers) and bpftrace; at least one is required."""
    precompiled = _precompiled(here)
    found = list(_bcc(here))
    bcc_works = all(check.state in ("ok", "note") for check in found)
    bpftrace = _bpftrace(here)
    tried = (("precompiled", precompiled.state == "ok"), ("bcc", bcc_works), ("bpftrace", bpftrace.state == "ok"))
    works = [name for name, good in tried if good]
    if works:
        yield Check(
            "backend", "ok", ", ".join(works), "recording as such (--backend auto takes the first)", required=True
        )
    else:
        barred = all(check.state != "missing" for check in found)  # it is all there, but not for this user
        yield Check(
            "backend",
            "denied" if barred else "missing",
            "neither bcc nor bpftrace can be used"
            if barred
            else "neither the precompiled programs nor bcc nor bpftrace",
            "recording as such",
            "see below" if barred else f"{_INSTALL} python3-bpfcc bpftrace linux-headers-$(uname -r), or only libbpf1",
            required=True,
        )
    yield precompiled
    yield from found
    yield bpftrace
    enables = "bpftrace's types of tracepoint fields, fentry"
    if here.exists("sys/kernel/btf/vmlinux"):
        yield Check("BTF", "ok", "/sys/kernel/btf/vmlinux", enables)
    else:
        yield Check("BTF", "missing", "no /sys/kernel/btf/vmlinux", enables, "a kernel with CONFIG_DEBUG_INFO_BTF=y")


def _precompiled(here: Surroundings) -> Check:
    enables = "--backend precompiled: no compiler and no headers on the host"
    if not here.has_object():
        why = "this installation has no precompiled programs"
        return Check("precompiled", "missing", why, enables, "make bpf (needs clang and libbpf-dev)")
    found = _globbed(here, "usr/lib/*/libbpf.so.1", "usr/lib*/libbpf.so.1", "usr/local/lib*/libbpf.so.1")
    if not found:
        return Check("precompiled", "missing", "libbpf is not installed", enables, f"{_INSTALL} libbpf1")
    return Check("precompiled", "ok", f"/{found[0]}", enables)


def _bcc(here: Surroundings) -> Iterator[Check]:
    module = [
        p
        for p in _globbed(
            here,
            "usr/lib/python3*/dist-packages/bcc/__init__.py",
            "usr/lib/python3*/site-packages/bcc/__init__.py",
            "usr/local/lib/python3*/*-packages/bcc/__init__.py",
        )
    ]
    library = _globbed(here, "usr/lib/*/libbcc.so.0", "usr/lib*/libbcc.so.0", "usr/local/lib*/libbcc.so.0")
    enables = "--backend bcc"
    if module and library:
        yield Check("bcc", "ok", f"/{module[0].removesuffix('/__init__.py')}", enables)
    else:
        what = "the Python module" if not module else "the library libbcc.so.0"
        yield Check(
            "bcc",
            "missing",
            f"{what} is not installed (PyPI's bcc is another program)",
            enables,
            f"{_INSTALL} python3-bpfcc",
        )
    yield _headers(here)


def _headers(here: Surroundings) -> Check:
    enables = "--backend bcc compiles its programs with them"
    build = f"lib/modules/{here.release}/build"
    if here.exists(f"{build}/include/generated/autoconf.h"):
        stated = re.search(r'UTS_RELEASE "([^"]+)"', here.read(f"{build}/include/generated/utsrelease.h"))
        if stated and stated[1] != here.release:
            return Check(
                "kernel headers",
                "note",
                f"borrowed: made for {stated[1]}, the kernel is {here.release}",
                f"{enables}; safe, as only tracepoint arguments are read",
            )
        return Check("kernel headers", "ok", f"/{build}", enables)
    if here.refused(f"{build}/include/generated/autoconf.h"):
        why = f"/{build} exists, but this user may not read it"
        return Check("kernel headers", "denied", why, enables, f"open the way to it: namei -l $(readlink -f /{build})")
    if here.exists("sys/kernel/kheaders.tar.xz"):
        return Check("kernel headers", "ok", "/sys/kernel/kheaders.tar.xz", enables)
    return Check(
        "kernel headers",
        "missing",
        f"no /{build}",
        enables,
        "scripts/install-debian.sh (borrows the distribution's where none match), or: "
        f"apt-get install linux-headers-{here.release}, or modprobe kheaders",
    )


def _bpftrace(here: Surroundings) -> Check:
    enables = "--backend bpftrace"
    path = here.which("bpftrace")
    if path is None:
        return Check("bpftrace", "missing", "not in PATH", enables, f"{_INSTALL} bpftrace")
    if here.euid != 0:
        why = f"{path} runs as root only, whatever the capabilities"
        return Check("bpftrace", "denied", why, enables, "run as root, or use --backend bcc")
    if not here.live:
        return Check("bpftrace", "ok", path, enables)
    code, words = here.run([path, "--version"])
    if code:
        return Check(
            "bpftrace", "missing", f"{path} does not run: {words.strip()[:120]}", enables, f"{_INSTALL} bpftrace"
        )
    return Check("bpftrace", "ok", f"{path}, {words.split()[-1]}", enables)


def lab_tools(here: Surroundings) -> Iterator[Check]:
    """A C compiler with the C library's and the kernel's userspace headers."""
    enables = "the lab's programs, built on first use"
    compiler = here.which("cc") or here.which("gcc") or here.which("clang")
    if compiler is None:
        yield Check("C compiler", "missing", "neither cc, gcc nor clang in PATH", enables, f"{_INSTALL} gcc libc6-dev")
    elif not here.exists("usr/include/linux/userfaultfd.h"):
        yield Check(
            "C compiler",
            "missing",
            f"{compiler} without /usr/include/linux/userfaultfd.h",
            enables,
            f"{_INSTALL} libc6-dev linux-libc-dev",
        )
    else:
        yield Check("C compiler", "ok", compiler, enables)


def _globbed(here: Surroundings, *patterns: str) -> list[str]:
    return [str(path.relative_to(here.root)) for pattern in patterns for path in sorted(here.root.glob(pattern))]
