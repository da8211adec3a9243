"""The demo's model: a tiny byte-level Llama with a tokenizer, in transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltarank.demo.recipe import Recipe

BEGIN, END, PAD = 256, 257, 258
_SPECIALS = {"<|begin|>": BEGIN, "<|end|>": END, "<|pad|>": PAD}

Llama = LlamaForCausalLM

# bfloat16, as in published checkpoints: the delta of the merged LoRA then contains rounding, as real ones do. Measured:
# its relative norm is 0.2 to 0.35, and rounding is 0.004 % of its energy. So the ninth singular value is not zero, but
# at most a fiftieth of the eighth, and the rank is clear.
STORED = torch.bfloat16


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama in float32, initialised by torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(_SPECIALS) + 256,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.length,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def load(folder: Path) -> LlamaForCausalLM:
    """Load a saved model in float32, as for training."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def save(model: LlamaForCausalLM, folder: Path, recipe: Recipe) -> None:
    """Save weights, configuration and tokenizer. This rounds the weights of `model` itself to `STORED`."""
    with _full_disk_is_an_oserror():
        nn.Module.to(model, STORED)
        model.save_pretrained(folder)
    tokenizer(recipe).save_pretrained(folder)


@contextmanager
def _full_disk_is_an_oserror() -> Iterator[None]:
    """Raise OSError if a write fails: safetensors raises an exception of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer in which byte b is token b; like Llama's, it puts `<|begin|>` before every text."""
    alphabet = {letter: byte for byte, letter in enumerate(_byte_letters())}
    inner = Tokenizer(models.BPE(vocab={**alphabet, **_SPECIALS}, merges=[]))
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIALS])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", BEGIN)]
    )
    wrap: Any = PreTrainedTokenizerFast  # its constructor is untyped
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=inner,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=recipe.length,
        clean_up_tokenization_spaces=False,
    )
    return wrapped


def _byte_letters() -> list[str]:
    """The printable character for each byte in byte-level tokenizers (GPT-2's table, 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def encode(documents: Iterable[str]) -> Tensor:
    """The documents as one row of tokens, each followed by `<|end|>`, without `<|begin|>`."""
    tokens: list[int] = []
    for document in documents:
        tokens += [*document.encode("utf-8", errors="replace"), END]
    return torch.tensor(tokens, dtype=torch.long)


def with_lora(model: LlamaForCausalLM, recipe: Recipe) -> PeftModel:
    """The frozen model with a LoRA on every linear module except `lm_head`."""
    return get_peft_model(
        model,
        LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the LoRA alone. It names its base by a relative path, so the Hub is not asked about it."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = "../base"
        config.target_modules = sorted(
            config.target_modules
        )  # PEFT stores a set, whose order differs between processes
    with _full_disk_is_an_oserror():
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty template with the path of a folder that will be renamed


def merged(model: PeftModel) -> LlamaForCausalLM:
    plain: Llama = model.merge_and_unload()
    return plain


def average(one: LlamaForCausalLM, two: LlamaForCausalLM) -> LlamaForCausalLM:
    """The mean of two models' weights, the simplest merge that people publish. Overwrites `one`."""
    with torch.no_grad():
        for mine, other in zip(one.parameters(), two.parameters(), strict=True):
            mine.lerp_(other, 0.5)
    return one


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
