"""Adapters that PEFT itself trained, wrote and merged, on models small enough to be trained in a moment."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tiny_architectures import DENSE, SIZES, Make, architecture

llama = DENSE["llama"]
wide_llama = architecture("llama", **SIZES | {"hidden_size": 64, "intermediate_size": 96})
"""Wide enough for rank 64."""
qwen2 = DENSE["qwen2"]
"""Its q, k and v have biases."""
gpt2 = DENSE["gpt2"]
"""Its layers are Conv1D, and c_proj of the attention is square."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without PEFT's warnings about what the tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_base(make: Make, folder: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.05)
    with _without_warnings():
        model.save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, *, seed: int = 1, steps: int = 4, **config: Any) -> Path:
    """A LoRA that has really been trained, saved by PEFT."""
    torch.manual_seed(seed)
    with _without_warnings():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=1e-2)
        tokens = torch.randint(3, 48, (4, 12))
        for _ in range(steps):
            optimiser.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimiser.step()
        model.save_pretrained(folder)
    return folder


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """PEFT's own merge, as a checkpoint."""
    with _without_warnings():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        model.merge_and_unload().save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def write_checkpoint(folder: Path, weights: Mapping[str, Tensor], like: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((like / "config.json").read_bytes())
    return folder


def finetune(base: Path, folder: Path, *, seed: int = 2, scale: float = 0.01) -> Path:
    """Every weight changes, equally in all directions."""
    generator = torch.Generator().manual_seed(seed)
    moved = {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in tensors(base).items()}
    return write_checkpoint(folder, moved, base)


def write_adapter(folder: Path, weights: Mapping[str, Tensor], **config: Any) -> Path:
    """By hand: what another program might have written."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def config_of(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return config


def edit_config(adapter: Path, **fields: object) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({**config_of(adapter), **fields}))


def best_factors(base: Path, tuned: Path, rank: int, *, ends: str = "_proj.weight") -> dict[str, Tensor]:
    """The truncated SVD of every matrix, by a float64 SVD, under PEFT's names."""
    before, after = tensors(base), tensors(tuned)
    factors = {}
    for name in (name for name in before if name.endswith(ends)):
        u, s, v = torch.linalg.svd(after[name].double() - before[name].double(), full_matrices=False)
        root = s[:rank].sqrt()
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{stem}.lora_A.weight"] = (root[:, None] * v[:rank]).float()
        factors[f"{stem}.lora_B.weight"] = (u[:, :rank] * root).float()
    return factors
