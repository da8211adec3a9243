"""What the machine and its libraries need to be told: threads, memory, imports that log. Standard library only."""

from __future__ import annotations

from deltarank.system.quiet_imports import import_quietly, quietly
from deltarank.system.threads import wait_politely

__all__ = [
    "import_quietly",
    "quietly",
    "wait_politely",
]
