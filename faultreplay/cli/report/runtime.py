"""The pictures' library for the page: Vega, Vega-Lite and Vega-Embed as one script, made once and kept."""

from __future__ import annotations

import contextlib
import os
import resource
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from faultreplay.cli.report.charts import altair
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.units import format_bytes

LICENCE: Final = """
The pictures are drawn by Vega, Vega-Lite, Vega-Embed and vega-interpreter,
Copyright (c) 2015-2025, University of Washington Interactive Data Lab, under the BSD 3-Clause licence:

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote
   products derived from this software without specific prior written permission.
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

It holds modules of D3, Copyright 2010-2023 Mike Bostock, under the ISC licence:

Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted,
provided that the above copyright notice and this permission notice appear in all copies. THE SOFTWARE IS PROVIDED "AS
IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL
DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT,
NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.
"""


ADDRESS_BYTES: Final = 128 << 30
"""What V8 reserves when it starts, seen with vl-convert 1.9: 64 GiB are too few, 128 are enough."""


def vl_convert() -> Any:
    """The library that draws files and holds the script.

    Raises:
        MissingFeature: it is not installed, or this process may not reserve the addresses that it wants.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < ADDRESS_BYTES:  # its engine would end the process, with a signal
        raise MissingFeature(
            f"a picture needs {format_bytes(ADDRESS_BYTES)} of addresses (not of memory), and this process may have "
            f"{format_bytes(allowed)}: ulimit -v unlimited"
        )
    try:
        import vl_convert as vlc
    except ImportError:
        raise MissingFeature("a picture needs altair and vl-convert: pip install 'faultreplay[report]'") from None
    return vlc


def vega_lite() -> str | None:
    """The version of Vega-Lite that altair writes for, as ``6.4``; None: vl-convert lacks it, take its newest."""
    version = ".".join(altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return version if version in vl_convert().get_vegalite_versions() else None


def runtime() -> str:
    """The script. Making it takes some 5 s; it is kept in the user's cache.

    Raises:
        MissingFeature: its library is not installed.
    """
    version = vega_lite()
    made_by = f"vl-convert-{metadata.version('vl-convert-python')}-vega-lite-{version or 'newest'}"
    kept = _cache() / f"{made_by}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        before = kept.read_text(encoding="utf-8")
        if before.endswith(_END):
            return before
    # No text can end the page's element early.
    text: str = vl_convert().javascript_bundle(vl_version=version).replace("</script", "<\\/script") + _END
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(kept)
    return text


_END: Final = "\n// whole\n"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faultreplay"
