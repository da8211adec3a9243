"""Which tensors of a checkpoint have to be worked out, and from what: told by config.json and by names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.bitsandbytes import find_bnb
from deltarank.checkpoints.formats.compressed_tensors import find_compressed
from deltarank.checkpoints.formats.decoded_source import DecodedSource, Parts
from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.fp8 import find_fp8
from deltarank.checkpoints.formats.gguf import renamed
from deltarank.checkpoints.formats.gpt_oss_experts import find_experts
from deltarank.checkpoints.formats.gptq import find_gptq
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.checkpoints.source import Source
from deltarank.errors import CheckpointError
from deltarank.results import count

METHODS = frozenset(
    {"fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "bitsandbytes", "gptq", "awq", "auto-round", "modelopt"}
)
"""The `quant_method`s that are decoded."""

Tensors = Mapping[str, TensorInfo]


def decoded(tensors: Tensors, source: Source, config: Mapping[str, Any]) -> tuple[Tensors, Source]:
    """The checkpoint as plain tensors: decoded ones stand in for the stored parts that they are made of.

    What has a type that is not plain and cannot be decoded stays as it is, with the reason.
    """
    how = quantisation(config)
    files = renamed(tensors, source)
    tensors = {**{name: info for name, info in tensors.items() if name not in files.used}, **files.plain}
    found = _find(tensors, how, Parts(source))
    found.decoders.update(files.decoders)
    if not found.decoders:
        _refuse_unknown(tensors, how.get("quant_method"))
    if not found.decoders and not found.refused:
        return tensors, source
    plain = {name: info for name, info in tensors.items() if name not in found.used}
    for name, reason in found.refused.items():
        plain[name] = replace(plain[name], storage=Storage(plain[name].dtype, obstacle=reason))
    if not found.decoders:
        return plain, source
    view = DecodedSource(source, found.decoders)
    return {**plain, **view.tensors}, view


def _refuse_unknown(tensors: Tensors, method: object) -> None:
    """A method that is not read, where it left something that is not plain: said by its name, not as a puzzle of names.

    Raises:
        CheckpointError: (slug "quantised-format").
    """
    if not isinstance(method, str) or method in METHODS:
        return
    packed = [name for name, info in tensors.items() if info.dtype not in FLOAT_DTYPES and len(info.shape) > 1]
    if packed:
        raise CheckpointError(
            f"The checkpoint is quantised by {shown(method, most=40)} ({count(len(packed), 'matrix', 'matrices')}, "
            f"such as {shown(packed[0])}), and that format is not decoded here.",
            cure="Give the checkpoint that it was made from, in bfloat16 or float16; or load it with transformers, "
            "call `model.dequantize()` where its method has that, and `save_pretrained(folder)`.",
            slug="quantised-format",
        )


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of quantisation; empty where it says nothing."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict):
                found: Mapping[str, Any] = part[key]
                return found
    return {}


def fingerprint_of(config: Mapping[str, Any]) -> str:
    """Changes with anything that moves a decoded number."""
    text = json.dumps(quantisation(config), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _find(tensors: Tensors, how: Mapping[str, Any], parts: Parts) -> Found:
    """Names decide; the configuration says only what names do not. Who finds a tensor last, has it."""
    found = find_fp8(tensors, how)
    found.add(find_compressed(tensors, how, parts))
    found.add(find_gptq(tensors, how))
    found.add(find_bnb(tensors, parts))
    found.add(find_experts(tensors))
    return found
