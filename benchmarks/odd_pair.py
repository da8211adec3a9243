"""Makes a pair that holds all that an extractor may trip over: `python benchmarks/odd_pair.py FOLDER`.

The layout of Qwen3-MoE in miniature: experts one by one, routers, norms, biases in the attention, a vocabulary that is
tied to the output, and 32 tokens that only the finetune has. Every tensor moves by 0.03 of its norm, in a few
dominant directions over a flat bulk, as in `pairs.py`. Fixed seeds, bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from pairs import tensor_pair

HIDDEN, LAYERS, EXPERTS, INNER, HEAD, VOCABULARY, ADDED = 256, 2, 4, 128, 64, 512, 32
_ATTENTION = {"q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256), "o_proj": (256, 256)}
_EXPERT = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}


def sizes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor but the vocabulary."""
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        yield from ((f"{at}.{norm}.weight", (HIDDEN,)) for norm in ("input_layernorm", "post_attention_layernorm"))
        yield from ((f"{at}.self_attn.{norm}.weight", (HEAD,)) for norm in ("q_norm", "k_norm"))
        for name, size in _ATTENTION.items():
            yield f"{at}.self_attn.{name}.weight", size
            yield f"{at}.self_attn.{name}.bias", size[:1]
        yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            yield from ((f"{at}.mlp.experts.{expert}.{name}.weight", size) for name, size in _EXPERT.items())


def config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * INNER,
        "moe_intermediate_size": INNER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def make(folder: Path) -> None:
    """Writes FOLDER/base and FOLDER/finetune."""
    both = {name: tensor_pair(name, size, torch.bfloat16) for name, size in sizes()}
    before, after = tensor_pair("model.embed_tokens.weight", (VOCABULARY, HIDDEN), torch.bfloat16)
    added = tensor_pair("added", (ADDED, HIDDEN), torch.bfloat16)[1]
    both["model.embed_tokens.weight"] = (before, torch.cat([after, added]))
    for side, name in enumerate(("base", "finetune")):
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        tensors = {key: pair[side].contiguous() for key, pair in both.items()}
        save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
        (home / "config.json").write_text(json.dumps(config(VOCABULARY + side * ADDED), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
