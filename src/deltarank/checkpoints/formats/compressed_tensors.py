"""Checkpoints of compressed-tensors (LLM Compressor) and of ModelOpt: which stored tensors make up a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.fp4 import MXFP4, NVFP4, Fp4
from deltarank.checkpoints.formats.packed_integers import Packed, integer_error, words_of
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import Grid, Scaled
from deltarank.checkpoints.formats.storage import Storage

_PACKED = ".weight_packed"
_WEIGHT = ".weight"
_UNCLEAR = "its parts do not fit each other as compressed-tensors packs them"

Tensors = Mapping[str, TensorInfo]


def find_compressed(tensors: Tensors, how: Mapping[str, Any], parts: Parts) -> Found:
    """`weight_packed` (int32: whole numbers; bytes: fp4), and weights of int8 or of fp4 that have a `weight_scale`."""
    found = Found()
    packed = [name.removesuffix(_PACKED) for name in tensors if name.endswith(_PACKED)]
    parts.prefetch(tensors[f"{stem}.weight_shape"] for stem in packed if f"{stem}.weight_shape" in tensors)
    for stem in packed:
        _put(found, stem, _unpacked(stem, tensors, how, parts), tensors, stem + _PACKED)
    for name, info in tensors.items():
        if name.endswith(_WEIGHT) and f"{name}_scale" in tensors and info.dtype in ("I8", "U8"):
            stem = name.removesuffix(_WEIGHT)
            decoder = _bytes(stem, tensors) if info.dtype == "I8" else _fp4(stem, tensors, info)
            _put(found, stem, decoder, tensors, name)
    return found


def _put(found: Found, stem: str, decoder: Packed | Fp4 | Scaled | None, tensors: Tensors, first: str) -> None:
    if decoder is None:
        found.refused[first] = _UNCLEAR
        return
    found.decoders[stem + _WEIGHT] = decoder
    found.used.update(part.name for part in decoder.parts)
    found.used.update({f"{stem}.weight_shape", f"{stem}.weight_zero_point", f"{stem}.weight_g_idx"} & tensors.keys())


def _unpacked(stem: str, tensors: Tensors, how: Mapping[str, Any], parts: Parts) -> Packed | Fp4 | None:
    packed = tensors[stem + _PACKED]
    if packed.dtype == "U8":
        return _fp4(stem, tensors, packed)
    scales, shape = tensors.get(f"{stem}.weight_scale"), tensors.get(f"{stem}.weight_shape")
    if packed.dtype != "I32" or len(packed.shape) < 2 or scales is None or shape is None or not scales.shape:
        return None
    sides = _shape(shape, parts)
    bits = next((b for b in _widths(how) if sides and words_of(sides[-1], b) == packed.shape[-1]), None)
    if bits is None or tuple(sides[:-1]) != packed.shape[:-1]:
        return None
    groups = 1 if scales.entries == 1 else scales.shape[-1]
    zeros, order = tensors.get(f"{stem}.weight_zero_point"), tensors.get(f"{stem}.weight_g_idx")
    group = -(-sides[-1] // max(groups, 1))
    if not _fit(scales, zeros, order, sides, groups, bits):
        return None
    storage = Storage(_words(bits, group, groups), integer_error(bits, group))
    return Packed(packed, scales, zeros, order, sides, bits, group, storage)


def _shape(info: TensorInfo, parts: Parts) -> tuple[int, ...]:
    """`weight_shape`: the sides of the matrix, as numbers in the file."""
    if info.dtype not in ("I64", "I32") or info.entries not in (2, 3):
        return ()
    sides = tuple(int(side) for side in parts.whole(info).view(-1).tolist())
    return sides if all(0 < side < 2**31 for side in sides) else ()


def _widths(how: Mapping[str, Any]) -> Iterator[int]:
    """Bits that the configuration names, each once; 4 and 8 where it names none."""
    groups = how.get("config_groups")
    named = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if type(bits) is int and 1 <= bits <= 8:
            named.append(bits)
    yield from dict.fromkeys(named or (4, 8))


def _fit(
    scales: TensorInfo,
    zeros: TensorInfo | None,
    order: TensorInfo | None,
    sides: tuple[int, ...],
    groups: int,
    bits: int,
) -> bool:
    if scales.entries != 1 and (scales.shape[:-1] != sides[:-1] or not groups or groups > sides[-1]):
        return False
    if order is not None and (order.shape != (sides[-1],) or order.dtype not in ("I32", "I64")):
        return False
    if zeros is None:
        return True
    return len(sides) == 2 and zeros.dtype == "I32" and zeros.shape == (words_of(sides[0], bits), groups)


def _words(bits: int, group: int, groups: int) -> str:
    return f"int{bits} ({'a scale for each row' if groups == 1 else f'{group} to a scale'})"


def _fp4(stem: str, tensors: Tensors, codes: TensorInfo) -> Fp4 | None:
    """NVFP4 has a scale for the whole matrix: `weight_global_scale` divides, ModelOpt's `weight_scale_2` multiplies."""
    scales = tensors.get(f"{stem}.weight_scale")
    if scales is None or len(codes.shape) < 2 or scales.shape[:-1] != codes.shape[:-1]:
        return None
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    divides, multiplies = tensors.get(f"{stem}.weight_global_scale"), tensors.get(f"{stem}.weight_scale_2")
    whole = divides or multiplies
    is_nv = whole is not None and whole.entries == 1
    if not scales.shape[-1] or shape[-1] != scales.shape[-1] * (16 if is_nv else 32):
        return None
    if is_nv:
        return Fp4(codes, scales, shape, NVFP4, whole, divides=divides is not None)
    return Fp4(codes, scales, shape, MXFP4) if scales.dtype in ("U8", "F8_E8M0") else None


def _bytes(stem: str, tensors: Tensors) -> Scaled | None:
    """`int-quantized` and `naive-quantized`: a number to a byte."""
    codes, scales = tensors[stem + _WEIGHT], tensors[f"{stem}.weight_scale"]
    zeros = tensors.get(f"{stem}.weight_zero_point")
    grid = Grid.of(codes.shape, scales.shape, None)
    if grid is None or (zeros is not None and (zeros.shape != scales.shape or zeros.dtype != "I8")):
        return None
    group = codes.entries if grid.rows == grid.columns == 1 else codes.shape[-1]
    return Scaled(codes, scales, grid, Storage(_words(8, group, 1), integer_error(8, group)), zeros)
