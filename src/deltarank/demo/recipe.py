"""How big the lab is and how long it trains: every number that decides what it shows, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """One training: AdamW, warmed up over a tenth of the steps, then down a cosine to a tenth of `peak_rate`."""

    steps: int
    peak_rate: float
    batch: int = 6
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A Llama of 3.3 M parameters, its base training and its three finetunings: 80 s on two idle cores.

    `length` is a window in tokens, `<|begin|>` included; `text_limit` caps each text in characters; `judges` is how
    many windows of unseen text measure a loss.
    """

    hidden: int = 256
    intermediate: int = 688
    layers: int = 4
    heads: int = 4
    length: int = 192
    text_limit: int = 2_000_000
    judges: int = 32
    lora_rank: int = 8
    lora_alpha: int = 16
    base: Course = Course(steps=255, peak_rate=1.2e-3, weight_decay=0.1)
    # As many steps for each finetune: the LoRA and the full finetune then differ in nothing but the method.
    # A LoRA wants the higher rate, as everywhere.
    lora: Course = Course(steps=90, peak_rate=3e-3)
    full: Course = Course(steps=90, peak_rate=1e-3)
    other: Course = Course(steps=90, peak_rate=1e-3)
