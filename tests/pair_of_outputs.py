"""A small pair that was really trained, an adapter, a text and prompts; and `outputs` measured on them."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

import deltarank
import peft_adapters as made
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.results import Outputs, Results
from tiny_architectures import architecture

RECIPE = Recipe()
RANKS = (1, 4, 16, 48)
FULL = 48
"""No side of this model is longer."""

TEXT = "the rain fell on the stones and the old man counted them, one by one, until the light was gone.\n"
ALL = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


def train(model: PreTrainedModel, text: str, *, frozen: bool) -> None:
    ids = torch.tensor([list(text.encode())])
    for name, weight in model.named_parameters():
        weight.requires_grad_("_proj" in name or not frozen)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()


def make_models(home: Path) -> None:
    """base; finetune, its matrices alone trained; adapter, of rank 4 by a float64 SVD; text.txt; prompts.txt."""
    torch.manual_seed(0)
    model = architecture("llama", **SIZES, **TOKENS, max_position_embeddings=256)()
    for name, text in (("base", TEXT.upper()), ("finetune", TEXT)):
        train(model, text, frozen=name == "finetune")
        model.save_pretrained(home / name)
        tokenizer(RECIPE).save_pretrained(home / name)
    factors = made.best_factors(home / "base", home / "finetune", 4)
    made.write_adapter(home / "adapter", factors, r=4, lora_alpha=4, target_modules=ALL, task_type="CAUSAL_LM")
    (home / "text.txt").write_text(TEXT + TEXT.upper())
    (home / "prompts.txt").write_text("the rain\nthe old man\n")


def measure(home: Path, **changes: object) -> Results:
    options = {"texts": [home / "text.txt"], "samples": 0, "ranks": RANKS, **changes}
    return deltarank.outputs(home / "base", home / "finetune", **options)  # type: ignore[arg-type]


def outputs_of(results: Results) -> Outputs:
    assert results.outputs is not None
    return results.outputs
