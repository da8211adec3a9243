"""Trainings at the same time, each in a thread of its own: torch computes outside of Python's global lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from deltarank.demo.steps import OnStep


class _StoppedError(Exception):
    """Ends a training because another one failed, or the user pressed Ctrl-C."""


def run_at_once(*trainings: Callable[[OnStep], float]) -> list[float]:
    """What the trainings return, in their order.

    The cores are divided among them, so the numbers depend on how many cores there are, and on nothing else.

    Args:
        trainings: each gets a function to call after each step, which ends the training when another one has failed.
    """
    threads = torch.get_num_threads()
    stopped = threading.Event()

    def stop_if_asked(loss: float) -> None:
        if stopped.is_set():
            raise _StoppedError

    def run(training: Callable[[OnStep], float]) -> float:
        torch.set_num_threads(max(1, threads // len(trainings)))  # of this thread
        try:
            return training(stop_if_asked)
        except BaseException:
            stopped.set()
            raise

    try:
        with ThreadPoolExecutor(len(trainings)) as pool:
            futures = [pool.submit(run, training) for training in trainings]
            try:
                wait(futures)
            except BaseException:  # Ctrl-C
                stopped.set()
                raise
    finally:
        torch.set_num_threads(threads)
    for error in filter(None, (future.exception() for future in futures)):
        if not isinstance(error, _StoppedError):
            raise error
    return [future.result() for future in futures]
