"""What the machine and its libraries need to be told: threads, memory, imports that log. Standard library only."""

from __future__ import annotations

from deltarank.system.quiet_imports import import_silently, silence_logging
from deltarank.system.threads import limit_openmp_spinning
from deltarank.system.version import tool_version

__all__ = [
    "import_silently",
    "limit_openmp_spinning",
    "silence_logging",
    "tool_version",
]
