"""FP8 as publishers store it: a tensor of eight-bit floats, and scales beside it under one of several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import FP8, Grid, Scaled
from deltarank.checkpoints.formats.storage import Storage

_SUFFIXES = ("_scale_inv", "_scale")
_SIBLINGS = (".scale", ".scale_weight")
_NO_WEIGHTS = (*_SUFFIXES, *_SIBLINGS)


def find_fp8(tensors: Mapping[str, TensorInfo], how: Mapping[str, Any]) -> Found:
    """Every tensor of FP8, with its scales if it has any.

    Scales multiply, whatever their name: `weight_scale_inv` (transformers, DeepSeek), `weight_scale`
    (compressed-tensors, fbgemm, ModelOpt), `scale_weight`, `scale`.
    """
    found = Found()
    block = _block(how)
    for name, info in tensors.items():
        if info.dtype not in FP8 or not info.shape or name.endswith(_NO_WEIGHTS):
            continue
        scales = _scales(name, tensors)
        grid = Grid.of(info.shape, scales.shape if scales is not None else (), block)
        if grid is None:
            found.refused[name] = "its scales fit no `weight_block_size` that config.json names"
            continue
        found.decoders[name] = Scaled(info, scales, grid, Storage(_name(info.dtype, grid, scales), FP8[info.dtype][1]))
        found.used.update({name, *([scales.name] if scales is not None else [])})
    return found


def _block(how: Mapping[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size` of transformers' fp8, or the `block_structure` of compressed-tensors."""
    places = [how.get("weight_block_size")]
    groups = how.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        places.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    for sides in places:
        if isinstance(sides, list) and len(sides) == 2 and all(type(x) is int and 0 < x < 2**31 for x in sides):
            return sides[0], sides[1]
    return None


def _scales(name: str, tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    stem = name.removesuffix(".weight")
    names = [name + suffix for suffix in _SUFFIXES] + [stem + sibling for sibling in _SIBLINGS]
    return next((tensors[each] for each in names if each in tensors), None)


def _name(dtype: str, grid: Grid, scales: TensorInfo | None) -> str:
    if scales is None:
        return f"FP8 ({FP8[dtype][0]})"
    if grid.rows * grid.columns == 1:
        way = "a scale for each matrix"
    elif 1 in grid.block:
        way = "a scale for each row" if grid.columns == 1 else "a scale for each column"
    else:
        way = f"blocks of {grid.block[0]} x {grid.block[1]}"
    return f"FP8 ({FP8[dtype][0]}, {way})"
