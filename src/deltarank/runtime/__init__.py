"""How a long job runs: its folder, its workers, its progress, its options and its plan."""

from __future__ import annotations

from deltarank.runtime._clock import Clock
from deltarank.runtime._pace import Pace
from deltarank.runtime.plan import (
    FIXED_MEMORY,
    PROMISED_MEMORY,
    READ_RATE,
    Plan,
    Step,
    make_plan,
    needs_line,
    reference_line,
    step_lines,
    total_memory,
)
from deltarank.runtime.progress import Watch
from deltarank.runtime.run_folder import IDENTITY, RESULTS, Journal, Record, as_output_error, differences
from deltarank.runtime.solver_options import Settings
from deltarank.runtime.throughput import Meter
from deltarank.runtime.workers import Crew

__all__ = [
    "FIXED_MEMORY",
    "IDENTITY",
    "PROMISED_MEMORY",
    "READ_RATE",
    "RESULTS",
    "Clock",
    "Crew",
    "Journal",
    "Meter",
    "Pace",
    "Plan",
    "Record",
    "Settings",
    "Step",
    "Watch",
    "as_output_error",
    "differences",
    "make_plan",
    "needs_line",
    "reference_line",
    "step_lines",
    "total_memory",
]
