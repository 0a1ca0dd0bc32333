"""Record guest-memory faults, replay them through other mechanisms, compare with what was measured.

What the command line does, as functions: docs/library.md. A name is imported when it is first used, so that
`import faultreplay` takes nothing. The types are in `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_AT = {
    "open_trace": "faulttrace.store",
    "faults": "api",
    "timeline": "api",
    "top": "api",
    "workload": "api",
    "mechanism": "api",
    "costs": "api",
    "simulate": "replay.engine.engine",
    "open_case": "api",
    "compare": "api",
    "explain": "api",
    "calibrate": "api",
    "record": "api",
    "Trace": "faulttrace.store",
    "Life": "analysis.views.explain",
    "Choice": "analysis.views.chosen",
    "Timeline": "analysis.views.timeline",
    "Top": "analysis.views.top",
    "Workload": "replay.workload.workload",
    "Mechanism": "replay.language.mechanism",
    "CostTable": "replay.language.costs",
    "Result": "replay.engine.engine",
    "Window": "replay.engine.windows",
    "Setup": "analysis.compare.predict",
    "Case": "analysis.compare.case",
    "Comparison": "analysis.compare.compare",
    "Fit": "analysis.calibrate.calibrate",
    "RecordSpec": "collect.recorder.spec",
    "RecordSummary": "collect.recorder.spec",
    "FaultreplayError": "faulttrace.errors",
}
__all__ = ["__version__", *_AT]  # noqa: PLE0604 (all of them are texts)


def __getattr__(name: str) -> Any:
    if name not in _AT:
        raise AttributeError(f"module 'faultreplay' has no attribute '{name}'")
    value = getattr(import_module(f"faultreplay.{_AT[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
