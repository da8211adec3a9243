"""How large the steps of a calibration are, which documents each reads, and after which of them it looks.

A step is proportional to the root mean square of each factor, and to sqrt(KLD of plain / KLD of the base): a KL
divergence is quadratic near its minimum, so that is the distance that is left. A start that is almost exact is moved
little.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

TOKENS_PER_STEP = 1024
STEP_SIZE = 0.16
"""Of a factor's root mean square, where plain extraction is as far from the finetune as the base."""

LARGEST_STEP = 0.08

EXACT = 1e-8
"""Nats per token. Rounding to float32 alone makes about 1e-12, and more in a deep model; there is nothing to fit."""

WARM_UP = 4
LAST_RATE = 0.1
"""Of the first rate, at the end."""

LOOKS = (1 / 6, 1 / 2, 1)
"""After which shares of the steps the documents that choose are scored. A look takes as long as several steps."""

SLOWER = 0.5
"""Of the rate, after a look that found nothing nearer than before."""


def step_size(plain: float, base: float) -> float:
    """The first step, as a share of a factor's root mean square. 0 where plain extraction is exact, up to rounding."""
    share = math.sqrt(plain / base) if plain > EXACT and base > 0 else 0.0
    return min(STEP_SIZE * share, LARGEST_STEP)


def is_time_to_look(step: int, steps: int) -> bool:
    return step in {math.ceil(share * steps) for share in LOOKS}


def rate(step: int, steps: int) -> float:
    """Of the first rate: linear warm-up, then half a cosine down to LAST_RATE (Loshchilov and Hutter 2017)."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, step / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def batches_of_steps(lengths: Mapping[int, int], steps: int, seed: int) -> list[list[int]]:
    """The documents of every step: all in random order, then all again, TOKENS_PER_STEP at a time.

    Args:
        lengths: of each document, in tokens.
    """
    order = random.Random(seed)
    batches: list[list[int]] = []
    waiting: list[int] = []
    while len(batches) < steps:
        batch: list[int] = []
        while sum(lengths[i] for i in batch) < TOKENS_PER_STEP and len(batch) < len(lengths):
            if not waiting:
                waiting = list(lengths)
                order.shuffle(waiting)
            batch.append(waiting.pop())
        batches.append(batch)
    return batches
