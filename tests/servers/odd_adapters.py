"""Adapters with a mistake, or with a feature that not every reader knows: a plain LoRA with one thing changed.

`write_odd(name, source, folder)` changes a copy of a plain adapter that `extract` wrote for the model ODD[name].model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from model_zoo import TOKENS
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."
FIRST_Q = PREFIX + "model.layers.0.self_attn.q_proj"
LLAMA, TIED, CONV1D, FUSED, NO_HEAD = "llama", "qwen2", "gpt2", "phi3", "mistral"


@dataclass
class PlainAdapter:
    """A LoRA to be changed: the tensors by key, and the configuration."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def hidden(self) -> int:
        return int(self.tensors[f"{FIRST_Q}.lora_A.weight"].shape[1])

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    def add_factors(self, module: str, inputs: int, outputs: int) -> None:
        self.tensors[f"{PREFIX}{module}.lora_A.weight"] = _random(self.rank, inputs)
        self.tensors[f"{PREFIX}{module}.lora_B.weight"] = _random(outputs, self.rank)

    def add_target(self, name: str) -> None:
        self.config["target_modules"] = [*self.config["target_modules"], name]


Change = Callable[[PlainAdapter], None]


@dataclass(frozen=True)
class OddAdapter:
    """What is changed in a plain adapter, and the model of the zoo that the adapter is for."""

    change: Change
    model: str = LLAMA


def write_odd(name: str, source: Path, folder: Path) -> Path:
    return _write_changed(source, ODD[name].change, folder)


def write_renamed(source: Path, prefix: str, folder: Path) -> Path:
    """With another prefix before `layers.` in the names of its modules."""
    return _write_changed(source, _renamed(lambda key: PREFIX + prefix + key[key.index("layers.") :]), folder)


def _write_changed(source: Path, change: Change, folder: Path) -> Path:
    plain = PlainAdapter(
        {key: tensor.float() for key, tensor in load_file(source / "adapter_model.safetensors").items()},
        json.loads((source / "adapter_config.json").read_text()),
    )
    change(plain)
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in plain.tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(plain.config))
    return folder


def _random(rows: int, columns: int) -> Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


def _settings(**fields: object) -> Change:
    return lambda adapter: adapter.config.update(fields)


def _without_setting(field: str) -> Change:
    def remove(adapter: PlainAdapter) -> None:
        del adapter.config[field]

    return remove


def _renamed(change: Callable[[str], str]) -> Change:
    def rename(adapter: PlainAdapter) -> None:
        adapter.tensors = {change(key): tensor for key, tensor in adapter.tensors.items()}

    return rename


def _without(*marks: str) -> Change:
    """Without the tensors whose keys contain all of these."""

    def remove(adapter: PlainAdapter) -> None:
        adapter.tensors = {k: t for k, t in adapter.tensors.items() if not all(mark in k for mark in marks)}

    return remove


def _with_tensor(key: str, make: Callable[[PlainAdapter], Tensor], **fields: object) -> Change:
    """With one more tensor; `fields` are set in the configuration."""

    def add(adapter: PlainAdapter) -> None:
        adapter.tensors[PREFIX + key] = make(adapter)
        adapter.config.update(fields)

    return add


def _with_factors(module: str, inputs: str, outputs: str, *, targeted: bool = True) -> Change:
    """With a LoRA on one more module; its sizes are "hidden" or "tokens"."""

    def add(adapter: PlainAdapter) -> None:
        sizes = {"hidden": adapter.hidden, "tokens": TOKENS}
        adapter.add_factors(module, sizes[inputs], sizes[outputs])
        if targeted:
            adapter.add_target(module.rsplit(".", 1)[-1])

    return add


def _with_embedding_factors(adapter: PlainAdapter) -> None:
    stem = f"{PREFIX}model.embed_tokens.lora_embedding"
    adapter.tensors |= {f"{stem}_A": _random(adapter.rank, TOKENS), f"{stem}_B": _random(adapter.hidden, adapter.rank)}
    adapter.add_target("embed_tokens")


