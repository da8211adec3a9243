"""The sizes of the demo's model, and how long each finetune is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """A training with AdamW: linear warm-up over a tenth of the steps, then cosine decay to a tenth of `peak_rate`."""

    steps: int
    peak_rate: float
    batch: int = 5
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A Llama of 2.5 M parameters, the training of the base and of three finetunes.

    `length` is that of a window in tokens, `<|begin|>` included; `text_limit` limits each text in characters;
    `loss_windows` is the number of windows of held-out text over which a loss is computed.
    """

    hidden: int = 256
    intermediate: int = 688
    layers: int = 3
    heads: int = 4
    length: int = 192
    text_limit: int = 2_000_000
    loss_windows: int = 16
    lora_rank: int = 8
    lora_alpha: int = 16
    base: Course = Course(steps=230, peak_rate=1.2e-3, batch=6, weight_decay=0.1)
    # All finetunes take the same number of steps, so that LoRA and full finetune differ only in the method.
    # A LoRA needs a higher learning rate, as usual.
    lora: Course = Course(steps=90, peak_rate=3e-3)
    full: Course = Course(steps=90, peak_rate=1e-3)
    other: Course = Course(steps=90, peak_rate=1e-3)
