"""Every expected failure, each with a cure.

    DeltarankError
    ├── UsageError              the command line or the arguments cannot be meant       (exit 2)
    └── JobError                the job was understood and cannot be done               (exit 1)
        ├── CheckpointError     a checkpoint is missing, broken or not what it says
        │   └── HeaderError     a safetensors header or a shard index is not to be trusted
        ├── PairingError        the two checkpoints do not belong together
        ├── AdapterError        an adapter is missing, broken, or of a kind that is not read
        ├── OutputError         the output exists, is full, or cannot be written
        └── ResultsError        a results file cannot be read

A message says what was got and what was expected; the cure says what to do. The `slug` names the section
of `docs/messages.md` that explains the message.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class DeltarankError(Exception):
    """The root of all expected failures: caught at the doorway and printed without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, cure: str, slug: str) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.slug = slug

    def __str__(self) -> str:
        return f"{self.message}\n{self.cure}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments; ours would lose cure and slug between processes.
        return partial(type(self), cure=self.cure, slug=self.slug), (self.message,)


class UsageError(DeltarankError):
    """The command line or the arguments cannot be meant."""

    exit_code = 2


class JobError(DeltarankError):
    """The job was understood and cannot be done."""


class CheckpointError(JobError):
    """A checkpoint is missing, broken, or not what it says it is."""


class HeaderError(CheckpointError):
    """A safetensors header or a shard index is not to be trusted."""


class PairingError(JobError):
    """The two checkpoints do not belong together."""


class AdapterError(JobError):
    """An adapter is missing, broken, of a kind that is not read, or of another base."""


class OutputError(JobError):
    """The output exists already, is full, or cannot be written."""


class ResultsError(JobError):
    """A results file cannot be read."""
