"""Tiny models of the families that servers load, each with two finetunes, as transformers saves them in bfloat16.

`write_family(name, folder)` writes folder/base, folder/finetune (a full-rank change of every tensor) and
folder/merged (a LoRA of rank 8 merged into the linear layers). Needs torch, transformers and tokenizers only, so that
any server's environment can run it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Generator, Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TOKENS = 512
MERGED_RANK = 8

_SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_HEADS = {**_SIZES, "head_dim": 32}
_GEMMA = {**_HEADS, "num_hidden_layers": 4, "sliding_window": 128, "query_pre_attn_scalar": 32} | {
    "tie_word_embeddings": True
}
_EXPERTS = {**_HEADS, "num_experts_per_tok": 2}
_GPT2 = {"vocab_size": TOKENS, "n_positions": 256, "n_ctx": 256, "n_embd": 128, "n_layer": 3, "n_head": 4}


@dataclass(frozen=True)
class ZooModel:
    """A model type with its configuration.

    has_experts   it is a mixture of experts
    has_own_head  its lm_head is not the embedding
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    has_experts: bool = False
    has_own_head: bool = True

    def make(self) -> PreTrainedModel:
        config = AutoConfig.for_model(self.model_type, **self.config)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return made


ZOO: Mapping[str, ZooModel] = {
    "llama": ZooModel("llama", _SIZES),
    "llama with biases": ZooModel("llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama of 521 tokens": ZooModel("llama", {**_SIZES, "vocab_size": 521}),
    "qwen2": ZooModel("qwen2", {**_SIZES, "tie_word_embeddings": True}, has_own_head=False),
    "qwen3": ZooModel("qwen3", _HEADS),
    "mistral": ZooModel("mistral", {**_HEADS, "sliding_window": None}),
    "gemma2": ZooModel("gemma2", _GEMMA, has_own_head=False),
    "gemma3": ZooModel("gemma3_text", _GEMMA, has_own_head=False),
    "phi3": ZooModel("phi3", {**_SIZES, "sliding_window": None, "original_max_position_embeddings": 512}),
    "mixtral": ZooModel("mixtral", {**_EXPERTS, "num_local_experts": 4, "sliding_window": None}, has_experts=True),
    "qwen3 moe": ZooModel(
        "qwen3_moe",
        {**_EXPERTS, "moe_intermediate_size": 64, "num_experts": 4, "decoder_sparse_step": 1, "norm_topk_prob": True},
        has_experts=True,
    ),
    "gpt2": ZooModel("gpt2", {**_GPT2, "bos_token_id": 0, "eos_token_id": 1}, has_own_head=False),
}
"""Llama with grouped queries, with biases and with a vocabulary of no round size; then one model of each family."""


@dataclass(frozen=True)
class Family:
    """Where a model and its finetunes lie, and how many tokens it predicts."""

    base: Path
    finetune: Path
    merged: Path
    vocabulary: int


def write_family(name: str, folder: Path) -> Family:
    """Writes the base and both finetunes of a model of the zoo."""
    model, tokens = ZOO[name].make(), tokenizer()
    generator = Generator().manual_seed(sorted(ZOO).index(name))
    start = {key: _start(key, weight, generator, model) for key, weight in model.named_parameters()}
    changes: Mapping[str, Callable[[str, Tensor], Tensor]] = {
        "base": lambda _, weight: weight,
        "finetune": lambda _, weight: weight + _full_rank_change(weight, generator),
        "merged": lambda key, weight: weight + _low_rank_change(key, weight, generator),
    }
    for part, change in changes.items():
        _load(model, {key: change(key, weight) for key, weight in start.items()})
        model.to(torch.bfloat16).save_pretrained(folder / part)
        model.float()
        tokens.save_pretrained(folder / part)
    return Family(folder / "base", folder / "finetune", folder / "merged", model.config.vocab_size)


def sharpen(checkpoint: Path, factor: float = 4.0, tokens: Sequence[int] | slice = slice(None)) -> None:
    """Multiplies the output head, or its rows of some tokens: a random model predicts all tokens alike, and lists of
    20 would hold little."""
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][tokens] *= factor
    save_file(weights, file, metadata={"format": "pt"})


def _load(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weights[key])


def _start(name: str, weight: Tensor, generator: Generator, model: PreTrainedModel) -> Tensor:
    """Random weights that bfloat16 holds exactly, scaled so that every layer matters."""
    drawn, is_gemma = torch.randn(weight.shape, generator=generator), "gemma" in model.config.model_type
    if name.endswith("bias"):
        made = 0.05 * drawn
    elif weight.dim() == 1:
        made = (0 if is_gemma else 1) + 0.1 * drawn
    elif "embed" in name or "wte" in name or "wpe" in name:
        made = (0.3 if is_gemma else 0.5) * drawn
    else:
        made = 1.2 / weight.shape[-1] ** 0.5 * drawn
    return made.bfloat16().float()


def _full_rank_change(weight: Tensor, generator: Generator) -> Tensor:
    """A spectrum that decays as those of real finetunes do, over noise of full rank."""
    noise = torch.randn(weight.shape, generator=generator)
    if weight.dim() == 1:
        return 0.05 * noise
    if weight.dim() > 2:
        return 0.02 * noise
    rows, columns = weight.shape
    left, _ = torch.linalg.qr(torch.randn(rows, min(weight.shape), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, min(weight.shape), generator=generator))
    values = torch.exp(-torch.arange(min(weight.shape)) / 12.0)
    return 0.8 * (left * values) @ right.T + 0.004 * noise


def _low_rank_change(name: str, weight: Tensor, generator: Generator) -> Tensor:
    if weight.dim() != 2 or not any(word in name for word in ("proj", "c_attn", "c_fc")):
        return torch.zeros_like(weight)
    rows, columns = weight.shape
    up = torch.randn(rows, MERGED_RANK, generator=generator)
    down = torch.randn(MERGED_RANK, columns, generator=generator)
    return 0.25 / (MERGED_RANK * max(weight.shape)) ** 0.5 * up @ down


def tokenizer() -> Any:
    """A BPE tokenizer of 512 tokens: three special ones, all bytes, and pairs of letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "abcdefghijklmnop"
    pairs = [(first, second) for first in letters for second in letters]
    pieces = ["<s>", "</s>", "<unk>", *alphabet]
    pairs = pairs[: TOKENS - len(pieces)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *(a + b for a, b in pairs)])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def prompts() -> Iterator[list[int]]:
    """Four prompts of token ids, the same everywhere."""
    drawn = random.Random(7)
    for length in (9, 24, 23, 17):
        yield [0, *(drawn.randrange(3, TOKENS) for _ in range(length - 1))]