def _with_magnitudes(adapter: PlainAdapter) -> None:
    for key in [key for key in adapter.tensors if key.endswith(".lora_B.weight")]:
        adapter.tensors[key.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(len(adapter.tensors[key]))
    adapter.config["use_dora"] = True


def _with_biases(adapter: PlainAdapter) -> None:
    for key in [key for key in adapter.tensors if key.endswith(".lora_B.weight")]:
        adapter.tensors[key.removesuffix("weight") + "bias"] = torch.full((len(adapter.tensors[key]),), 0.05)
    adapter.config["lora_bias"] = True


def _half_rank(adapter: PlainAdapter) -> None:
    """Of q_proj, in the tensors alone."""
    rank = adapter.rank // 2
    for key in [key for key in adapter.tensors if ".q_proj." in key]:
        tensor = adapter.tensors[key]
        adapter.tensors[key] = tensor[:rank] if "lora_A" in key else tensor[:, :rank]


def _rank_pattern(adapter: PlainAdapter) -> None:
    _half_rank(adapter)
    adapter.config["rank_pattern"] = {"q_proj": adapter.rank // 2}


def _replaced(key: str, change: Callable[[Tensor], Tensor]) -> Change:
    def replace(adapter: PlainAdapter) -> None:
        adapter.tensors[key] = change(adapter.tensors[key])

    return replace


def _not_a_number(adapter: PlainAdapter) -> None:
    adapter.tensors[f"{FIRST_Q}.lora_A.weight"][0, 0] = torch.nan


def _unstored(adapter: PlainAdapter) -> None:
    adapter.tensors = {"unused": torch.zeros(1)}


def _targeted(*names: str) -> Change:
    return _settings(target_modules=list(names))


_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_NORM = "model.norm.weight"
_FIRST_A = f"{FIRST_Q}.lora_A.weight"
_FIRST_B = f"{FIRST_Q}.lora_B.weight"


def _vocabulary(adapter: PlainAdapter) -> Tensor:
    return _random(TOKENS, adapter.hidden)


def _vector(adapter: PlainAdapter) -> Tensor:
    return torch.full((adapter.hidden,), 1.5)


ODD: Mapping[str, OddAdapter] = {
    "unchanged": OddAdapter(_settings()),
    "lora_alpha 16 at r 8": OddAdapter(_settings(lora_alpha=16)),
    "lora_alpha 4.5 at r 8": OddAdapter(_settings(lora_alpha=4.5)),
    "lora_alpha -8": OddAdapter(_settings(lora_alpha=-8)),
    "use_rslora": OddAdapter(_settings(use_rslora=True)),
    "rank_pattern": OddAdapter(_rank_pattern),
    "alpha_pattern": OddAdapter(_settings(alpha_pattern={"q_proj": 16, "v_proj": 4})),
    "alpha_pattern for one layer": OddAdapter(_settings(alpha_pattern={r"layers\.1\.mlp\.up_proj": 2})),
    "rank_pattern, alpha_pattern and use_rslora": OddAdapter(
        lambda adapter: (_rank_pattern(adapter), adapter.config.update(alpha_pattern={"k_proj": 4}, use_rslora=True))[0]
    ),
    "q_proj of half the rank, no rank_pattern": OddAdapter(_half_rank),
    "r of 16 in the configuration, 8 in the tensors": OddAdapter(_settings(r=16, lora_alpha=16)),
    "fan_in_fan_out on nn.Linear": OddAdapter(_settings(fan_in_fan_out=True)),
    "layers_to_transform": OddAdapter(_settings(layers_to_transform=[0])),
    "layers_to_transform and layers_pattern": OddAdapter(_settings(layers_to_transform=[1], layers_pattern="layers")),
    "exclude_modules": OddAdapter(_settings(exclude_modules=["q_proj"])),
    "target_modules names k_proj alone": OddAdapter(_targeted("k_proj")),
    "target_modules as a regular expression": OddAdapter(_settings(target_modules=r".*\.(q|k)_proj")),
    "target_modules all-linear": OddAdapter(_settings(target_modules="all-linear")),
    "modules_to_save without its tensor": OddAdapter(_settings(modules_to_save=["lm_head"])),
    "modules_to_save with lm_head": OddAdapter(_with_tensor(_HEAD, _vocabulary, modules_to_save=["lm_head"])),
    "modules_to_save with the embedding": OddAdapter(
        _with_tensor(_EMBEDDING, _vocabulary, modules_to_save=["embed_tokens"])
    ),
    "modules_to_save with a norm": OddAdapter(_with_tensor(_NORM, _vector, modules_to_save=["norm"])),
    "modules_to_save empty": OddAdapter(_settings(modules_to_save=[])),
    "a norm's tensor, not in modules_to_save": OddAdapter(_with_tensor(_NORM, _vector)),
    "bias all, no tensors": OddAdapter(_settings(bias="all")),
    "bias lora_only, no tensors": OddAdapter(_settings(bias="lora_only")),
    "bias all with tensors": OddAdapter(
        _with_tensor("model.layers.0.self_attn.q_proj.base_layer.bias", _vector, bias="all"), TIED
    ),
    "lora_bias with tensors": OddAdapter(_with_biases),
    "A missing": OddAdapter(_without(_FIRST_A)),
    "B missing": OddAdapter(_without(_FIRST_B)),
    "q_proj missing, still a target": OddAdapter(_without(".q_proj.")),
    "a layer missing": OddAdapter(_without(".layers.1.")),
    "unknown module": OddAdapter(_with_factors("model.layers.0.self_attn.other_proj", "hidden", "hidden")),
    "a layer too many": OddAdapter(
        _with_factors("model.layers.7.self_attn.q_proj", "hidden", "hidden", targeted=False)
    ),
    "factors of a module that is no target": OddAdapter(_targeted("q_proj", "v_proj", "up_proj", "down_proj")),
    "stray tensor": OddAdapter(_with_tensor("model.stray", _vector)),
    "stray tensor, named as an optimizer's": OddAdapter(
        lambda adapter: adapter.tensors.update({"optimizer.step": torch.ones(1)})
    ),
    "fused names on split projections": OddAdapter(
        _with_factors("model.layers.0.self_attn.qkv_proj", "hidden", "tokens")
    ),
    "split names on fused projections": OddAdapter(_renamed(lambda key: key.replace("qkv_proj", "q_proj")), FUSED),
    "embedding LoRA, untied": OddAdapter(_with_embedding_factors),
    "embedding LoRA, tied": OddAdapter(_with_embedding_factors, TIED),
    "lm_head LoRA, untied": OddAdapter(_with_factors("lm_head", "hidden", "tokens")),
    "lm_head LoRA, untied, Mistral": OddAdapter(_with_factors("lm_head", "hidden", "tokens"), NO_HEAD),
    "lm_head LoRA, tied": OddAdapter(_with_factors("lm_head", "hidden", "tokens"), TIED),
    "LoRA on a norm": OddAdapter(_with_factors("model.norm", "hidden", "hidden")),
    "keys without base_model.model.": OddAdapter(_renamed(lambda key: key.removeprefix(PREFIX))),
    "keys with .default.": OddAdapter(_renamed(lambda key: key.replace(".weight", ".default.weight"))),
    "keys with _orig_mod. after the prefix": OddAdapter(
        _renamed(lambda key: key.replace(PREFIX, PREFIX + "_orig_mod."))
    ),
    "keys with _orig_mod. before the prefix": OddAdapter(_renamed("_orig_mod.{}".format)),
    "keys with module. before the prefix": OddAdapter(_renamed("module.{}".format)),
    "keys with the prefix twice": OddAdapter(_renamed(lambda key: PREFIX + key)),
    "keys without the second model.": OddAdapter(_renamed(lambda key: key.replace(PREFIX + "model.", PREFIX))),
    "keys of a multimodal class": OddAdapter(
        _renamed(lambda key: key.replace(PREFIX + "model.", PREFIX + "model.language_model."))
    ),
    "keys with .base_layer.": OddAdapter(_renamed(lambda key: key.replace(".lora_", ".base_layer.lora_"))),
    "no usable tensor": OddAdapter(_unstored),
    "A of other columns": OddAdapter(_replaced(_FIRST_A, lambda a: torch.cat([a, a], dim=1))),
    "B of other rows": OddAdapter(_replaced(_FIRST_B, lambda b: b[: len(b) // 2])),
    "A stored transposed": OddAdapter(_replaced(_FIRST_A, lambda a: a.T)),
    "A in float16": OddAdapter(_replaced(_FIRST_A, Tensor.half)),
    "A in 8-bit integers": OddAdapter(_replaced(_FIRST_A, lambda a: (100 * a).to(torch.int8))),
    "DoRA": OddAdapter(_with_magnitudes),
    "use_dora without magnitudes": OddAdapter(_settings(use_dora=True)),
    "PiSSA": OddAdapter(_settings(init_lora_weights="pissa")),
    "OLoRA": OddAdapter(_settings(init_lora_weights="olora")),
    "init_lora_weights gaussian": OddAdapter(_settings(init_lora_weights="gaussian")),
    "init_lora_weights loftq": OddAdapter(_settings(init_lora_weights="loftq")),
    "aLoRA": OddAdapter(_settings(alora_invocation_tokens=[5, 6])),
    "layer_replication": OddAdapter(_settings(layer_replication=[[0, 2], [1, 3]])),
    "use_qalora": OddAdapter(_settings(use_qalora=True)),
    "trainable_token_indices": OddAdapter(
        _with_tensor(
            "model.embed_tokens.token_adapter.trainable_tokens_delta",
            lambda adapter: _random(2, adapter.hidden),
            trainable_token_indices=[3, 4],
        )
    ),
    "r missing in the configuration": OddAdapter(_without_setting("r")),
    "lora_alpha missing in the configuration": OddAdapter(_without_setting("lora_alpha")),
    "target_modules missing in the configuration": OddAdapter(_without_setting("target_modules")),
    "target_modules null": OddAdapter(_settings(target_modules=None)),
    "peft_type LOHA": OddAdapter(_settings(peft_type="LOHA")),
    "Conv1D": OddAdapter(_settings(), CONV1D),
    "Conv1D without fan_in_fan_out": OddAdapter(_settings(fan_in_fan_out=False), CONV1D),
    "NaN": OddAdapter(_not_a_number),
}
"""By name. The last one is last because it spoils what a server answers afterwards."""
