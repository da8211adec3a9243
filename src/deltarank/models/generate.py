"""Answers sampled from a model at temperature 1, whole distribution: each from a seed of its own.

An answer depends on (seed, prompt's index, sample) and the model, not on what else is in its batch. Two models with the
same seed are given the same luck, so that equal models write the same and near ones begin alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from deltarank.divergence import Answer, AnyTokenizer, Document, Prompt
from deltarank.errors import UsageError

_Settings: Any = GenerationConfig  # its constructor is untyped


def own_document(answer: Answer) -> Document:
    """The answer after its prompt, its own tokens scored: the one that ends it too, for stopping is behaviour."""
    scored = (False,) * len(answer.prompt_ids) + (True,) * len(answer.ids)
    name = f"prompt {answer.prompt + 1}, answer {answer.sample + 1}"
    return Document(name, (*answer.prompt_ids, *answer.ids), scored)


def fitting(prompts: Sequence[Prompt], tokenizer: AnyTokenizer, *, max_tokens: int, context: int) -> list[Prompt]:
    """Those that leave room for an answer of so many tokens.

    Raises:
        JobError: the chat template refuses a prompt.
    """
    return [each for each in prompts if 0 < len(each.ids(tokenizer)) <= context - max_tokens]


def check_room(prompts: Sequence[Prompt], tokenizer: AnyTokenizer, *, max_tokens: int, context: int) -> None:
    """Before anything heavy is done.

    Raises:
        UsageError: a prompt leaves no room for an answer.
        JobError: the chat template refuses a prompt.
    """
    for index, prompt in enumerate(prompts):
        _check_room(index, len(prompt.ids(tokenizer)), max_tokens, context)


def generate(
    model: Any,
    tokenizer: AnyTokenizer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    max_tokens: int,
    batch: int,
    context: int,
    first: int = 0,
) -> list[Answer]:
    """`samples` answers to each prompt, prompt after prompt.

    The model's own sampling settings (temperature, top-p, repetition penalty) are set aside: only where every token is
    drawn from the whole distribution do the KLDs of a text's tokens add up to the text's.

    Args:
        max_tokens: an answer is cut there.
        batch: answers that are written at once.
        context: the longest text that the model takes.
        first: the index of `prompts[0]`, where they are part of a longer list.

    Raises:
        UsageError: a prompt leaves no room for an answer.
        JobError: the chat template refuses a prompt.
    """
    asked = [prompt.ids(tokenizer) for prompt in prompts]
    for index, ids in enumerate(asked, start=first):
        _check_room(index, len(ids), max_tokens, context)
    jobs = [(index, sample) for index in range(len(asked)) for sample in range(samples)]
    written: list[list[int]] = []
    with _nothing_but_ends(model, tokenizer) as ends:
        for start in range(0, len(jobs), batch):
            group = jobs[start : start + batch]
            luck = [np.random.default_rng([seed, first + index, sample]).random(max_tokens) for index, sample in group]
            written += _continued(model, [asked[index] for index, _ in group], np.stack(luck), ends)
    return [
        Answer(first + index, sample, tuple(ids), _text(tokenizer, ids), tuple(asked[index]))
        for (index, sample), ids in zip(jobs, written, strict=True)
    ]


def _check_room(index: int, length: int, max_tokens: int, context: int) -> None:
    if length == 0 or length + max_tokens > context:
        what = f"{length:,} tokens, which with {max_tokens:,} to write are more than the model's {context:,}"
        raise UsageError(
            f"prompt {index + 1} has {what if length else 'no token'}.",
            cure="Shorten the prompt or --max-tokens." if length else "Take the prompt out.",
            slug="prompt-length",
        )


def _text(tokenizer: AnyTokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@contextmanager
def _nothing_but_ends(model: Any, tokenizer: AnyTokenizer) -> Iterator[list[int]]:
    """The model's generation settings reduced to the tokens that end an answer, which are given."""
    kept = model.generation_config
    found = kept.eos_token_id
    ends = {*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None}
    model.generation_config = _Settings()
    try:
        yield sorted(ends)
    finally:
        model.generation_config = kept


@torch.no_grad()
def _continued(model: Any, prompts: Sequence[Sequence[int]], luck: Any, ends: Sequence[int]) -> list[list[int]]:
    """What the model writes after each, up to and with the first end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    config = _Settings(do_sample=False, max_new_tokens=luck.shape[1], eos_token_id=list(ends) or None, pad_token_id=0)
    place = _place(model)
    out = model.generate(
        ids.to(place),
        attention_mask=mask.to(place),
        generation_config=config,
        logits_processor=[_Draw(torch.from_numpy(luck), longest)],
    )
    return [_up_to_end(row, ends) for row in out[:, longest:].tolist()]


def _place(model: Any) -> torch.device:
    """Where the model computes: one whose weights are streamed holds none, and accelerate's hooks know."""
    if model.device.type != "meta":
        return torch.device(model.device)
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    places = (place for hook in hooks if (place := getattr(hook, "execution_device", None)) is not None)
    return torch.device(next(places, "cpu"))


def _up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    at = next((at for at, each in enumerate(ids) if each in ends), len(ids) - 1)
    return ids[: at + 1]


class _Draw(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Draws the token itself, by inverting the cumulative distribution at the row's luck, and leaves no other to take.

    So transformers' greedy search samples, with its own cache for every architecture, and no generator is shared
    between rows.
    """

    def __init__(self, luck: Tensor, start: int) -> None:
        self.luck = luck
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = torch.full_like(scores, -torch.inf)
        # One row of float64 at a time, for a batch of them would be large; Apple's GPUs have no float64.
        place = "cpu" if scores.device.type == "mps" else scores.device
        for row, luck in enumerate(self.luck[:, input_ids.shape[1] - self.start].to(place)):
            reached = scores[row].to(place, torch.float64).softmax(-1).cumsum(-1)
            drawn = torch.searchsorted(reached, luck * reached[-1], right=True)
            out[row, drawn.clamp_(max=scores.shape[1] - 1)] = 0.0
        return out
