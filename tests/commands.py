"""`deltarank` as a user gives it: in this process, or in one that takes one line after another."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from deltarank.runtime import ProgressListener


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


class RunCommand(Protocol):
    """The fixture `command`: `deltarank` with these words."""

    def __call__(self, *words: object) -> Finished: ...


class StopAfter(ProgressListener):
    """Interrupts a run, as Ctrl-C does, after so many matrices."""

    def __init__(self, matrices: int) -> None:
        self.left = matrices

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class LineProcess:
    """A Python process with a program that answers each line of JSON with one."""

    def __init__(self, program: str, environment: Mapping[str, str], **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            **options,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._process.wait(timeout=60)
        self._answers.close()

    def request(self, value: object) -> Any:
        """The answer; lines that are no answers, as commands print them, are passed over."""
        self._requests.write(json.dumps(value) + "\n")
        self._requests.flush()
        while not (line := self._answers.readline()).startswith("@"):
            assert line, "the process has ended"
        return json.loads(line[1:])
