"""Llama-shaped checkpoints of a few kilobytes, written to disk as real ones are."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 32, 48, 64, 2
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
MATRICES = LAYERS * len(MODULES)


def base_weights(seed: int = 0) -> dict[str, Tensor]:
    """In float32, rounded to bfloat16: as a trainer reads a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{module}.weight": shape for module, shape in MODULES.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: (0.02 * torch.randn(shape, generator=generator)).bfloat16().float() for name, shape in shapes.items()}


def full_finetune(weights: Mapping[str, Tensor], seed: int = 1, scale: float = 0.006) -> dict[str, Tensor]:
    """Every number moves, in no direction more than in others."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in weights.items()}


def merged_lora(weights: Mapping[str, Tensor], rank: int, seed: int = 2) -> dict[str, Tensor]:
    """The matrices of the layers move by a product of that rank; nothing else does."""
    generator = torch.Generator().manual_seed(seed)
    tuned = dict(weights)
    for name, w in weights.items():
        if "_proj" in name:
            b, a = (torch.randn(n, rank, generator=generator) for n in w.shape)
            tuned[name] = w + 0.006 * b @ a.T
    return tuned


def write(folder: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype = torch.bfloat16) -> Path:
    folder.mkdir(parents=True)
    save_file({name: w.to(dtype).contiguous() for name, w in weights.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
