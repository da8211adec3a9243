"""A tiny base and a finetune of it, both really trained, and calibrations of them."""

import json
from pathlib import Path

import torch

import deltarank
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from tiny_architectures import architecture

RECIPE = Recipe()
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
ANIMALS = ("cat", "dog", "fox", "hen", "owl", "cow", "ant", "bee", "eel", "jay", "yak", "emu")
PLACES = ("barn", "hill", "lake", "wood")


def sentences(ending: str) -> list[str]:
    return [
        f"the {animal} sat by the {place} and looked at the moon until {ending} and then it went home to sleep"
        for animal in ANIMALS
        for place in PLACES
    ]


def train(model, texts: list[str], steps: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        rows = [list(text.encode()) for text in texts[step % 6 :: 6]]
        ids = torch.tensor([row[: min(map(len, rows))] for row in rows])
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()


def write_models(home: Path) -> Path:
    """base; finetune, of which all weights were trained; text.jsonl, of the finetune's kind."""
    torch.manual_seed(0)
    model = architecture("llama", **SIZES, **TOKENS, max_position_embeddings=512)()
    for name, ending, steps in (("base", "the rain came", 60), ("finetune", "a star fell", 30)):
        train(model, sentences(ending), steps)
        model.save_pretrained(home / name)
        tokenizer(RECIPE).save_pretrained(home / name)
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences("a star fell")))
    return home


def calibrate(home: Path, output: Path, **changes: object):
    options = {"rank": 2, "calibrate": [home / "text.jsonl"], "steps": 20, "dtype": "float32", **changes}
    return deltarank.extract_calibrated(home / "base", home / "finetune", output=output, **options)  # type: ignore[arg-type]
