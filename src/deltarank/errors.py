"""The expected failures. Each has a message and a cure.

    DeltarankError
    ├── UsageError              the command line or the arguments are invalid            (exit 2)
    └── JobError                the job is valid and cannot be done                      (exit 1)
        ├── CheckpointError     a checkpoint is missing or broken
        │   └── HeaderError     a safetensors header or a shard index is invalid
        ├── PairingError        the two checkpoints cannot be compared
        ├── AdapterError        an adapter is missing, broken, or of an unsupported kind
        ├── OutputError         the output exists, is full, or cannot be written
        └── ResultsError        a results file cannot be read

The message says what was found and what was expected; the cure says what to do. `slug` names the section of
`docs/messages.md` about it.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class DeltarankError(Exception):
    """The base class of all expected failures. The command line prints them without a traceback."""

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
    """The command line or the arguments are invalid."""

    exit_code = 2


class JobError(DeltarankError):
    """The job is valid and cannot be done."""


class CheckpointError(JobError):
    """A checkpoint is missing or broken."""


class HeaderError(CheckpointError):
    """A safetensors header or a shard index is invalid."""


class PairingError(JobError):
    """The two checkpoints cannot be compared."""


class AdapterError(JobError):
    """An adapter is missing, broken, of an unsupported kind, or of another base."""


class OutputError(JobError):
    """The output exists already, is full, or cannot be written."""


class ResultsError(JobError):
    """A results file cannot be read."""
