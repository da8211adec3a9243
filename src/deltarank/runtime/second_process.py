"""Work in a second process, while this one does something else."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from deltarank.errors import JobError


@contextmanager
def work_beside(function: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Calls the function in a process of its own while the block runs; leaving the block waits for it.

    torch gets half of the cores in each of the two: small models gain little from more threads, and all from a
    process. If the block raises, the other process is ended.

    Args:
        function: of a module, with arguments that can be pickled. What it returns is lost.

    Raises:
        Exception: what the function raised.
        JobError: (slug "process-died") the process ended without an answer.
    """
    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks of torch's threads
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_call, args=(sender, half, function, arguments), daemon=True)
    process.start()
    sender.close()
    torch.set_num_threads(half)
    try:
        yield
        error = _answer(receiver)
    finally:
        torch.set_num_threads(threads)
        process.terminate()
        process.join()
        receiver.close()
    if error is not None:
        raise error


def _answer(receiver: Connection) -> Exception | None:
    try:
        error: Exception | None = receiver.recv()
    except EOFError:
        return JobError(
            "A process that this command had started ended before its work was done.",
            cure="Look whether memory was short, then run the command again: finished work is kept.",
            slug="process-died",
        )
    return error


def _call(sender: Connection, threads: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the first process ends this one
    torch.set_num_threads(threads)
    try:
        function(*arguments)
    except Exception as error:  # passed on as it is
        sender.send(error)
    else:
        sender.send(None)
