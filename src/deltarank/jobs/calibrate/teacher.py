"""The finetune as the teacher: its answers to prompts, and its predictions in the documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deltarank.divergence import Document, Tokenizer, prompts_that_fit, read_prompts
from deltarank.errors import JobError, UsageError
from deltarank.jobs.calibrate.texts import Record
from deltarank.models import AnyModel, PredictionStore, Predictor, Window, batch_windows, generate_answers
from deltarank.system import Default

_ANSWERS_AT_ONCE = 8
_TOKENS_AT_ONCE = 2048


def own_answers(model: AnyModel, tokenizer: Tokenizer, *, tokens: int, context: int, seed: int) -> list[Record]:
    """The finetune's answers to the built-in prompts, sampled at temperature 1: about `tokens` tokens.

    Answers to one prompt have one "group": the split keeps them together.

    Raises:
        UsageError: (slug "prompt-length") no prompt fits into the context.
    """
    limits = {"max_tokens": Default.MAX_TOKENS, "context": context}
    prompts = prompts_that_fit(read_prompts(None), tokenizer, **limits)
    if not prompts:
        raise UsageError(
            f"No built-in prompt fits, with an answer of {Default.MAX_TOKENS} tokens, into the context of {context:,}.",
            cure="Calibrate on a text: --calibrate FILE.",
            slug="prompt-length",
        )
    samples = max(1, math.ceil(tokens / (len(prompts) * Default.MAX_TOKENS)))
    answers = generate_answers(model, tokenizer, prompts, samples=samples, seed=seed, batch=_ANSWERS_AT_ONCE, **limits)
    return [
        {"messages": _conversation(prompts[answer.prompt_index], answer.text), "group": f"prompt {answer.prompt_index}"}
        for answer in answers
        if answer.text.strip()
    ]


def _conversation(prompt: object, answer: str) -> list[dict[str, str]]:
    system, text = getattr(prompt, "system", None), getattr(prompt, "text", "")
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def store_predictions(
    model: AnyModel, documents: Sequence[Document], store: PredictionStore, device: torch.device
) -> list[Window]:
    """Stores the finetune's predictions in the documents, except for those that are stored already.

    Raises:
        JobError: (slug "outputs-not-finite") a prediction is NaN or infinite.
    """
    windows = [Window.from_mask(document.ids, document.scored) for document in documents]
    predictor = Predictor(model, device)
    for batch in batch_windows(windows, size=None, tokens=_TOKENS_AT_ONCE):
        if store.has_head and all(map(store.has, batch)):
            continue
        inputs = predictor.head_inputs([windows[i] for i in batch])
        for number, each in zip(batch, inputs, strict=True):
            _check_finite(each)
            store.save(number, each)
        if not store.has_head:
            store.save_head(predictor.head)
    return windows


def _check_finite(predictions: torch.Tensor) -> None:
    if not bool(predictions.isfinite().all()):
        raise JobError(
            "The finetune's predictions contain NaN or infinity, so nothing can be fitted to them.",
            cure="Run `deltarank compare` on the pair: it names tensors with such values.",
            slug="outputs-not-finite",
        )
