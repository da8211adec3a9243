"""Forward passes of a model in transformers, on random tokens: `bare_passes.py MODEL WORK.json`.

WORK.json is a list of {"lengths": [...], "times": n, "models": m}: documents of these lengths are read n times, in
batches of up to 2,048 tokens with the longest first, and m models are loaded for that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TOKENS_AT_ONCE = 2048


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for length in sorted(lengths, reverse=True):
        if batch and (len(batch) + 1) * batch[0] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(length)
    if batch:
        yield batch


@torch.inference_mode()
def main(folder: str, work: str) -> None:
    def load() -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    model = load()
    generator = torch.Generator().manual_seed(0)
    for part in json.loads(Path(work).read_text()):
        for _ in range(part["models"]):
            model = load()
        for _ in range(part["times"]):
            for batch in batches(part["lengths"]):
                ids = torch.randint(model.config.vocab_size, (len(batch), batch[0]), generator=generator)
                mask = (torch.arange(batch[0]) < torch.tensor(batch)[:, None]).long()
                model(input_ids=ids, attention_mask=mask, use_cache=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
