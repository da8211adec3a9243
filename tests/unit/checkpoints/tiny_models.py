"""Tiny checkpoints of real architectures: configured, filled and saved by transformers itself."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    )


def tied_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4))


def qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
    )


def gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(
        GptOssConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2)
    )


def write_pair(make: Callable[[], PreTrainedModel], folder: Path) -> tuple[Path, Path]:
    """A base, and a finetune whose every weight has moved; the finetune in smaller shards."""
    folders = (folder / "base", folder / "finetune")
    for seed, (path, shard) in enumerate(zip(folders, ("5GB", "20KB"), strict=True)):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.02)
        model.to(torch.bfloat16).save_pretrained(path, max_shard_size=shard)
    return folders
