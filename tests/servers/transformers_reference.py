"""What transformers and PEFT predict in float32: the next token's log-probabilities, for every token."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM


def log_probabilities(
    model: Path, prompts: Iterable[list[int]], adapter: Path | None = None, auto: Any = AutoModelForCausalLM
) -> Tensor:
    """(prompts, tokens) of a saved model, with an adapter as PEFT loads it."""
    loaded: Any = auto.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # PEFT's, about what the adapters of these tests do on purpose
        if adapter is not None:
            loaded = PeftModel.from_pretrained(loaded, adapter)
        logits = [loaded.eval()(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    return torch.log_softmax(torch.stack(logits).double(), -1)
