"""Adapters that PEFT itself trained, wrote and merged, on models small enough to be trained in a moment."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

_SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES))


def wide_llama() -> PreTrainedModel:
    """Wide enough for rank 64."""
    return LlamaForCausalLM(LlamaConfig(**_SIZES | {"hidden_size": 64, "intermediate_size": 96}))


def qwen2() -> PreTrainedModel:
    """Its q, k and v have biases."""
    return Qwen2ForCausalLM(Qwen2Config(**_SIZES))


def gpt2() -> PreTrainedModel:
    """Its layers are Conv1D, and c_proj of the attention is square."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without PEFT's warnings about what the tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_base(make: Callable[[], PreTrainedModel], folder: Path, *, seed: int = 0) -> Path:
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
