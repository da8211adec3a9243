"""What Ray adds to a task, and two workers of one core beside one.

    python benchmarks/ray_costs_milliseconds_a_task.py [--data DATA] [--shape small] [--layers 4] [--quick]

It needs `pip install 'deltarank[ray]'`. All nodes are on this machine. First, tasks whose worker does nothing: what is
left is packing, scheduling and sending. Then `compare` of one pair, a matrix a task, with one node of one core, with
two, and in threads. Ends with status 1 if a number differs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import torch

import _report
import deltarank
from _shapes import Pair, ensure
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.ray_pool import bundles
from deltarank.runtime import SolverOptions, Step, make_plan, task_pool

RANKS = [64]


class Idle:
    """A worker that does nothing."""

    def results(self, steps: Sequence[Step]) -> list[int]:
        return [0] * len(steps)


def main() -> int:
    parser = _report.arguments(__doc__)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.quick:
        asked.layers, asked.tasks, asked.rounds = 1, 50, 1
    print(f"{_report.machine_line()}\nload: {os.getloadavg()[0]:.0f}\n")
    bundles.SMALL_BYTES = 0
    pair = ensure(asked.data, asked.shape, asked.layers)
    empty, rows, equal = measured(pair, asked.tasks, asked.rounds)
    _report.save(Path(__file__).stem, {"empty": empty, "rows": rows})
    print(_report.table(("a task that does nothing", "wall, ms", "processor of this process, ms"), [empty]) + "\n")
    print(_report.table(("compare", *(f"round {i + 1}, s" for i in range(asked.rounds))), rows))
    return 0 if equal else 1


def measured(pair: Pair, tasks: int, rounds: int) -> tuple[Sequence[str], list[Sequence[str]], bool]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    times: dict[str, list[float]] = {}
    found = []
    try:
        with deltarank.on_ray(cluster.address):
            empty = of_empty_tasks(pair, tasks)
            for _ in range(rounds):
                found.append(timed(times, "Ray, one worker", pair))
                with another(cluster):
                    found.append(timed(times, "Ray, two workers", pair))
                found.append(Context().run(timed, times, "threads", pair))
    finally:
        cluster.shutdown()
    rows = [(name, *(f"{seconds:.1f}" for seconds in taken)) for name, taken in times.items()]
    return empty, rows, all(each == found[0] for each in found)


def of_empty_tasks(pair: Pair, tasks: int) -> Sequence[str]:
    options = SolverOptions(ranks=(64,))
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.finetune) as finetune:
        steps = make_plan(base, finetune, pair_checkpoints(base, finetune), options).steps
        groups = [[steps[i % len(steps)]] for i in range(tasks)]
        list(task_pool(Idle, workers=1, device=torch.device("cpu")).results(groups[:4]))  # starts the process
        wall, cpu = time.perf_counter(), time.process_time()
        list(task_pool(Idle, workers=1, device=torch.device("cpu")).results(groups))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"of {tasks:,}", f"{1e3 * wall / tasks:.2f}", f"{1e3 * cpu / tasks:.2f}"


@contextmanager
def another(cluster: Any) -> Iterator[None]:
    """A second node, with its worker process started."""
    node = cluster.add_node(num_cpus=1)
    try:
        yield
    finally:
        cluster.remove_node(node)


def timed(times: dict[str, list[float]], name: str, pair: Pair) -> list[Any]:
    """The losses, after a first run that starts the processes."""
    deltarank.compare(pair.base, pair.finetune, ranks=RANKS, include=["*layers.0.*"])
    start = time.perf_counter()
    results = deltarank.compare(pair.base, pair.finetune, ranks=RANKS)
    times.setdefault(name, []).append(time.perf_counter() - start)
    return [matrix.losses for matrix in results.matrices]


if __name__ == "__main__":
    sys.exit(main())
