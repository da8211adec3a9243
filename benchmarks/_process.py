"""Runs a command as a child process and asks the kernel what it cost.

This module, and whoever uses it, imports no torch: on Linux a child's `ru_maxrss` starts at what its parent held
when it was started, so a fat parent would be charged to every child.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Hub ids are never asked for: nobody's time shall hang on a network.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Usage:
    """What one process cost, its own children included.

    wall      seconds from start to end, the interpreter's start and all imports included
    cpu       user + system seconds over all threads
    peak_rss  bytes, `ru_maxrss`: also counts pages of memory-mapped files that were touched
    others    how many cores everybody else kept busy meanwhile, on average; None where the system does not say.
              Threaded linear algebra waits at barriers: half a core taken away can make it ten times as slow
    read      bytes that it asked the system to read, the modules of Python among them; None where that is not counted
    """

    wall: float
    cpu: float
    peak_rss: int
    others: float | None
    read: int | None = None


class RunFailedError(Exception):
    """A contestant ended with an error. Holds the end of what it said."""


def run(command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Runs the command to its end, its output into `log`. `environment` has the last word over the usual one.

    Raises:
        RunFailedError: it could not be started or its exit status was not 0.
    """
    with log.open("wb") as sink:
        start, busy = time.perf_counter(), _busy_seconds()
        try:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            )
        except OSError as error:
            raise RunFailedError(f"cannot start {command[0]}: {error}") from error
        status, used, read = _wait(child)
        wall, busy_after = time.perf_counter() - start, _busy_seconds()
    if status != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise RunFailedError(f"exit status {status}: {' '.join(str(part) for part in command)}\n{tail}")
    cpu = used.ru_utime + used.ru_stime
    others = None if busy is None or busy_after is None else max(0.0, (busy_after - busy - cpu) / wall)
    return Usage(wall, cpu, used.ru_maxrss * _RSS_UNIT, others, read)


def _busy_seconds() -> float | None:
    """Seconds of all cores since boot in which they were not idle (Linux: the first line of /proc/stat)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, fields)
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage, int | None]:
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        read = _bytes_read(child.pid)
        _, status, used = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        child.wait()
        raise
    # Popen was not the one who waited; without this it would warn that the child still runs.
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, used, read


def _bytes_read(pid: int) -> int | None:
    """Of a process that has ended and is not reaped yet (Linux)."""
    try:
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except OSError:
        return None
    return int(fields["rchar"])
