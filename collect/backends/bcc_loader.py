"""Finds the system's BCC from inside a virtual environment."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from faultreplay.faulttrace.errors import MissingFeature

_PLACES = (
    "/usr/lib/python3/dist-packages/bcc",
    "/usr/lib/python3*/site-packages/bcc",
    "/usr/lib/python3*/dist-packages/bcc",
    "/usr/local/lib/python3*/dist-packages/bcc",
    "/usr/local/lib/python3*/site-packages/bcc",
)


def load_bcc() -> ModuleType:
    """The `bcc` package of the distribution. PyPI's package of that name is an unrelated one.

    Raises:
        MissingFeature: not installed.
    """
    loaded = sys.modules.get("bcc")
    if loaded is not None and hasattr(loaded, "BPF"):
        return loaded
    for pattern in _PLACES:
        for directory in sorted(Path("/").glob(pattern.lstrip("/"))):
            init = directory / "__init__.py"
            if not (directory / "libbcc.py").exists() or not init.exists():
                continue
            spec = importlib.util.spec_from_file_location("bcc", init, submodule_search_locations=[str(directory)])
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            sys.modules["bcc"] = module
            try:
                spec.loader.exec_module(module)
            except (ImportError, OSError) as error:
                del sys.modules["bcc"]
                raise MissingFeature(f"{directory} cannot be loaded: {error}: reinstall python3-bpfcc") from None
            return module
    raise MissingFeature("BCC is not installed: apt install python3-bpfcc (or run scripts/install-debian.sh)")


def check_headers(release: str) -> None:
    """BCC compiles at run time.

    Raises:
        MissingFeature: no kernel headers where BCC looks for them.
    """
    build = Path("/lib/modules") / release / "build"
    if (build / "include").exists() or Path("/sys/kernel/kheaders.tar.xz").exists():
        return
    raise MissingFeature(f"no kernel headers in {build}: run scripts/install-debian.sh, which finds or borrows them")
