"""Tiny models of real architectures, finetuned for real for a few steps, as transformers saves them."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 48
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {**SIZES, "head_dim": 8}
_FEW_EXPERTS = {**_HEADS, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

Make = Callable[[], PreTrainedModel]

DENSE: Mapping[str, Make] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_HEADS)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_HEADS)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
        )
    ),
}
EXPERTS: Mapping[str, Make] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_HEADS, num_local_experts=4)),
    "qwen3 moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2)
    ),
}
MORE_EXPERTS: Mapping[str, Make] = {
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2)),
    # A shared expert, whose modules have the names of an expert's.
    "qwen2 moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**_FEW_EXPERTS, num_experts=4, shared_expert_intermediate_size=24, decoder_sparse_step=1)
    ),
    # Beside the router's weight lies a correction that is no parameter, and that PEFT wants all the same.
    "glm4 moe": lambda: Glm4MoeForCausalLM(Glm4MoeConfig(**_FEW_EXPERTS | _SHARED_EXPERT)),
    "deepseek v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **_FEW_EXPERTS | _SHARED_EXPERT | _LATENT | {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
        )
    ),
}
"""Models that few tests need."""


def tokens(rows: int = 4, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(seed))


def logits(folder: Path, adapter: Path | None = None, *, merged: bool = False) -> torch.Tensor:
    """What a saved model says of `tokens`, with an adapter as PEFT loads it, beside the weights or merged into them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            warnings.filterwarnings("ignore", "`lora_bias=True` was passed but")
            model = PeftModel.from_pretrained(model, adapter)
        model = model.merge_and_unload() if merged else model
    return logits_of(model.eval())


def logits_of(model: Any) -> torch.Tensor:
    """The model's logits on `tokens(seed=99)`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=tokens(seed=99)).logits
    return found


def write_pair(make: Make, folder: Path, *, dtype: torch.dtype = torch.float32, steps: int = 3) -> tuple[Path, Path]:
    """A base of random weights and what a few steps of AdamW make of it: every weight that learns has moved."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.1)
    model.to(dtype).save_pretrained(folder / "base")
    model.float().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = tokens(seed=step)
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.to(dtype).save_pretrained(folder / "finetune")
    return folder / "base", folder / "finetune"
