"""Quantised checkpoints for these tests: by the library that defines the format, or by its definition."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from files import read, save
from torch import Tensor

from deltarank.checkpoints import open_checkpoint, pair_checkpoints

NAME = "model.layers.0.self_attn.q_proj.weight"


def weights(*shape: int, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp8_blocks(
    weight: Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Codes, and the scale of each block (the last ones ragged): a block's largest number takes the largest code."""
    rows, columns = weight.shape
    scales = torch.empty(math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    codes = torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[part].abs().max() / torch.finfo(dtype).max
            codes[part] = weight[part] / scales[i, j]
    return codes.to(dtype), scales


def decoded(folder: Path, stored: Mapping[str, Tensor], how: Any, *, name: str = NAME, entries: int = 5000) -> Tensor:
    """What is read of one tensor of a checkpoint that holds these, beside a plain finetune.

    The pairs were pickled before, so that each format is also shown to be read in another process.
    """
    base = save(folder / "base", stored, config={"quantization_config": how} if how is not None else {})
    with open_checkpoint(base) as before:
        shape = before.tensors[name].shape
        plain = save(folder / "finetune", {name: torch.zeros(shape)})
        with open_checkpoint(plain) as after:
            plan = pair_checkpoints(before, after, include=[name + "*"])
            pairs = pickle.loads(pickle.dumps((*plan.pairs, *plan.summed)))
            rows = [read(pair, entries=entries)[0] for pair in pairs]
    return torch.cat(rows).view(shape)


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def stated_error(checkpoint: Path, *, name: str = NAME) -> float:
    """What the reader says that rounding to the format of this tensor costs."""
    with open_checkpoint(checkpoint) as opened:
        storage = opened.tensors[name].storage
        assert storage is not None
        return storage.rounding_error
