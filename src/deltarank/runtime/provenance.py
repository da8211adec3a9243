"""How a result came about: threads, the version of torch, the duration, the command line, the time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch

from deltarank.system import current_command


def run_provenance(seconds: float, **details: Any) -> dict[str, Any]:
    """What `compare` and `extract` add to `settings`: threads, version of torch, details, duration, command."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **details,
        "seconds": round(seconds, 1),
        "command": current_command(),
    }


def utc_timestamp() -> str:
    """The time in UTC, as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
