"""Checkpoints that MLX quantised (`mlx_lm.convert -q`, `mlx_lm.fuse`): `weight` in 32-bit words, `scales`, `biases`.

Two modes: affine, scale * code + bias with codes of 1 to 8 bits in one stream of bits per row, the lowest first; and
the microscaling formats mxfp4, nvfp4 and mxfp8, which have scales in bytes and no biases. Checked against MLX 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.fp4 import MXFP4, NVFP4, Fp4Decoder
from deltarank.checkpoints.formats.lookup_tables import multiply_groups_, subtract_groups_
from deltarank.checkpoints.formats.packed_integers import WORD_BITS, integer_error, unpack
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import ScaledDecoder, ScaleGrid
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.errors import CheckpointError

_WEIGHT = ".weight"
_SCALE_DTYPES = ("F16", "BF16", "F32")
_MXFP8 = StorageFormat("MXFP8 (e4m3, 32 to a scale)", 0.027)
_BYTES = WORD_BITS // 8
_WORDS_PER_SCALE = {"mxfp4": 4, "nvfp4": 2, "mxfp8": 8}
"""Groups of 32, 16 and 32 numbers, of 4, 4 and 8 bits."""

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class AffineDecoder(Decoder):
    """scale * code + bias, with `group` columns to a scale."""

    codes: TensorInfo
    scales: TensorInfo
    biases: TensorInfo
    shape: tuple[int, ...]
    bits: int
    group: int
    storage: StorageFormat

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        words = parts.rows(self.codes, self.codes.shape[-1], first, last)
        scales, biases = (
            parts.rows(part, part.shape[-1], first, last).to(torch.float32) for part in (self.scales, self.biases)
        )
        values = unpack(words, self.bits, self.shape[-1]).to(torch.float32)
        return subtract_groups_(multiply_groups_(values, scales, self.group), -biases, self.group)


def find_mlx(tensors: Tensors, quantization: Mapping[str, Any]) -> DecodingPlan:
    """Every `weight` of 32-bit words that has `scales`.

    Raises:
        CheckpointError: (slug "quantised-format") the configuration does not say how such a tensor is stored.
    """
    plan = DecodingPlan()
    for name, codes in tensors.items():
        stem = name.removesuffix(_WEIGHT)
        scales = tensors.get(f"{stem}.scales")
        if stem == name or codes.dtype != "U32" or scales is None or len(codes.shape) < 2:
            continue
        biases = tensors.get(f"{stem}.biases")
        decoder: Decoder | None = None
        if codes.shape[:-1] == scales.shape[:-1] and scales.shape[-1]:
            settings = _settings(stem, quantization)
            decoder = _affine(codes, scales, biases, settings) if biases else _microscaling(codes, scales)
        if decoder is None:
            _refuse(name, codes, scales)
        plan.add_decoder(name, decoder, name, "")
    return plan


def _settings(stem: str, quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of this module, if it has its own, else those of the model."""
    own = quantization.get(stem)
    return {**quantization, **own} if isinstance(own, dict) else quantization


def _affine(
    codes: TensorInfo, scales: TensorInfo, biases: TensorInfo, settings: Mapping[str, Any]
) -> AffineDecoder | None:
    bits, group = settings.get("bits"), settings.get("group_size")
    if type(bits) is not int or type(group) is not int or not 1 <= bits <= 8 or group < 1:
        return None
    columns = scales.shape[-1] * group
    if columns * bits != codes.shape[-1] * WORD_BITS or biases.shape != scales.shape:
        return None
    if scales.dtype not in _SCALE_DTYPES or biases.dtype not in _SCALE_DTYPES:
        return None
    storage = StorageFormat(f"MLX int{bits} ({group} to a scale)", integer_error(bits, group, is_affine=True))
    return AffineDecoder(codes, scales, biases, (*codes.shape[:-1], columns), bits, group, storage)


def _microscaling(codes: TensorInfo, scales: TensorInfo) -> Decoder | None:
    if scales.dtype != "U8":
        return None
    words = codes.shape[-1] / scales.shape[-1]
    octets = replace(codes, dtype="U8", shape=(*codes.shape[:-1], _BYTES * codes.shape[-1]))
    two_per_byte = (*octets.shape[:-1], 2 * octets.shape[-1])
    if words == _WORDS_PER_SCALE["mxfp4"]:
        return Fp4Decoder(octets, scales, two_per_byte, MXFP4)
    if words == _WORDS_PER_SCALE["nvfp4"]:
        return Fp4Decoder(octets, replace(scales, dtype="F8_E4M3"), two_per_byte, NVFP4)
    grid = ScaleGrid.match(octets.shape, scales.shape, (1, WORD_BITS))
    if words != _WORDS_PER_SCALE["mxfp8"] or grid is None:
        return None
    return ScaledDecoder(replace(octets, dtype="F8_E4M3"), scales, octets.shape, grid, _MXFP8)


def _refuse(name: str, codes: TensorInfo, scales: TensorInfo) -> None:
    raise CheckpointError(
        f"The checkpoint was quantised by MLX, and the bits and the group size in its config.json do not fit "
        f"{quoted(name)} ({codes.shape[-1]:,} words and {scales.shape[-1]:,} scales for each row).",
        cure="Give its own config.json (`quantization`) beside it. Or dequantise it: `mlx_lm.convert --hf-path DIR "
        "--dequantize --mlx-path OUT`; for a fused adapter, `mlx_lm.fuse --dequantize` (once `--de-quantize`).",
        slug="quantised-format",
    )
