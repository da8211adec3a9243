"""The two ways in which a checkpoint file fails: it cannot be read, or its contents are invalid."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.errors import CheckpointError, HeaderError

COPY_AGAIN = "Download or copy the file again, then compare its size and checksum with those that its publisher states."


def unreadable(path: Path | str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"Cannot read {quoted(path, max_length=300)}: {reason}.",
        cure="Check that the file is complete, that you have permission to read it, and that its disk works; then run "
        "the command again.",
        slug="unreadable",
    )


def unreadable_because(path: Path | str, error: OSError) -> CheckpointError:
    return unreadable(path, error.strerror or str(error))


def refuse_file(file: str, problem: str, *, slug: str = "bad-header", cure: str = COPY_AGAIN) -> NoReturn:
    """Raises:
    HeaderError: always.
    """
    raise HeaderError(f"{quoted(file)} is invalid: {problem}.", cure=cure, slug=slug) from None
