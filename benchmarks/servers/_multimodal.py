"""Tiny models that read images, too, of classes whose modules transformers renames while it loads their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from model_zoo import TOKENS, Family, tokenizer
from torch import Generator, Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

_TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_TIED = {**_TEXT, "tie_word_embeddings": True}
_GEMMA = {**_TIED, "sliding_window": 128, "query_pre_attn_scalar": 32}
_ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
_QWEN = {**_TEXT, "rope_parameters": _ROPE}
_LAYER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_LAYER, "image_size": 28, "patch_size": 14}
_BLOCK = {"depth": 1, "num_heads": 2, "patch_size": 14}
_IMAGE = {"image_token_index": 500}
_TOKENS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}

MULTIMODAL: Mapping[str, Mapping[str, Any]] = {
    "gemma3": _IMAGE
    | {
        "text_config": {**_GEMMA, "model_type": "gemma3_text"},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "boi_token_index": 501,
        "eoi_token_index": 502,
    },
    "llava": _IMAGE
    | {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "projection_dim": 64},
        "image_seq_length": 4,
    },
    "mistral3": _IMAGE
    | {
        "text_config": {**_TEXT, "model_type": "mistral", "sliding_window": None},
        "vision_config": {**_VISION, "model_type": "pixtral"},
    },
    "paligemma": _IMAGE
    | {
        "text_config": {**_TIED, "model_type": "gemma"},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "projection_dim": 128,
    },
    "qwen2_vl": _TOKENS
    | {
        "text_config": {**_QWEN, "model_type": "qwen2_vl_text", "sliding_window": None},
        "vision_config": {**_BLOCK, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2},
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl": _TOKENS
    | {
        "text_config": {**_QWEN, "model_type": "qwen2_5_vl_text", "sliding_window": None},
        "vision_config": {**_BLOCK, "hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 128}
        | {"fullatt_block_indexes": [0]},
        "tie_word_embeddings": False,
    },
    "qwen3_vl": _TOKENS
    | {
        "text_config": {**_QWEN, "model_type": "qwen3_vl_text"}
        | {"rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        "vision_config": {**_BLOCK, "patch_size": 16, "hidden_size": 64, "out_hidden_size": 128}
        | {"intermediate_size": 128, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
}

PREFIXES = ("model.language_model.", "language_model.model.", "model.", "language_model.")
"""What adapters put before `layers.`: what transformers 5 calls the modules, first, and then other names: of files on
the Hub, of the text model alone, and of a part of the class."""


def write_multimodal(name: str, folder: Path) -> Family:
    """Writes folder/base and folder/finetune, whose language model differs."""
    config = AutoConfig.for_model(name, **MULTIMODAL[name])
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    generator = Generator().manual_seed(len(name))
    for part, change in (("base", _start), ("finetune", _changed)):
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.copy_(change(key, weight, generator, is_gemma="gemma" in name))
        model.to(torch.bfloat16).save_pretrained(folder / part)
        model.float()
        tokenizer().save_pretrained(folder / part)
    return Family(folder / "base", folder / "finetune", folder / "finetune", TOKENS)


def _start(name: str, weight: Tensor, generator: Generator, *, is_gemma: bool) -> Tensor:
    drawn = torch.randn(weight.shape, generator=generator)
    if weight.dim() == 1:
        center = 1 if "norm" in name and not (is_gemma and "language" in name) else 0
        return center + 0.1 * drawn
    return (0.5 if "embed" in name else 1.2 / weight.shape[-1] ** 0.5) * drawn


def _changed(name: str, weight: Tensor, generator: Generator, *, is_gemma: bool) -> Tensor:
    if "language_model.layers" not in name or weight.dim() != 2:
        return weight
    rows, columns = weight.shape
    up, down = torch.randn(rows, 8, generator=generator), torch.randn(8, columns, generator=generator)
    return weight + 0.25 / (8 * max(weight.shape)) ** 0.5 * up @ down
