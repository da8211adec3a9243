"""Matrices of `.bin` files that are stored as their transpose: torch saves views as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.pieces import FLOAT_DTYPES

TRANSPOSED = " (transposed)"
"""The end of the dtype of such a tensor, whose shape is its own and not that of what is stored."""


@dataclass(frozen=True)
class TransposedDecoder(Decoder):
    """`stored` is (columns, rows). It is held whole, since a row of the matrix touches all of it."""

    stored: TensorInfo
    shape: tuple[int, ...]
    storage: StorageFormat

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        return parts.whole(self.stored)[:, first:last].T.to(torch.float32)


def find_transposed(tensors: Mapping[str, TensorInfo]) -> DecodingPlan:
    plan = DecodingPlan()
    for name, info in tensors.items():
        dtype = info.dtype.removesuffix(TRANSPOSED)
        if dtype == info.dtype or dtype not in FLOAT_DTYPES:
            continue
        storage = StorageFormat(str(FLOAT_DTYPES[dtype]).removeprefix("torch."))
        stored = replace(info, dtype=dtype, shape=info.shape[::-1], storage=None)
        plan.decoders[name] = TransposedDecoder(stored, info.shape, storage)
        plan.used.add(name)
    return plan
