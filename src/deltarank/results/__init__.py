"""The results of every job: frozen dataclasses of plain numbers that are written as JSON and read again.

No tensor, no torch. Also how numbers are written for people (`percent`, `figure`, `size`, ...).
"""

from __future__ import annotations

from deltarank.results.base_choice import BaseChoice, BaseKind, CandidateBase
from deltarank.results.codec import (
    Count,
    Energy,
    Norm,
    Rank,
    Share,
    StoredResult,
    from_record,
    parse_record,
    read_records,
    to_plain,
)
from deltarank.results.formatting import count, duration, figure, listing, percent, percents, size
from deltarank.results.matrix import Loss, MatrixResult, Outcome, Skipped
from deltarank.results.outputs import (
    AttributionResult,
    BlindBound,
    CandidateKind,
    CandidateResult,
    Divergence,
    DocumentScore,
    Excerpt,
    Histogram,
    Interval,
    Logits,
    Outputs,
    Part,
    Sample,
    SliceScore,
    Text,
    TwoSampleTest,
    Writing,
)
from deltarank.results.ranks import (
    DEFAULT_OUTPUTS_RANKS,
    DEFAULT_RANKS,
    PREFERRED_RANK,
    SERVABLE_RANKS,
    headline_rank,
)
from deltarank.results.reference import Reference
from deltarank.results.run import AuditRow, Results, Verdict, VerdictKind
from deltarank.results.text_table import format_table
from deltarank.results.totals import Total, Totals
from deltarank.results.verification import (
    FitEnergies,
    FitKind,
    IgnoredTensor,
    TensorChange,
    TensorFit,
    Verification,
    compared_energies,
    touched_energies,
)

__all__ = [
    "DEFAULT_OUTPUTS_RANKS",
    "DEFAULT_RANKS",
    "PREFERRED_RANK",
    "SERVABLE_RANKS",
    "AttributionResult",
    "AuditRow",
    "BaseChoice",
    "BaseKind",
    "BlindBound",
    "CandidateBase",
    "CandidateKind",
    "CandidateResult",
    "Count",
    "Divergence",
    "DocumentScore",
    "Energy",
    "Excerpt",
    "FitEnergies",
    "FitKind",
    "Histogram",
    "IgnoredTensor",
    "Interval",
    "Logits",
    "Loss",
    "MatrixResult",
    "Norm",
    "Outcome",
    "Outputs",
    "Part",
    "Rank",
    "Reference",
    "Results",
    "Sample",
    "Share",
    "Skipped",
    "SliceScore",
    "StoredResult",
    "TensorChange",
    "TensorFit",
    "Text",
    "Total",
    "Totals",
    "TwoSampleTest",
    "Verdict",
    "VerdictKind",
    "Verification",
    "Writing",
    "compared_energies",
    "count",
    "duration",
    "figure",
    "format_table",
    "from_record",
    "headline_rank",
    "listing",
    "parse_record",
    "percent",
    "percents",
    "read_records",
    "size",
    "to_plain",
    "touched_energies",
]
