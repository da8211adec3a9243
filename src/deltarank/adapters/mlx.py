"""Adapters of mlx-lm: adapters.safetensors beside an adapter_config.json that is not PEFT's.

    NAME.lora_a  (inputs, r)    NAME.lora_b  (r, outputs)        y = x W' + scale * (x lora_a) lora_b

so that W changes by scale * (lora_a lora_b)'. Of an embedding, lora_a is (rows, r), lora_b (r, columns), and the change
is scale * lora_a lora_b, also where the embedding serves as the output head (mlx_lm/tuner/lora.py, 0.29).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from deltarank.adapters.config_read import LoraConfig, parse_config
from deltarank.adapters.parts import AdapterPart, PartKind, Parts, UnusedTensor
from deltarank.checkpoints import FLOAT_DTYPES, TensorInfo, quoted
from deltarank.errors import AdapterError
from deltarank.tensor_names import EMBEDDING, kind_of_tensor

MLX_WEIGHTS = ("adapters.safetensors",)

_DOWN, _UP = ".lora_a", ".lora_b"
_FUSE = "Fuse it: `mlx_lm.fuse --model BASE --adapter-path ADAPTER --save-path OUT`. Then compare BASE with OUT."


def is_mlx_config(data: Mapping[str, Any]) -> bool:
    return "peft_type" not in data and ("lora_parameters" in data or "fine_tune_type" in data)


def parse_mlx_config(data: Mapping[str, Any]) -> LoraConfig:
    """The configuration in PEFT's terms: alpha / r is the scale.

    Raises:
        AdapterError: (slug "adapter-unsupported") the adapter is no plain LoRA; (slug "adapter-bad-config") it has no
            rank, or no scale.
    """
    kind = data.get("fine_tune_type", "lora")
    if kind != "lora":
        _raise_unsupported(f"mlx-lm's fine_tune_type {ascii(kind)[:40]}")
    found = data.get("lora_parameters")
    parameters: Mapping[str, Any] = found if isinstance(found, dict) else {}
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if not isinstance(rank, int) or not isinstance(scale, int | float) or isinstance(scale, bool):
        raise AdapterError(
            "`adapter_config.json` is invalid: mlx-lm's `lora_parameters` have no whole `rank`, or no `scale`.",
            cure="Give the adapter_config.json that mlx-lm wrote beside the adapter.",
            slug="adapter-bad-config",
        )
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": float(scale) * rank, "target_modules": "all-linear"}
    base = data.get("model")
    config = parse_config(json.dumps({**plain, "base_model_name_or_path": base}).encode())
    return replace(config, ties_weights=True)


def group_mlx_tensors(tensors: Iterable[TensorInfo]) -> Parts:
    """The parts that pairs of lora_a and lora_b make, and the tensors that are in no pair.

    Raises:
        AdapterError: (slug "adapter-unsupported") the file has the magnitudes of DoRA, or LoRAs on stacked experts.
    """
    by_name = {info.name: info for info in tensors}
    parts: list[AdapterPart] = []
    unused: list[UnusedTensor] = []
    for name, info in by_name.items():
        if name.endswith(".m"):
            _raise_unsupported("DoRA of mlx-lm, which also rescales the base's columns")
        module, is_down = name.removesuffix(_DOWN).removesuffix(_UP), name.endswith(_DOWN)
        other = by_name.get(module + (_UP if is_down else _DOWN)) if module != name else None
        if other is None or info.dtype not in FLOAT_DTYPES or other.dtype not in FLOAT_DTYPES:
            unused.append(UnusedTensor(name, "it is no pair of lora_a and lora_b of mlx-lm"))
        elif is_down:
            parts.append(_part(module, info, other))
    return tuple(parts), tuple(unused)


def _part(module: str, down: TensorInfo, up: TensorInfo) -> AdapterPart:
    if len(down.shape) == 3 == len(up.shape):
        _raise_unsupported("a LoRA of mlx-lm on experts that share a tensor")
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[1] != up.shape[0]:
        raise AdapterError(
            f"{quoted(down.name)} and {quoted(up.name)} are no factors of one LoRA.",
            cure="Download or copy the adapter again.",
            slug="adapter-bad-config",
        )
    tensor = f"{module}.weight"
    kind = PartKind.EMBEDDING if kind_of_tensor(tensor) == EMBEDDING else PartKind.LINEAR
    return AdapterPart(kind, module, tensor, up, down, has_prefix=False, is_turned=True)


def _raise_unsupported(what: str) -> NoReturn:
    raise AdapterError(
        f"The adapter is more than a scaled product of two factors ({what}).", cure=_FUSE, slug="adapter-unsupported"
    )
