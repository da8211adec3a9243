"""Which tensors of a checkpoint have to be worked out, and from what: told by config.json and by names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deltarank.checkpoints._decoded import DecodedSource
from deltarank.checkpoints._fp8 import find_fp8
from deltarank.checkpoints._headers import TensorInfo
from deltarank.checkpoints._recipe import Found
from deltarank.checkpoints._source import Source
from deltarank.checkpoints._storage import Storage

Tensors = Mapping[str, TensorInfo]


def decoded(tensors: Tensors, source: Source, config: Mapping[str, Any]) -> tuple[Tensors, Source]:
    """The checkpoint as plain tensors: decoded ones stand in for the stored parts that they are made of.

    What has a type that is not plain and cannot be decoded stays as it is, with the reason.
    """
    found = _find(tensors, quantisation(config))
    if not found.decoders and not found.refused:
        return tensors, source
    plain = {name: info for name, info in tensors.items() if name not in found.used}
    for name, reason in found.refused.items():
        plain[name] = replace(plain[name], storage=Storage(plain[name].dtype, obstacle=reason))
    if not found.decoders:
        return plain, source
    view = DecodedSource(source, found.decoders)
    return {**plain, **view.tensors}, view


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


def _find(tensors: Tensors, how: Mapping[str, Any]) -> Found:
    found = Found()
    found.add(find_fp8(tensors, how))
    return found
