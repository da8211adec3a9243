from .errors import DeltarankError as DeltarankError
from .jobs.compare import Plan as Plan
from .jobs.compare import compare as compare
from .jobs.compare import open_results as open_results
from .jobs.compare import plan as plan
from .jobs.extract import ExtractedAdapter as ExtractedAdapter
from .jobs.extract import ExtractionPlan as ExtractionPlan
from .jobs.extract import extract as extract
from .jobs.extract import plan_extraction as plan_extraction
from .jobs.outputs import Outputs as Outputs
from .jobs.outputs import OutputsPlan as OutputsPlan
from .jobs.outputs import outputs as outputs
from .jobs.outputs import plan_outputs as plan_outputs
from .jobs.verify import verify as verify
from .jobs.which_base import which_base as which_base
from .results import BaseChoice as BaseChoice
from .results import Loss as Loss
from .results import MatrixResult as MatrixResult
from .results import MergeCheck as MergeCheck
from .results import Outcome as Outcome
from .results import Results as Results
from .results import Verdict as Verdict
from .results import Verification as Verification
from .runtime import ProgressListener as ProgressListener

__version__: str
