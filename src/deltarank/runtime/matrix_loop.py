"""One pass over many tensors, by the worker pool, with progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence, Set

import torch

from deltarank.checkpoints import Checkpoint, Pair, SummedTensor
from deltarank.runtime.plan import READ_RATE, Plan, Step
from deltarank.runtime.progress import ProgressListener
from deltarank.runtime.tasks import ResultT, TaskT, Worker
from deltarank.runtime.throughput import Throughput
from deltarank.runtime.time_estimate import TimeEstimate
from deltarank.runtime.workers import task_pool


def planned_seconds(step: Step) -> float:
    """Seconds to compute one matrix and to read it from both checkpoints."""
    return step.seconds + step.pair.nbytes / READ_RATE


def estimate_time(
    plan: Plan, finished: Set[str], checkpoints: tuple[Checkpoint, Checkpoint], progress: ProgressListener
) -> TimeEstimate:
    """The time of a pass over a plan: its matrices, and the tensors of which only the sums are taken.

    Args:
        finished: the names of what an earlier process has done.
    """
    tensors: list[Pair | SummedTensor] = [*(step.pair for step in plan.steps), *plan.pairing.summed]
    costs = {step.pair.name: planned_seconds(step) for step in plan.steps}
    costs |= {tensor.name: tensor.nbytes / READ_RATE for tensor in plan.pairing.summed}
    return TimeEstimate(
        progress,
        math.fsum(costs.values()),
        resumed=math.fsum(cost for name, cost in costs.items() if name in finished),
        throughput=Throughput(checkpoints, [each for each in tensors if each.name not in finished], progress),
    )


def matrix_pass(
    groups: Sequence[Sequence[TaskT]],
    make_worker: Callable[[], Worker[TaskT, ResultT]],
    *,
    seconds: Callable[[TaskT], float],
    workers: int,
    device: torch.device,
    progress: ProgressListener,
    estimate: TimeEstimate,
) -> Generator[ResultT, None, None]:
    """Yields a result for each task, as they are finished; see `TaskPool`.

    Progress is reported after the caller has taken a result, so that what it reports as finished has been kept.

    Args:
        seconds: what the plan foretold for a task.
        workers: how many are planned on this machine.
        device: what they compute on.
    """
    names = [task.pair.name for group in groups for task in group]
    if names:
        progress.began(names[0])
    pool = task_pool(make_worker, workers=workers, device=device)
    for number, (task, result) in enumerate(pool.results(groups), start=1):
        yield result
        estimate.add(task.pair.name, seconds(task))
        if number < len(names):
            progress.began(names[number])
