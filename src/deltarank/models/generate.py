"""Answers sampled from a model at temperature 1, from the whole distribution, each with random numbers of its own.

An answer depends on the model and on (seed, index of the prompt, index of the sample), not on the rest of its batch.
Tokens are drawn by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): the next token is argmax(log p + g), with
Gumbel noise g for each position and each token. Models with the same seed get the same noise. Equal models therefore
write the same, and models whose distributions have the total variation distance TV draw different tokens with a
probability of at most 2 TV / (1 + TV), where the least possible is TV (Bavarian et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from deltarank.divergence import Answer, Prompt, Tokenizer, encode_prompts
from deltarank.models.predict import contiguous_head_inputs
from deltarank.models.skeleton import AnyModel

_GenerationConfig: Any = GenerationConfig  # untyped


def generate_answers(
    model: AnyModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    max_tokens: int,
    batch: int,
    context: int,
    first: int = 0,
) -> list[Answer]:
    """`samples` answers to each prompt, prompt by prompt.

    The model's own sampling settings (temperature, top-p, repetition penalty) are not used: the KLDs of a text's tokens
    add up to that of the text only if every token is drawn from the whole distribution.

    Args:
        max_tokens: the longest answer; it is cut off there.
        batch: how many answers are generated together.
        context: the longest text that the model takes.
        first: index of `prompts[0]`, if they are part of a longer list.

    Raises:
        UsageError: (slug "prompt-length") a prompt is empty, or too long for such an answer.
        JobError: (slug "chat-template") the chat template refuses a prompt.
    """
    encoded = encode_prompts(prompts, tokenizer, max_tokens=max_tokens, context=context, first=first)
    jobs = [(index, sample) for index in range(len(encoded)) for sample in range(samples)]
    generated: list[list[int]] = []
    eos_ids = _eos_ids(model, tokenizer)
    with _default_generation_config(model):
        for start in range(0, len(jobs), batch):
            group = jobs[start : start + batch]
            sampler = _GumbelMaxSampler([(seed, first + index, sample) for index, sample in group])
            generated += _continue(model, [encoded[index] for index, _ in group], sampler, max_tokens, eos_ids)
    return [
        Answer(first + index, sample, tuple(ids), _decode(tokenizer, ids), tuple(encoded[index]))
        for (index, sample), ids in zip(jobs, generated, strict=True)
    ]


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _eos_ids(model: AnyModel, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer."""
    ids = model.generation_config.eos_token_id
    return sorted({*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id} - {None})


@contextmanager
def _default_generation_config(model: AnyModel) -> Iterator[None]:
    """`generate` fills what its argument leaves open from the model's own settings: they are put aside meanwhile."""
    original = model.generation_config
    model.generation_config = _GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = original


@torch.no_grad()
def _continue(
    model: AnyModel,
    prompts: Sequence[Sequence[int]],
    sampler: _GumbelMaxSampler,
    max_tokens: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    """What the model writes after each prompt, up to and including the first end token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    device = _compute_device(model)
    with contiguous_head_inputs(model.get_output_embeddings()):
        output = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_GenerationConfig(
                do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(eos_ids) or None, pad_token_id=0
            ),
            logits_processor=[sampler],
        )
    return [_cut_at_end(row, eos_ids) for row in output[:, longest:].tolist()]


def _compute_device(model: AnyModel) -> torch.device:
    """A streamed model is on the meta device; accelerate's hooks know where it computes."""
    if model.device.type != "meta":
        return torch.device(model.device)
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None)
    return torch.device(next(devices, "cpu"))


def _cut_at_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    end = next((index for index, each in enumerate(ids) if each in eos_ids), len(ids) - 1)
    return ids[: end + 1]


class _GumbelMaxSampler(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Samples the next token by the Gumbel-max trick. It is called once for each new token.

    All other tokens get a logit of -inf. So transformers' greedy search samples, with its own cache for every
    architecture, and no random generator is shared between rows.

    Args:
        keys: of each row, (seed, index of the prompt, index of the sample).
    """

    def __init__(self, keys: Sequence[tuple[int, int, int]]) -> None:
        self.keys = keys
        self.position = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = torch.full_like(scores, -torch.inf)
        weights = (scores.float() - scores.amax(-1, keepdim=True).float()).exp_()
        for row, key in enumerate(self.keys):
            noise = _exponential_noise((*key, self.position), scores.shape[1]).to(scores.device)
            out[row, torch.argmax(weights[row] / noise)] = 0.0
        self.position += 1
        return out


def _exponential_noise(key: Sequence[int], tokens: int) -> Tensor:
    """(tokens,), standard exponential, in float32. That of a token does not depend on the size of the vocabulary.

    -log of it is Gumbel noise, so that argmax(log p + g) is the argmax of p / noise, without a logarithm of each.
    """
    return torch.from_numpy(np.random.default_rng(key).standard_exponential(tokens)).float()
