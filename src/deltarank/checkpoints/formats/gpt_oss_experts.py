"""gpt-oss: experts in MXFP4, as `NAME_blocks` and `NAME_scales`."""

from __future__ import annotations

from collections.abc import Mapping

from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.fp4 import Fp4ExpertsDecoder
from deltarank.checkpoints.formats.safetensors_header import TensorInfo

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK_BYTES = 16


def find_gpt_oss_experts(tensors: Mapping[str, TensorInfo]) -> DecodingPlan:
    """Decodes them to NAME, in the shape of the plain checkpoint: (experts, inputs, outputs)."""
    plan = DecodingPlan()
    for name, codes in tensors.items():
        stem = name.removesuffix(_BLOCKS)
        scales = tensors.get(stem + _SCALES)
        if not name.endswith(_BLOCKS) or scales is None or codes.dtype != "U8" or scales.dtype not in ("U8", "F8_E8M0"):
            continue
        entries = _BLOCK_BYTES * scales.entries
        if len(scales.shape) != 3 or codes.entries != entries or codes.shape[:2] != scales.shape[:2]:
            plan.refused[name] = "its blocks and scales do not match as gpt-oss stores them"
            continue
        experts, outputs, blocks = scales.shape
        if 0 not in scales.shape:
            plan.decoders[stem] = Fp4ExpertsDecoder(codes, scales, (experts, 2 * _BLOCK_BYTES * blocks, outputs))
            plan.used.update({name, scales.name})
    return plan
