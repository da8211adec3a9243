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
from deltarank.runtime.progress import ProgressListener
from deltarank.runtime.run_folder import IDENTITY, RESULTS, Record, RunFolder, as_output_error, differences
from deltarank.runtime.solver_options import SolverOptions
from deltarank.runtime.throughput import Throughput
from deltarank.runtime.workers import WorkerPool

__all__ = [
    "FIXED_MEMORY",
    "IDENTITY",
    "PROMISED_MEMORY",
    "READ_RATE",
    "RESULTS",
    "Clock",
    "Pace",
    "Plan",
    "ProgressListener",
    "Record",
    "RunFolder",
    "SolverOptions",
    "Step",
    "Throughput",
    "WorkerPool",
    "as_output_error",
    "differences",
    "make_plan",
    "needs_line",
    "reference_line",
    "step_lines",
    "total_memory",
]
