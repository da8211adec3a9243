"""FP8: a tensor of 8-bit floats, and scales beside it under one of several names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.quantization_config import group_settings
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import ScaledDecoder, ScaleGrid
from deltarank.checkpoints.formats.storage import StorageFormat

FP8_DTYPES = {
    "F8_E4M3": ("e4m3", 0.0265),
    "F8_E4M3FNUZ": ("e4m3fnuz", 0.0265),
    "F8_E5M2": ("e5m2", 0.0531),
    "F8_E5M2FNUZ": ("e5m2fnuz", 0.0531),
}
"""Short name and rounding error (of 2 or 3 bits of mantissa, whatever the scale)."""

_SUFFIXES = ("_scale_inv", "_scale")
_SIBLINGS = (".scale", ".scale_weight", ".qscale_weight")
_OF_ACTIVATIONS = re.compile(r"(?:^|_)(?:input|output|act|activation|ub|[qkv]|kv)(?:_|$)")
"""In the names of scales that do not belong to the weight."""
_SCALE = re.compile(r"[._](?:weight_)?q?scales?(?:_\w+)?$", re.IGNORECASE)


def find_fp8(tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]) -> DecodingPlan:
    """Every FP8 tensor, with its scales if it has any.

    Scales multiply, whatever their name: `weight_scale_inv` (transformers, DeepSeek), `weight_scale`
    (compressed-tensors, fbgemm, ModelOpt), `scale_weight` (ComfyUI), `qscale_weight` (Mistral), `scale`. A weight
    beside scales of another name is refused: without its scales, it would be of another size.
    """
    plan = DecodingPlan()
    beside = _scales_by_module(tensors)
    block = _block_size(quantization)
    for name, info in tensors.items():
        if info.dtype not in FP8_DTYPES or not info.shape or name.endswith((*_SUFFIXES, *_SIBLINGS)):
            continue
        scales = _scales(name, tensors)
        if scales is None and (unknown := beside.get(name.removesuffix(".weight"))):
            plan.refused[name] = f"its scales have a name that is not known ({quoted(unknown)})"
            continue
        grid = ScaleGrid.match(info.shape, scales.shape if scales is not None else (), block)
        decoder = None
        if grid is not None:
            storage = StorageFormat(_format_name(info.dtype, grid, scales), FP8_DTYPES[info.dtype][1])
            decoder = ScaledDecoder(info, scales, info.shape, grid, storage)
        plan.add_decoder(name, decoder, name, "its scales match no `weight_block_size` in config.json")
    return plan


def _scales_by_module(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """A tensor of each module, or parameter, whose name says that it is a scale, if it may be one of the weight's."""
    found: dict[str, str] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if "scale" in leaf.lower() and not _OF_ACTIVATIONS.search(leaf.lower()):
            found[module.removesuffix(".weight")] = found[_SCALE.sub("", name)] = name
    return found


def _block_size(quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size` of transformers' fp8, or `block_structure` of compressed-tensors."""
    groups = [weights.get("block_structure") for weights in group_settings(quantization)]
    for sides in (quantization.get("weight_block_size"), *groups):
        if isinstance(sides, list) and len(sides) == 2 and all(type(x) is int and 0 < x < 2**31 for x in sides):
            return sides[0], sides[1]
    return None


def _scales(name: str, tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    stem = name.removesuffix(".weight")
    names = [name + suffix for suffix in _SUFFIXES] + [stem + sibling for sibling in _SIBLINGS]
    return next((tensors[each] for each in names if each in tensors), None)


def _format_name(dtype: str, grid: ScaleGrid, scales: TensorInfo | None) -> str:
    if scales is None:
        return f"FP8 ({FP8_DTYPES[dtype][0]})"
    if grid.rows * grid.columns == 1:
        granularity = "a scale for each matrix"
    elif 1 in grid.block:
        granularity = "a scale for each row" if grid.columns == 1 else "a scale for each column"
    else:
        granularity = f"blocks of {grid.block[0]} x {grid.block[1]}"
    return f"FP8 ({FP8_DTYPES[dtype][0]}, {granularity})"
