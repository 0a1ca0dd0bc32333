# The names that `faultreplay/__init__.py` imports when they are used; tests/test_library.py holds the two together.

from faultreplay.analysis.calibrate.calibrate import Fit as Fit
from faultreplay.analysis.compare.case import Case as Case
from faultreplay.analysis.compare.compare import Comparison as Comparison
from faultreplay.analysis.compare.predict import Setup as Setup
from faultreplay.analysis.views.chosen import Choice as Choice
from faultreplay.analysis.views.explain import Life as Life
from faultreplay.analysis.views.timeline import Timeline as Timeline
from faultreplay.analysis.views.top import Top as Top
from faultreplay.api import calibrate as calibrate
from faultreplay.api import compare as compare
from faultreplay.api import costs as costs
from faultreplay.api import explain as explain
from faultreplay.api import faults as faults
from faultreplay.api import mechanism as mechanism
from faultreplay.api import open_case as open_case
from faultreplay.api import record as record
from faultreplay.api import timeline as timeline
from faultreplay.api import top as top
from faultreplay.api import workload as workload
from faultreplay.collect.recorder.spec import RecordSpec as RecordSpec
from faultreplay.collect.recorder.spec import RecordSummary as RecordSummary
from faultreplay.faulttrace.errors import FaultreplayError as FaultreplayError
from faultreplay.faulttrace.store import Trace as Trace
from faultreplay.faulttrace.store import open_trace as open_trace
from faultreplay.replay.engine.engine import Result as Result
from faultreplay.replay.engine.engine import simulate as simulate
from faultreplay.replay.engine.windows import Window as Window
from faultreplay.replay.language.costs import CostTable as CostTable
from faultreplay.replay.language.mechanism import Mechanism as Mechanism
from faultreplay.replay.workload.workload import Workload as Workload

__version__: str
__all__: list[str]
