"""What config.json says about quantisation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `quantization_config`, `compression_config` or MLX's `quantization`, of the model or its text part, or {}."""
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if isinstance(part.get(key), dict):
                quantization: Mapping[str, Any] = part[key]
                return quantization
    return {}


def quantization_fingerprint(config: Mapping[str, Any]) -> str:
    """Changes with every setting that changes decoded numbers."""
    text = json.dumps(quantization_config(config), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def group_settings(quantization: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The `weights` settings of each of compressed-tensors' `config_groups`."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights
