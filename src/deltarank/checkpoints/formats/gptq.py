"""Checkpoints of GPTQ and AWQ: `qweight`, `qzeros` and `scales`, stored as inputs x outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.packed_integers import WORD_BITS, GptqDecoder, integer_error
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat

_CODES = ".qweight"
_AWQ_BITS = 4
_KNOWN_FORMATS = ("gptq", "gptq_v2", "gemm")
_NO_MATCH = "its parts do not match as GPTQ and AWQ pack them"


def find_gptq(tensors: Mapping[str, TensorInfo], quantization: Mapping[str, Any]) -> DecodingPlan:
    """Every `qweight` whose parts match. The configuration says how many bits, and which of the formats."""
    plan = DecodingPlan()
    bits = quantization.get("bits", quantization.get("w_bit"))
    obstacle = _obstacle(bits, quantization)
    for name in tensors:
        if not name.endswith(_CODES):
            continue
        stem = name.removesuffix(_CODES)
        decoder = None if obstacle else _decoder(stem, tensors, bits, quantization)
        plan.add_decoder(f"{stem}.weight", decoder, name, obstacle or _NO_MATCH)
    return plan


def _obstacle(bits: object, quantization: Mapping[str, Any]) -> str | None:
    """Why no `qweight` of the checkpoint can be decoded."""
    if type(bits) is not int:
        return "config.json does not say how many bits it has (`bits` of `quantization_config`)"
    formats = [*_formats(quantization), quantization.get("version")]
    named = [each for each in formats if isinstance(each, str) and each.lower() not in _KNOWN_FORMATS]
    return f"the format {quoted(named[0], max_length=40)} is not supported" if named else None


def _decoder(
    stem: str, tensors: Mapping[str, TensorInfo], bits: int, quantization: Mapping[str, Any]
) -> GptqDecoder | None:
    codes, scales, zeros = (tensors.get(f"{stem}.{part}") for part in ("qweight", "scales", "qzeros"))
    if codes is None or scales is None or zeros is None or not 1 < bits <= 8:
        return None
    if any(len(part.shape) != 2 or 0 in part.shape for part in (codes, scales, zeros)):
        return None
    if codes.dtype != "I32" or zeros.dtype != "I32" or scales.dtype not in ("F16", "BF16", "F32"):
        return None
    awq = _is_awq(quantization)
    groups, outputs = scales.shape
    inputs = codes.shape[0] if awq else codes.shape[0] * WORD_BITS // bits
    group_index = tensors.get(f"{stem}.g_idx")
    words = outputs * bits // WORD_BITS
    if zeros.shape != (groups, words) or words * WORD_BITS != outputs * bits or inputs % groups:
        return None
    if codes.shape[1] != (words if awq else outputs) or (awq and bits != _AWQ_BITS):
        return None
    if group_index is not None and (group_index.shape != (inputs,) or group_index.dtype != "I32"):
        return None
    group = inputs // groups
    storage = StorageFormat(f"{'AWQ' if awq else 'GPTQ'} int{bits} ({group} to a scale)", integer_error(bits, group))
    offset = 0 if awq or _is_gptq_v2(quantization) else 1
    return GptqDecoder(codes, scales, zeros, group_index, (outputs, inputs), bits, group, storage, awq, offset)


def _is_awq(quantization: Mapping[str, Any]) -> bool:
    """AutoAWQ's own, or auto-round's in its packing."""
    return quantization.get("quant_method") == "awq" or "awq" in str(quantization.get("packing_format"))


def _is_gptq_v2(quantization: Mapping[str, Any]) -> bool:
    """`gptq_v2` stores zero points as they are; the first format stores them minus one."""
    return "gptq_v2" in _formats(quantization)


def _formats(quantization: Mapping[str, Any]) -> list[object]:
    """The packing that the configuration names: `checkpoint_format`, or `format` in newer versions of GPTQModel."""
    meta = quantization.get("meta")
    stated = quantization.get("checkpoint_format"), quantization.get("format")
    return [*stated, meta.get("checkpoint_format") if isinstance(meta, dict) else None]
