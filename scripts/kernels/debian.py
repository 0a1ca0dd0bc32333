"""Debian's kernels in a cache folder: image, modules and headers, unpacked, never installed.

A private apt configuration (own lists, own sources made from the host's) reaches backports too and leaves the
system's apt as it was.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faultreplay" / "kernels"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class KernelUnavailable(Exception):
    """No such kernel can be had here; the message says why and what would help."""


@dataclass(frozen=True)
class DebianKernel:
    """An unpacked kernel: `root` holds boot/vmlinuz-RELEASE, lib/modules/RELEASE and usr/src."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"


def fetch(series: str, cache: Path = CACHE) -> DebianKernel:
    """The newest packaged kernel of `series` (``6.1``, ``6.12``), downloaded and unpacked on first use.

    Raises:
        KernelUnavailable: no apt, or no such kernel in the release or its backports.
    """
    done = sorted(cache.glob(f"{series}.*/unpacked"), key=lambda stamp: stamp.stat().st_mtime)
    if done:
        return DebianKernel(done[-1].parent.name, done[-1].parent)
    apt = _private_apt(cache)
    release = _newest(apt, series)
    root = cache / release
    debs = root / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    common = release.removesuffix("-amd64") + "-common"
    names = [f"linux-image-{release}", f"linux-headers-{release}", f"linux-headers-{common}"]
    _run(["apt-get", *apt, "-q", "download", *names], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
        deb.unlink()
    debs.rmdir()
    # The packages link to /usr/src; the trees are here.
    for link, tree in (("build", f"linux-headers-{release}"), ("source", f"linux-headers-{common}")):
        path = root / "lib/modules" / release / link
        path.unlink(missing_ok=True)
        path.symlink_to(root / "usr/src" / tree)
    (root / "unpacked").touch()
    return DebianKernel(release, root)


def _private_apt(cache: Path) -> list[str]:
    """Options that point apt at lists of our own, with the host's Debian mirrors and their backports."""
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)", "Created-By: Packages"])
    signed = f"[signed-by={_KEYS}] " if _KEYS.exists() else ""
    codename = _codename()
    lines = set()
    for target in targets.splitlines():
        uri, release = target.split("|")
        if release.split("-")[0] == codename:
            lines.add(f"deb {signed}{uri} {release} main")
            if release == codename:
                lines.add(f"deb {signed}{uri} {codename}-backports main")
    if not lines:
        raise KernelUnavailable(f"apt has no lists of Debian {codename}: run apt-get update, on Debian")
    for folder in ("lists/partial", "archives/partial"):
        (cache / "apt" / folder).mkdir(parents=True, exist_ok=True)
    sources = cache / "apt" / "sources.list"
    sources.write_text("\n".join(sorted(lines)) + "\n")
    options = [
        "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null",
        "-o", f"Dir::State::lists={cache}/apt/lists", "-o", f"Dir::Cache={cache}/apt",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    _run(["apt-get", *options, "-q", "update"])
    return options


def _newest(apt: list[str], series: str) -> str:
    """Release of the image that the newest linux-image-amd64 of `series` depends on."""
    stanzas = _run(["apt-cache", *apt, "show", "linux-image-amd64"]).split("\n\n")
    for stanza in stanzas:  # apt prints the newest first
        version = re.search(r"^Version: (\S+)", stanza, re.MULTILINE)
        image = re.search(r"^Depends: .*?\blinux-image-(\d\S+)", stanza, re.MULTILINE)
        if version and image and version[1].startswith(f"{series}."):
            return image[1]
    offered = re.findall(r"^Version: (\S+)", "\n".join(stanzas), re.MULTILINE)
    raise KernelUnavailable(f"no {series} kernel for Debian {_codename()}; on offer: {', '.join(offered) or 'nothing'}")


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _run(argv: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd, check=True, timeout=300)
    except FileNotFoundError:
        raise KernelUnavailable(f"{argv[0]} is not installed: kernels are fetched with Debian's tools") from None
    except subprocess.CalledProcessError as error:
        words = [line for line in error.stderr.splitlines() if line] or ["no message"]
        raise KernelUnavailable(f"{argv[0]}: {words[-1]}") from None
    except subprocess.TimeoutExpired:
        raise KernelUnavailable(f"{argv[0]} did not end within 5 minutes: is the mirror reachable?") from None
    return done.stdout
