"""gpt-oss: experts in MXFP4, as `NAME_blocks` and `NAME_scales`."""

from __future__ import annotations

from collections.abc import Mapping

from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.fp4 import Fp4Experts
from deltarank.checkpoints.formats.safetensors_header import TensorInfo

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES = 16


def find_experts(tensors: Mapping[str, TensorInfo]) -> Found:
    """Under NAME, in the shape that the plain checkpoint has: (experts, inputs, outputs)."""
    found = Found()
    for name, codes in tensors.items():
        stem = name.removesuffix(_BLOCKS)
        scales = tensors.get(stem + _SCALES)
        if not name.endswith(_BLOCKS) or scales is None or codes.dtype != "U8" or scales.dtype not in ("U8", "F8_E8M0"):
            continue
        if len(scales.shape) != 3 or codes.entries != _BYTES * scales.entries or codes.shape[:2] != scales.shape[:2]:
            found.refused[name] = "its blocks and scales do not fit each other as gpt-oss stores them"
            continue
        experts, outputs, blocks = scales.shape
        if 0 not in scales.shape:
            found.decoders[stem] = Fp4Experts(codes, scales, (experts, 2 * _BYTES * blocks, outputs))
            found.used.update({name, scales.name})
    return found
