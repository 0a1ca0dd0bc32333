"""Traces from other tools' output. What a source cannot know is marked as missing in `meta.probes`, never made up."""

from faultreplay.collect.importers.qemu import import_qemu
from faultreplay.collect.importers.run import SOURCES, ImportSummary, import_file

__all__ = ["SOURCES", "ImportSummary", "import_file", "import_qemu"]
