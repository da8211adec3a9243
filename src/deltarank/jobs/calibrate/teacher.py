"""The finetune as the teacher: its answers to prompts, and its predictions in the documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from deltarank.divergence import Document, Prompt, Tokenizer, prompts_that_fit, read_json_lines, read_prompts
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.jobs.calibrate.documents import write_records
from deltarank.jobs.calibrate.texts import Record
from deltarank.models import (
    AnyModel,
    ModelSkeleton,
    PredictionStore,
    Predictor,
    Window,
    batch_windows,
    generate_answers,
)
from deltarank.system import Default

FEWEST_ANSWERS, MOST_ANSWERS = 32, 64
"""Written together: each token reads all weights once for all of them."""

_CACHE_BYTES = 1 << 30
"""Of keys and values. Beyond it, no more than FEWEST_ANSWERS are written together."""

_TOKENS_AT_ONCE = 2048

_SAME = 0.01
"""Of the norm of an output: what rounding changes is far less, what an encoder changes far more."""


def answers_at_once(skeleton: ModelSkeleton) -> int:
    """How many answers, with prompts of their length, are written together."""
    of_an_answer = 4 * skeleton.cache_entries * 2 * Default.MAX_TOKENS
    return min(max(_CACHE_BYTES // max(of_an_answer, 1), FEWEST_ANSWERS), MOST_ANSWERS)


@dataclass(frozen=True)
class OwnAnswers:
    """The finetune's answers to the built-in prompts, sampled at temperature 1: about `tokens` tokens.

    Prompts are answered some at a time, and what was answered is stored at once, in a file of its own. Answers to one
    prompt have one "group": the split keeps them together.

    folder      for the files
    at_once     answers that are written together
    """

    folder: Path
    tokenizer: Tokenizer
    tokens: int
    context: int
    seed: int
    at_once: int

    def write(self, load: Callable[[], AnyModel], on_answered: Callable[[int], None]) -> None:
        """Answers those prompts that are not answered yet. Equal options give equal files, also after interruptions.

        Args:
            load: gives the finetune; called if there is anything left to answer.
            on_answered: called with how many prompts are answered.

        Raises:
            UsageError: (slug "prompt-length") no prompt fits into the context.
        """
        self.folder.mkdir(exist_ok=True)
        unanswered = [start for start in self._starts if not self._file(start).is_file()]
        model = load() if unanswered else None
        for start in unanswered:
            write_records(self._file(start), self._answers(model, start))
            on_answered(min(start + self._prompts_at_once, len(self._prompts)))

    def read(self) -> list[Record]:
        return [record for start in self._starts for _, record in read_json_lines(self._file(start))]

    def _answers(self, model: AnyModel, start: int) -> list[Record]:
        prompts = self._prompts[start : start + self._prompts_at_once]
        answers = generate_answers(
            model,
            self.tokenizer,
            prompts,
            samples=self._samples,
            seed=self.seed,
            max_tokens=Default.MAX_TOKENS,
            batch=self.at_once,
            context=self.context,
            first=start,
        )
        return [
            {
                "messages": _conversation(self._prompts[answer.prompt_index], answer.text),
                "group": f"prompt {answer.prompt_index}",
            }
            for answer in answers
            if answer.text.strip()
        ]

    @cached_property
    def _prompts(self) -> list[Prompt]:
        limits = {"max_tokens": Default.MAX_TOKENS, "context": self.context}
        prompts = prompts_that_fit(read_prompts(None), self.tokenizer, **limits)
        if not prompts:
            raise UsageError(
                f"No built-in prompt fits, with an answer of {Default.MAX_TOKENS} tokens, into the context of "
                f"{self.context:,}.",
                cure="Calibrate on a text: --calibrate FILE.",
                slug="prompt-length",
            )
        return prompts

    @property
    def _samples(self) -> int:
        """For each prompt."""
        return max(1, math.ceil(self.tokens / (len(self._prompts) * Default.MAX_TOKENS)))

    @property
    def _prompts_at_once(self) -> int:
        return max(1, self.at_once // self._samples)

    @property
    def _starts(self) -> range:
        return range(0, len(self._prompts), self._prompts_at_once)

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:04}.jsonl"


def _conversation(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]


def store_predictions(predictor: Predictor, documents: Sequence[Document], store: PredictionStore) -> list[Window]:
    """Stores the finetune's predictions in the documents, except for those that are stored already.

    Args:
        predictor: runs the finetune.

    Raises:
        JobError: (slug "outputs-not-finite") a prediction is NaN or infinite.
    """
    windows = [Window.from_mask(document.ids, document.scored) for document in documents]
    for batch in batch_windows(windows, size=None, tokens=_TOKENS_AT_ONCE):
        if store.has_head and all(map(store.has, batch)):
            continue
        inputs = predictor.head_inputs([windows[i] for i in batch])
        for number, each in zip(batch, inputs, strict=True):
            _check_finite(each)
            store.save(number, each)
        if not store.has_head:
            _check_finite(predictor.head.logits(inputs[0][:1]))
            store.save_head(predictor.head)
    return windows


def check_causal(predictor: Predictor, name: str) -> None:
    """Raises CheckpointError (slug "not-a-language-model") if a prediction depends on the tokens after it.

    transformers builds encoders (BERT) as language models, too.
    """
    one, other = predictor.head_inputs([Window((1, 2, 3, last), (0,)) for last in (4, 5)])
    if float((one - other).norm()) > _SAME * float(one.norm()):
        raise CheckpointError(
            f"{name!a} predicts no next token: its output at a token depends on the tokens after it.",
            cure="Leave out --calibrate: plain extraction runs no model.",
            slug="not-a-language-model",
        )


def _check_finite(predictions: torch.Tensor) -> None:
    if not bool(predictions.isfinite().all()):
        raise JobError(
            "The finetune's predictions contain NaN or infinity, so nothing can be fitted to them.",
            cure="Run `deltarank compare` on the pair: it names tensors with such values.",
            slug="outputs-not-finite",
        )
