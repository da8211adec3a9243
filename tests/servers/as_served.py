"""The model that a server makes of a base and an adapter, as deltarank says."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltarank.adapters import Applied, LoraAdapter, LoraUpdate, apply_adapter, open_adapter
from deltarank.checkpoints import open_checkpoint, pair_checkpoints


def write_as_served(base: Path, finetune: Path, adapter: Path, server: str, folder: Path) -> Path:
    """Writes the base with what the server adds to the tensors that base and finetune share, in float32.

    Raises:
        AdapterError: deltarank says that the server does not load this adapter.
    """
    weights = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    before, after = (open_checkpoint(each, revision=None, fetch="download") for each in (base, finetune))
    with open_adapter(adapter) as lora, before, after:
        pairing = pair_checkpoints(before, after, experts=True)
        applied = apply_adapter(lora, (*pairing.pairs, *pairing.summed), server=server, base=before)
        starts = {name: info.start for name, info in before.tensors.items()}
        _add(weights, lora, applied, starts)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _add(weights: dict[str, Tensor], lora: LoraAdapter, applied: Applied, starts: dict[str, int]) -> None:
    for changes in applied.changes.values():
        piece = changes[0].placement.target.base
        first = (piece.start - starts[piece.tensor]) // piece.dtype.itemsize
        rows, columns = piece.shape
        part = weights[piece.tensor].view(-1)[first : first + rows * columns].view(rows, columns)
        update = LoraUpdate(lora, changes, device=torch.device("cpu"), dtype=torch.float32)
        part += update.rows(0, part)
