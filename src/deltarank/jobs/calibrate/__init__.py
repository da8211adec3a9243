"""The `extract --calibrate` job: a LoRA whose factors are fitted to the finetune's predictions, not to its weights.

1. `extract` writes the plain adapter: truncated SVD of the delta.
2. The texts are split by document into three parts: one fits, one chooses, one is only scored.
3. The factors are moved by gradient descent on the KL divergence from the finetune; the step that is best on the
   documents that choose is kept, step 0, the plain adapter, among them.
4. The adapter, the plain one, the base and the whole delta are scored on the documents left.
"""

from deltarank.jobs.calibrate.api import (
    extract_calibrated,
    held_out_documents,
    plan_calibration,
)
from deltarank.jobs.calibrate.options import CalibrateKeywords, CalibrateOptions
from deltarank.jobs.calibrate.plan import CalibrationPlan

__all__ = [
    "CalibrateKeywords",
    "CalibrateOptions",
    "CalibrationPlan",
    "extract_calibrated",
    "held_out_documents",
    "plan_calibration",
]
