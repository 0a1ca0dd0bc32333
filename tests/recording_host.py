"""What this host lacks for live recordings; empty when nothing."""

from __future__ import annotations

import os
import shutil
import sys

from faultreplay.collect.recorder.host import missing_capabilities
from faultreplay.faulttrace.errors import FaultreplayError


def _lacking() -> str:
    if sys.platform != "linux" or missing_capabilities():
        return f"needs root or {', '.join(missing_capabilities())}"
    try:
        from faultreplay.collect.backends.bcc_loader import check_headers, load_bcc
        from faultreplay.collect.backends.tracefs import tracefs_root

        load_bcc()
        check_headers(os.uname().release)
        tracefs_root()
    except FaultreplayError as error:
        return str(error)
    return "" if shutil.which("cc") else "needs a C compiler"


LACKING = _lacking()
