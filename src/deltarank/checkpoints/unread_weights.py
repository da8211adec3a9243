"""Weights beside and below those that are read: the user may have meant them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.other_formats import is_other_format
from deltarank.checkpoints.subfolders import models_below
from deltarank.checkpoints.weight_names import gguf_weights, pickled_weights
from deltarank.results import listing

_TRAINING_STEP = re.compile(r"(checkpoint|epoch|step|global_step|iter)[-_]?\d+", re.IGNORECASE)


def notes_on_unread(folder: Path, read: Collection[str], names: Sequence[str]) -> Iterator[str]:
    """Notes on weights in another format beside those that are read, and on checkpoints of the training below.

    Args:
        read: the files of the weights, and those that were compared with them.
        names: all files of the folder.
    """
    others = [*gguf_weights(names), *(name for name in pickled_weights(names) if not is_other_format(name))]
    if others := sorted(set(others) - set(read)):
        yield f"{quoted(min(read))} is read; {_are_not(others, 'beside')}"
    below = [each.path.name for each in models_below(folder) if _TRAINING_STEP.fullmatch(each.path.name)]
    if below:
        yield f"the weights in {quoted(folder.name)} itself are read; {_are_not(below, 'below')}"


def _are_not(names: Sequence[str], where: str) -> str:
    return f"{listing([quoted(name) for name in names], most=3)} {where} it {'is' if len(names) == 1 else 'are'} not"
