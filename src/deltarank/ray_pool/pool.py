"""The tasks of a pass on a Ray cluster.

Each task is a function call of Ray Core: Ray chooses a machine with a free core (or GPU), and calls it again elsewhere
if the process or the machine is lost. Results come back here, so that this process alone writes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic

import ray
import torch

from deltarank.errors import DeltarankError, JobError, UsageError
from deltarank.ray_pool import shipped
from deltarank.ray_pool.bundles import Bundle, bundle
from deltarank.ray_pool.references import Packer
from deltarank.results import listing, size
from deltarank.runtime import FIXED_MEMORY, ResultT, TaskT, Worker

MOST_SUBMITTED = 256
"""Tasks that wait or run. A cluster with more cores than that is not used whole."""

RETRIES = 5
"""How often a task is begun again after its process or its machine was lost."""

ray.cloudpickle.register_pickle_by_value(shipped)


class RayPool(Generic[TaskT, ResultT]):
    """Runs groups of tasks on the cluster that this process is connected to.

    Args:
        make_worker: called once in each process of the cluster.
        workers: not used: how many tasks run at a time follows from the cores (or GPUs) of the cluster.
        device: a task on a GPU takes one GPU.

    Raises:
        UsageError: (slug "bad-device") the device is a certain GPU, or none that Ray knows.
    """

    def __init__(
        self, make_worker: Callable[[], Worker[TaskT, ResultT]], *, workers: int, device: torch.device
    ) -> None:
        _check_device(device)
        self._packer = Packer(ray.put)
        self._make_worker = make_worker
        self._gpus = 1 if device.type == "cuda" else 0
        self._name = uuid.uuid4().hex
        self._job = ray.get_runtime_context().get_job_id()
        self._running: dict[Any, Bundle[TaskT]] = {}

    def results(self, groups: Sequence[Sequence[TaskT]]) -> Iterator[tuple[TaskT, ResultT]]:
        """See `TaskPool`.

        Raises:
            JobError: (slug "ray-versions") a worker has another version of deltarank, Python or torch; (slug
                "ray-files") a worker lacks the files; (slug "ray-too-small") no machine of the cluster can run a task;
                (slug "ray-worker-lost") a task lost its process several times.
        """
        memory = FIXED_MEMORY + max((getattr(task, "memory", 0.0) for group in groups for task in group), default=0.0)
        self._check_resources(memory)
        call = ray.remote(shipped.run_task).options(
            num_cpus=1, num_gpus=self._gpus, memory=int(memory), max_retries=RETRIES
        )
        make_worker, expected = self._packer.pack(self._make_worker), shipped.versions()
        failures: list[BaseException] = []
        try:
            for each in bundle(groups):
                if len(self._running) >= MOST_SUBMITTED:
                    yield from self._finished(failures)
                if failures:
                    break
                self._running[call.remote(expected, (self._name, make_worker, self._packer.pack(each)))] = each
            while self._running and not failures:
                yield from self._finished(failures)
            if failures:
                raise failures[0]
        finally:
            self._cancel()

    def _finished(self, failures: list[BaseException]) -> Iterator[tuple[TaskT, ResultT]]:
        """Waits until a task is finished, and takes all that are."""
        ready, _ = ray.wait(list(self._running), num_returns=1)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            groups = self._running.pop(reference)
            tasks = [task for group in groups for task in group]
            try:
                results = self._taken(reference, tasks)
            except DeltarankError as error:
                failures.append(error)
            else:
                yield from zip(tasks, results, strict=True)

    def _taken(self, reference: Any, tasks: Sequence[TaskT]) -> list[ResultT]:
        try:
            kind, found = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # a fault of ours in the worker
        except ray.exceptions.RayError as error:
            raise _lost(tasks, error) from error
        if kind == "failed":
            raise found
        if kind == "versions":
            raise _other_versions(*found)
        results, read = found
        for key, nbytes in read.items():
            self._packer.sources[key].count_elsewhere(nbytes)
        return list(results)

    def _cancel(self) -> None:
        """Ends what still runs, unless the connection has ended, and that with it."""
        if self._running and ray.is_initialized() and ray.get_runtime_context().get_job_id() == self._job:
            for waiting in self._running:
                ray.cancel(waiting, force=True)

    def _check_resources(self, memory: float) -> None:
        """Ray would wait forever for a machine that a task fits on."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self._gpus and not any(node.get("GPU", 0) >= 1 for node in nodes):
            raise _too_small("has no GPU", "Use --device cpu, or add a machine with a GPU.")
        largest = max((node.get("memory", 0.0) for node in nodes if node.get("CPU", 0) >= 1), default=0.0)
        if largest < memory:
            raise _too_small(
                f"has no machine with a core and {size(memory)} of memory for a task, the most is {size(largest)}",
                "Add a larger machine, or leave out the largest matrices with --exclude.",
            )


def _check_device(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda") or device.index:
        raise UsageError(
            f"The device {str(device)!r} cannot be used on Ray, which gives each task a core or a GPU.",
            cure="Use --device cpu or --device cuda.",
            slug="bad-device",
        )


def _too_small(what: str, cure: str) -> JobError:
    return JobError(f"The Ray cluster {what}.", cure=cure, slug="ray-too-small")


def _other_versions(node: str, found: dict[str, str]) -> JobError:
    expected = shipped.versions()
    differ = [
        f"{(found[name] and f'{name} {found[name]}') or f'no {name}'} instead of {expected[name]}"
        for name in expected
        if found[name] != expected[name]
    ]
    return JobError(
        f"The Ray worker on {node} has {' and '.join(differ)}.",
        cure="Install the same versions on all machines of the cluster: the numbers may depend on them.",
        slug="ray-versions",
    )


def _lost(tasks: Sequence[TaskT], error: Exception) -> JobError:
    names = listing([task.pair.name for task in tasks], most=2)
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return JobError(
        f"The Ray workers that measured {names} were lost, {RETRIES + 1} times: {reason[:300]}",
        cure="A worker may need more memory than its machine has. Repeat the same command to resume: what is finished "
        "is kept.",
        slug="ray-worker-lost",
    )
