"""The training loop: random windows, AdamW, linear warm-up and cosine decay."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from deltarank.demo.model import BEGIN
from deltarank.demo.recipe import Course
from deltarank.demo.steps import OnStep


def train(model: nn.Module, tokens: Tensor, course: Course, *, length: int, seed: int, on_step: OnStep) -> float:
    """Train the parameters that require a gradient, in place; return the seconds it took.

    Args:
        model: returns an object with `.loss` for `input_ids` and `labels` of shape (batch, length).
        tokens: one row of token ids to draw windows from.
        seed: of the windows; the same seed draws the same windows in the same order.
        on_step: called after each step.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=course.peak_rate, betas=(0.9, 0.95), weight_decay=course.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, course.steps))
    model.train()
    for _ in range(course.steps):
        batch = draw(tokens, course.batch, length, generator)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(loss.item())
    return time.perf_counter() - started


def rate(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the peak: linear warm-up, then cosine decay to a tenth."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def draw(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows at random positions, shape (batch, length), each with `<|begin|>` before it."""
    starts = torch.randint(0, len(tokens) - length + 2, (batch,), generator=generator)
    return _windows(tokens, starts, length)


def _windows(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    places = starts[:, None] + torch.arange(length - 1)
    return torch.cat([torch.full((len(starts), 1), BEGIN), tokens[places]], dim=1)


@torch.no_grad()
def loss_on(model: nn.Module, tokens: Tensor, *, length: int, windows: int) -> float:
    """Mean negative log-likelihood in nats per byte, over windows spread evenly over `tokens`."""
    model.eval()
    starts = torch.linspace(0, len(tokens) - length + 1, windows).long()
    batches = torch.split(_windows(tokens, starts, length), 8)
    losses = [model(input_ids=b, labels=b, use_cache=False).loss.item() * len(b) for b in batches]
    return math.fsum(losses) / windows
