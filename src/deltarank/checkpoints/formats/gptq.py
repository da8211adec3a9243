"""Checkpoints of GPTQ and AWQ: `qweight`, `qzeros` and `scales` beside each other, stored as inputs x outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.packed_integers import WORD, Transposed, integer_error
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage

_CODES = ".qweight"
_AWQ_BITS = 4


def find_gptq(tensors: Mapping[str, TensorInfo], how: Mapping[str, Any]) -> Found:
    """Every `qweight` whose parts fit each other. The configuration says how many bits, and which of the formats."""
    found = Found()
    bits = how.get("bits", how.get("w_bit"))
    for name in tensors:
        if not name.endswith(_CODES):
            continue
        stem = name.removesuffix(_CODES)
        decoder = _decoder(stem, tensors, bits if type(bits) is int else 0, how)
        if decoder is None:
            found.refused[name] = "its parts do not fit each other as GPTQ and AWQ pack them"
            continue
        found.decoders[f"{stem}.weight"] = decoder
        found.used.update(part.name for part in decoder.parts)
        found.used.update({f"{stem}.g_idx"} & tensors.keys())
    return found


def _decoder(stem: str, tensors: Mapping[str, TensorInfo], bits: int, how: Mapping[str, Any]) -> Transposed | None:
    codes, scales, zeros = (tensors.get(f"{stem}.{part}") for part in ("qweight", "scales", "qzeros"))
    if codes is None or scales is None or zeros is None or not 1 < bits <= 8:
        return None
    if any(len(part.shape) != 2 or 0 in part.shape for part in (codes, scales, zeros)):
        return None
    if codes.dtype != "I32" or zeros.dtype != "I32" or scales.dtype not in ("F16", "BF16", "F32"):
        return None
    awq = is_awq(how)
    groups, outputs = scales.shape
    inputs = codes.shape[0] if awq else codes.shape[0] * WORD // bits
    order = tensors.get(f"{stem}.g_idx")
    packed = outputs * bits // WORD
    if zeros.shape != (groups, packed) or packed * WORD != outputs * bits or inputs % groups:
        return None
    if codes.shape[1] != (packed if awq else outputs) or (awq and bits != _AWQ_BITS):
        return None
    if order is not None and (order.shape != (inputs,) or order.dtype != "I32"):
        return None
    group = inputs // groups
    storage = Storage(f"{'AWQ' if awq else 'GPTQ'} int{bits} ({group} to a scale)", integer_error(bits, group))
    offset = 0 if awq or _is_second(how) else 1
    return Transposed(codes, scales, zeros, order, (outputs, inputs), bits, group, storage, awq, offset)


def is_awq(how: Mapping[str, Any]) -> bool:
    """AutoAWQ's own, or auto-round's in its packing."""
    return how.get("quant_method") == "awq" or "awq" in str(how.get("packing_format"))


def _is_second(how: Mapping[str, Any]) -> bool:
    """`gptq_v2` stores zeros as they are; the first format stores them less one."""
    meta = how.get("meta")
    named = (how.get("checkpoint_format"), meta.get("checkpoint_format") if isinstance(meta, dict) else None)
    return "gptq_v2" in named
