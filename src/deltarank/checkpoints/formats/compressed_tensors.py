"""Checkpoints of compressed-tensors (LLM Compressor) and of ModelOpt: which stored tensors make up a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.fp4 import MXFP4, NVFP4, Fp4Decoder
from deltarank.checkpoints.formats.packed_integers import PackedDecoder, integer_error, words_for
from deltarank.checkpoints.formats.quantization_config import group_settings
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import ScaledDecoder, ScaleGrid
from deltarank.checkpoints.formats.storage import StorageFormat

_PACKED = ".weight_packed"
_WEIGHT = ".weight"

Tensors = Mapping[str, TensorInfo]


def find_compressed_tensors(tensors: Tensors, quantization: Mapping[str, Any], parts: PartReader) -> DecodingPlan:
    """`weight_packed` (int32: integers; bytes: fp4), and weights of int8 or fp4 that have a `weight_scale`."""
    plan = DecodingPlan()
    packed = [name.removesuffix(_PACKED) for name in tensors if name.endswith(_PACKED)]
    parts.prefetch(tensors[f"{stem}.weight_shape"] for stem in packed if f"{stem}.weight_shape" in tensors)
    for stem in packed:
        _add(plan, stem, _packed_decoder(stem, tensors, quantization, parts), tensors, stem + _PACKED)
    for name, info in tensors.items():
        if name.endswith(_WEIGHT) and f"{name}_scale" in tensors and info.dtype in ("I8", "U8"):
            stem = name.removesuffix(_WEIGHT)
            decoder = _int8_decoder(stem, tensors) if info.dtype == "I8" else _fp4_decoder(stem, tensors, info)
            _add(plan, stem, decoder, tensors, name)
    return plan


def _add(plan: DecodingPlan, stem: str, decoder: Decoder | None, tensors: Tensors, codes: str) -> None:
    plan.add_decoder(stem + _WEIGHT, decoder, codes, "its parts do not match as compressed-tensors packs them")
    if decoder is not None:
        others = {f"{stem}.weight_shape", f"{stem}.weight_zero_point", f"{stem}.weight_g_idx"}
        plan.used.update(others & tensors.keys())


def _packed_decoder(
    stem: str, tensors: Tensors, quantization: Mapping[str, Any], parts: PartReader
) -> PackedDecoder | Fp4Decoder | None:
    packed = tensors[stem + _PACKED]
    if packed.dtype == "U8":
        return _fp4_decoder(stem, tensors, packed)
    scales, stored_shape = tensors.get(f"{stem}.weight_scale"), tensors.get(f"{stem}.weight_shape")
    if packed.dtype != "I32" or len(packed.shape) < 2 or scales is None or stored_shape is None or not scales.shape:
        return None
    shape = _read_shape(stored_shape, parts)
    bits = next((b for b in _bit_widths(quantization) if shape and words_for(shape[-1], b) == packed.shape[-1]), None)
    if bits is None or tuple(shape[:-1]) != packed.shape[:-1]:
        return None
    groups = 1 if scales.entries == 1 else scales.shape[-1]
    zeros, group_index = tensors.get(f"{stem}.weight_zero_point"), tensors.get(f"{stem}.weight_g_idx")
    if not _do_match(scales, zeros, group_index, shape, groups, bits):
        return None
    group = -(-shape[-1] // max(groups, 1))
    return PackedDecoder(packed, scales, zeros, group_index, shape, bits, group, _int_format(bits, group, groups))


def _read_shape(info: TensorInfo, parts: PartReader) -> tuple[int, ...]:
    """`weight_shape`: the sides of the matrix, stored as a tensor; () if they are not plausible."""
    if info.dtype not in ("I64", "I32") or info.entries not in (2, 3):
        return ()
    sides = tuple(int(side) for side in parts.whole(info).view(-1).tolist())
    return sides if all(0 < side < 2**31 for side in sides) else ()


def _bit_widths(quantization: Mapping[str, Any]) -> list[int]:
    """The widths in the configuration, each once; 4 and 8 if it states none."""
    stated = [weights.get("num_bits") for weights in group_settings(quantization)]
    return list(dict.fromkeys([bits for bits in stated if type(bits) is int and 1 <= bits <= 8] or (4, 8)))


def _do_match(
    scales: TensorInfo,
    zeros: TensorInfo | None,
    group_index: TensorInfo | None,
    shape: tuple[int, ...],
    groups: int,
    bits: int,
) -> bool:
    if scales.entries != 1 and (scales.shape[:-1] != shape[:-1] or not groups or groups > shape[-1]):
        return False
    if group_index is not None and (group_index.shape != (shape[-1],) or group_index.dtype not in ("I32", "I64")):
        return False
    if zeros is None:
        return True
    return len(shape) == 2 and zeros.dtype == "I32" and zeros.shape == (words_for(shape[0], bits), groups)


def _int_format(bits: int, group: int, groups: int) -> StorageFormat:
    granularity = "a scale for each row" if groups == 1 else f"{group} to a scale"
    return StorageFormat(f"int{bits} ({granularity})", integer_error(bits, group))


def _fp4_decoder(stem: str, tensors: Tensors, codes: TensorInfo) -> Fp4Decoder | None:
    """NVFP4 has a global scale: `weight_global_scale` divides, ModelOpt's `weight_scale_2` multiplies."""
    scales = tensors.get(f"{stem}.weight_scale")
    if scales is None or len(codes.shape) < 2 or scales.shape[:-1] != codes.shape[:-1]:
        return None
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    divisor, factor = tensors.get(f"{stem}.weight_global_scale"), tensors.get(f"{stem}.weight_scale_2")
    global_scale = divisor or factor
    is_nvfp4 = global_scale is not None and global_scale.entries == 1
    if not scales.shape[-1] or shape[-1] != scales.shape[-1] * (16 if is_nvfp4 else 32):
        return None
    if is_nvfp4:
        return Fp4Decoder(codes, scales, shape, NVFP4, global_scale, divides=divisor is not None)
    return Fp4Decoder(codes, scales, shape, MXFP4) if scales.dtype in ("U8", "F8_E8M0") else None


def _int8_decoder(stem: str, tensors: Tensors) -> ScaledDecoder | None:
    """`int-quantized` and `naive-quantized`: a code per byte."""
    codes, scales = tensors[stem + _WEIGHT], tensors[f"{stem}.weight_scale"]
    zeros = tensors.get(f"{stem}.weight_zero_point")
    grid = ScaleGrid.match(codes.shape, scales.shape, None)
    if grid is None or (zeros is not None and (zeros.shape != scales.shape or zeros.dtype != "I8")):
        return None
    group = codes.entries if grid.rows == grid.columns == 1 else codes.shape[-1]
    return ScaledDecoder(codes, scales, codes.shape, grid, _int_format(8, group, 1), zeros)
