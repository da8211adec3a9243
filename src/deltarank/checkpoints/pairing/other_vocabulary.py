"""Vocabularies of unlike lengths whose rows are those of other tokens: pruned, reordered or exchanged ones."""

from __future__ import annotations

import torch

from deltarank.checkpoints.chunks import read_rows
from deltarank.checkpoints.pieces import Piece

UNLIKE = 0.9
"""From this ||D|| / ||W0|| on, rows are of other tokens: unrelated ones differ by about sqrt(2)."""

_PLACES = 4
_ROWS = 16


def have_other_tokens(base: Piece, finetune: Piece) -> bool:
    """Whether rows of equal number differ as unrelated ones do, in a sample of a few rows at several places.

    Raises:
        CheckpointError: (slug "unreadable") a file became shorter, or cannot be read.
    """
    rows = base.shape[0]
    number = min(_ROWS, rows)
    starts = {min(rows * (2 * i + 1) // (2 * _PLACES), rows - number) for i in range(_PLACES)}
    change = size = 0.0
    for first in sorted(starts):
        before, after = (_read(piece, first, first + number) for piece in (base, finetune))
        change += float((after - before).square().sum())
        size += float(before.square().sum())
    return change >= UNLIKE**2 * size > 0


def _read(piece: Piece, first: int, last: int) -> torch.Tensor:
    return torch.cat([rows.to(torch.float64) for _, rows in read_rows(piece, first, last)])
