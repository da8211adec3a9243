"""How a long job runs: its inputs and options, its plan, its workers, its folder and its progress."""

from deltarank.runtime.compute_rate import operations_per_second
from deltarank.runtime.delta_reader import DeltaReader
from deltarank.runtime.device_memory import available_memory
from deltarank.runtime.failures import RETRIED_OUTCOMES, TENSOR_FAILURES, failure_outcome
from deltarank.runtime.inputs import InputKeywords, ModelRef, PairRefs, Ref
from deltarank.runtime.keywords import parse_keywords, shows_keywords
from deltarank.runtime.matrix_loop import estimate_time, matrix_pass, planned_seconds
from deltarank.runtime.plan import (
    FIXED_MEMORY,
    FIXED_SECONDS,
    PROMISED_MEMORY,
    READ_RATE,
    Plan,
    Step,
    make_plan,
    needs_line,
    needs_text,
    reference_line,
    step_lines,
)
from deltarank.runtime.progress import PartOfJob, ProgressListener
from deltarank.runtime.progress_bar import ProgressBar, ProgressNotes, end_of_name, shown_transfer, whole_percents
from deltarank.runtime.provenance import run_provenance, utc_timestamp
from deltarank.runtime.run_folder import (
    IDENTITY,
    RECORDS,
    RESULTS,
    Record,
    RunFolder,
    as_output_error,
    differences,
    read_identity,
)
from deltarank.runtime.second_process import work_beside
from deltarank.runtime.solver_options import SolverOptions, as_tuple, check_choice, is_number
from deltarank.runtime.tasks import PoolMaker, ResultT, Task, TaskPool, TaskT, Worker
from deltarank.runtime.thread_pool import ThreadPool
from deltarank.runtime.throughput import Throughput
from deltarank.runtime.time_estimate import TimeEstimate
from deltarank.runtime.workers import task_pool, use_pools

__all__ = [
    "FIXED_MEMORY",
    "FIXED_SECONDS",
    "IDENTITY",
    "PROMISED_MEMORY",
    "READ_RATE",
    "RECORDS",
    "RESULTS",
    "RETRIED_OUTCOMES",
    "TENSOR_FAILURES",
    "DeltaReader",
    "InputKeywords",
    "ModelRef",
    "PairRefs",
    "PartOfJob",
    "Plan",
    "PoolMaker",
    "ProgressBar",
    "ProgressListener",
    "ProgressNotes",
    "Record",
    "Ref",
    "ResultT",
    "RunFolder",
    "SolverOptions",
    "Step",
    "Task",
    "TaskPool",
    "TaskT",
    "ThreadPool",
    "Throughput",
    "TimeEstimate",
    "Worker",
    "as_output_error",
    "as_tuple",
    "available_memory",
    "check_choice",
    "differences",
    "end_of_name",
    "estimate_time",
    "failure_outcome",
    "is_number",
    "make_plan",
    "matrix_pass",
    "needs_line",
    "needs_text",
    "operations_per_second",
    "parse_keywords",
    "planned_seconds",
    "read_identity",
    "reference_line",
    "run_provenance",
    "shown_transfer",
    "shows_keywords",
    "step_lines",
    "task_pool",
    "use_pools",
    "utc_timestamp",
    "whole_percents",
    "work_beside",
]
