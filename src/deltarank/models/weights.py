"""A candidate's weights: a checkpoint's tensors with some edits, each read and computed only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from deltarank.checkpoints import FLOAT_DTYPES, PLAIN_DTYPES, Checkpoint, Piece, TensorInfo


@dataclass(frozen=True)
class Edit:
    """A change of one piece of a tensor: a whole matrix, or one expert's slice of a stack.

    change      takes the piece in float32 and returns its replacement; it may write into what it gets
    round_to    the dtype to which the replacement is rounded, as a file of that dtype would hold it
    new_tensor  the name of a tensor that the checkpoint does not have: a copy of the piece's tensor, which is changed
    """

    piece: Piece
    change: Callable[[Tensor], Tensor]
    round_to: torch.dtype | None = None
    new_tensor: str | None = None

    @property
    def tensor(self) -> str:
        """The tensor that changes."""
        return self.new_tensor or self.piece.tensor


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is indexed, like safetensors' slices."""

    weights: EditedWeights
    name: str

    def __getitem__(self, _: EllipsisType) -> Tensor:
        return self.weights.tensor(self.name)


class EditedWeights(Mapping[str, LazyTensor]):
    """A checkpoint's tensors by their names in its files, with edits. None of them stays in memory.

    Args:
        device: where edits are computed, and where the tensors are.
    """

    def __init__(self, checkpoint: Checkpoint, edits: Sequence[Edit], device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.edits: dict[str, list[Edit]] = {}
        """By the name of the tensor."""
        self._sources = {name: name for name in checkpoint.tensors}
        for edit in edits:
            self.edits.setdefault(edit.tensor, []).append(edit)
            self._sources.setdefault(edit.tensor, edit.piece.tensor)

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self._sources:
            raise KeyError(name)
        return LazyTensor(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def info(self, name: str) -> TensorInfo:
        """The tensor of the checkpoint that this one is, or begins as."""
        return self.checkpoint.tensors[self._sources[name]]

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored dtype, or in float32 if it has edits.

        Raises:
            CheckpointError: (slug "unreadable") the file was truncated, or cannot be read.
        """
        info = self.info(name)
        stored = _read(self.checkpoint, info).to(self.device)
        edits = self.edits.get(name, ())
        if not edits:
            return stored
        flat = stored.float().view(-1)
        for edit in edits:
            start = (edit.piece.start - info.start) // edit.piece.dtype.itemsize
            piece = flat[start : start + edit.piece.entries]
            replacement = edit.change(piece.view(edit.piece.shape))
            if edit.round_to is not None:
                replacement = replacement.to(edit.round_to)
            piece.copy_(replacement.reshape(-1))
        return flat.view(info.shape)


def read_piece(piece: Piece, device: torch.device) -> Tensor:
    """A matrix in float32, (rows, columns)."""
    raw = torch.empty(piece.nbytes, dtype=torch.uint8)
    piece.source.read_into(piece.file, piece.start, raw.numpy().data)
    return raw.view(piece.dtype).view(piece.shape).to(device).float()


def _read(checkpoint: Checkpoint, info: TensorInfo) -> Tensor:
    """A whole tensor, as stored."""
    raw = torch.empty(info.nbytes, dtype=torch.uint8)
    if info.nbytes:
        checkpoint.source.read_into(info.file, info.start, raw.numpy().data)
    return raw.view(PLAIN_DTYPES[info.dtype]).view(info.shape)


def quantised_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """The weight matrices whose stored dtype is not a plain floating dtype, with that dtype in the file's words."""
    return {
        name: info.dtype
        for name, info in checkpoint.tensors.items()
        if info.dtype not in PLAIN_DTYPES
        or (info.dtype not in FLOAT_DTYPES and len(info.shape) > 1 and name.endswith("weight"))
    }
