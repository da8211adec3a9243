"""The models that an endpoint may serve, run here: what each gives the tokens of an answer, and how far they are apart.

One model is in memory at a time. Each pass over the models scores all answers that are new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltarank.divergence import (
    TEMPERATURES,
    built_in_passages,
    encode_text,
    kld_lower_bound,
    log_probabilities_by_setting,
    tokens_needed,
)
from deltarank.jobs.endpoints.answer_rounds import MOST_TOKENS
from deltarank.jobs.endpoints.sampled_answer import SampledAnswer, tokenizer_differs
from deltarank.jobs.outputs import LoadedModel, ServedModels
from deltarank.models import Head, ServedTokens, Window, batch_windows, end_ids
from deltarank.openai_api import Distribution, with_text
from deltarank.results import FINETUNE, CandidateKind, ServedKind, figure, percent, size

FloatArray = NDArray[np.float64]

LISTED_PER_ANSWER = 16
"""Tokens of an answer at which lists are compared."""

_ROWS_AT_ONCE = 32
_KEPT_BYTES = 1 << 29
_MOST_KEPT = 256
_PASSAGES, _PASSAGE_TOKENS = 8, 64

_KINDS = {
    CandidateKind.BASE: ServedKind.BASE,
    CandidateKind.RANK: ServedKind.RANK,
    CandidateKind.ADAPTER: ServedKind.ADAPTER,
    CandidateKind.YARDSTICK: ServedKind.YARDSTICK,
}


@dataclass(frozen=True)
class AnswerScore:
    """What one model gives one answer.

    by_setting   the log-probability of each token under each setting of a sampler, (tokens, settings)
    klds         for each list, the lower bound of the KL divergence from it to the model at each of `TEMPERATURES`:
                 some servers list probabilities as they are sampled, others those of the model
    """

    by_setting: FloatArray
    klds: tuple[FloatArray, ...]


@dataclass
class Passing:
    """One pass over the models: the scores by model, and full predictions at some tokens, to compare the models.

    keep     how many predictions are kept of each model
    """

    keep: int
    scores: list[list[AnswerScore]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def klds(self) -> FloatArray:
        """From each model to each other in nats per token, (models, models)."""
        shared = min((each.shape[-1] for each in self.kept), default=0)
        rows = [each[:, :shared] for each in self.kept]
        return np.array([[_mean_kld(p, q) for q in rows] for p in rows])


def _mean_kld(p: Tensor, q: Tensor) -> float:
    return max(0.0, float((p.exp() * (p - q)).nan_to_num(0.0).sum(-1).mean()))


def neighbour(apart: FloatArray, i: int, alpha: float) -> tuple[int | None, float | None, float | None]:
    """The model that is hardest to tell from i, the KL divergence to it, and the tokens that telling them takes."""
    others = [j for j in range(len(apart)) if j != i]
    if not others:
        return None, None, None
    nearest = min(others, key=lambda j: float(apart[i, j]))
    kld = float(apart[i, nearest])
    return nearest, kld, tokens_needed(kld, alpha)


class KnownModels:
    """Scores answers under each of the models of `served`, which is open."""

    def __init__(self, served: ServedModels) -> None:
        self._served = served
        self.names = served.names
        self.tokens = ServedTokens(served.tokenizer)

    @property
    def context(self) -> int:
        """The longest text that all take, in tokens."""
        return self._served.models.context

    @property
    def commits(self) -> dict[str, str]:
        """Of the base and of the finetune, if they are models of the Hub."""
        both = {"base": self._served.models.base, "finetune": self._served.models.finetune}
        return {name: commit for name, each in both.items() if (commit := each.reference.revision) is not None}

    @cached_property
    def vocabulary(self) -> int:
        """Token ids below this are known to all."""
        models = self._served.models
        return min(models.base_skeleton.vocabulary, models.finetune_skeleton.vocabulary)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids of the tokens that end a text, by the tokenizer and both configurations."""
        models = self._served.models
        own = self.tokens.tokenizer.eos_token_id
        given = end_ids(models.base_skeleton) | end_ids(models.finetune_skeleton)
        return given | (frozenset() if own is None else {own})

    def kind(self, name: str) -> ServedKind:
        return ServedKind.FINETUNE if name == FINETUNE else _KINDS[self._served.kind(name)]

    def rank(self, name: str) -> int | None:
        return self._served.rank(name)

    def can_score(self, answer: SampledAnswer) -> bool:
        """Whether all models have its tokens."""
        return max((*answer.prompt, *answer.tokens)) < self.vocabulary

    @cached_property
    def klds_on_passages(self) -> FloatArray:
        """How far the models are apart on built-in texts, before anything is asked: (models, models)."""
        texts = built_in_passages()[:: max(1, len(built_in_passages()) // _PASSAGES)][:_PASSAGES]
        length = min(_PASSAGE_TOKENS, self.context)
        encoded = [encode_text(self.tokens.tokenizer, text)[:length] for text in texts]
        answers = [SampledAnswer(tuple(ids[:8]), tuple(ids[8:]), False) for ids in encoded if len(ids) > 8]
        return self.score([each for each in answers if self.can_score(each)], keep=True).klds()

    def mean_tokens(self, prompts: Sequence[str]) -> float:
        """Of these prompts, on average."""
        return mean(len(self.tokens.prompt_ids(each)) for each in prompts)

    def plan_lines(self, alpha: float, tolerance: float) -> list[str]:
        """How many tokens tell each candidate from the one that is hardest to tell from it, on built-in texts.

        Args:
            tolerance: nats per token up to which listed log-probabilities tell nothing.
        """
        memory = self._served.memory
        how = "streamed from its files" if memory.must_stream else f"about {size(memory.whole_model)} of memory"
        return [
            f"{len(self.names)} candidates, one in memory at a time ({how}).",
            "Tokens of sampled text that tell each from its nearest, ln(1/alpha) / KLD on built-in texts:",
            *(f"  {name}: {self._to_tell(i, alpha, tolerance)}" for i, name in enumerate(self.names)),
        ]

    def _to_tell(self, i: int, alpha: float, tolerance: float) -> str:
        nearest, kld, needed = neighbour(self.klds_on_passages, i, alpha)
        if nearest is None or needed is None:
            return "-"
        amount = f"about {figure(math.ceil(needed))} tokens" if math.isfinite(needed) else "no number of tokens"
        apart = f"{figure(kld)} nats per token apart{_untold(kld, needed, tolerance)}"
        return f"{amount} from {self.names[nearest]} ({apart})"

    def score(self, answers: Sequence[SampledAnswer], *, keep: bool = False) -> Passing:
        """One pass over the models.

        Args:
            keep: whether predictions are kept, to compare the models.

        Raises:
            JobError: (slug "endpoint-tokenizer-differs") the lists name tokens that the tokenizer does not have.
        """
        bytes_of_row = 4 * self._served.models.finetune_skeleton.vocabulary * len(self.names)
        passing = Passing(min(_MOST_KEPT, max(_KEPT_BYTES // bytes_of_row, 16)) if keep else 0)
        for name in self.names:
            with self._served.load(name) as model:
                scores: list[tuple[int, AnswerScore]] = []
                kept: list[Tensor] = []
                for number, rows, head in self._predictions(model, answers):
                    scores.append((number, self._score(answers[number], rows, head)))
                    missing = passing.keep - sum(len(each) for each in kept)
                    if missing > 0:
                        kept.append(torch.log_softmax(head.logits(rows[:missing]).float(), -1).cpu())
            passing.scores.append([score for _, score in sorted(scores, key=lambda each: each[0])])
            passing.kept += [torch.cat(kept)] if kept else []
        return passing

    def _predictions(self, model: LoadedModel, answers: Sequence[SampledAnswer]) -> Iterator[tuple[int, Tensor, Head]]:
        """For each answer its number, and the inputs of the output head at each step."""
        windows = [_window(each) for each in answers]
        for batch in batch_windows(windows, size=None, tokens=self._served.memory.tokens_at_once):
            inputs, head = model.predict([windows[i] for i in batch])
            for i, each in zip(batch, inputs, strict=True):
                yield i, each, head

    def _score(self, answer: SampledAnswer, rows: Tensor, head: Head) -> AnswerScore:
        parts, klds = [], []
        for first in range(0, len(answer.tokens), _ROWS_AT_ONCE):
            targets = torch.tensor(answer.tokens[first : first + _ROWS_AT_ONCE])
            logits = head.logits(rows[first : first + len(targets)])
            parts.append(log_probabilities_by_setting(logits, targets))
            listed = answer.lists[first : min(first + len(targets), LISTED_PER_ANSWER)]
            klds += [self._klds(each, row) for each, row in zip(listed, logits, strict=False) if each]
        if answer.has_ended:
            parts.append(self._end(head.logits(rows[-1:])))
        return AnswerScore(np.concatenate(parts), tuple(klds))

    def _end(self, logits: Tensor) -> FloatArray:
        """The log-probability that the text ends, by whichever token: (1, settings)."""
        ends = torch.tensor([each for each in sorted(self.ends) if each < logits.shape[-1]])
        found = log_probabilities_by_setting(logits.expand(len(ends), -1), ends)
        return np.logaddexp.reduce(found, axis=0, keepdims=True)

    def _klds(self, listed: Distribution, logits: Tensor) -> FloatArray:
        """At each of `TEMPERATURES`."""
        listed = with_text(listed)
        self._check_known(listed)
        rows = [torch.log_softmax(logits.double() / each, -1) for each in TEMPERATURES]
        return np.array([kld_lower_bound(listed, dict(self.tokens.on_list(row, listed))) for row in rows])

    def _check_known(self, listed: Distribution) -> None:
        mass: Mapping[str, float] = {text: math.exp(value) for text, value in listed.items()}
        unknown = math.fsum(value for text, value in mass.items() if text not in self.tokens.ids_by_text)
        if unknown > 0.5:
            raise tokenizer_differs(
                f"{percent(min(unknown, 1.0))} of the probability that it lists is on texts that are no token of it"
            )


def _untold(kld: float | None, needed: float, tolerance: float) -> str:
    """What this run will not tell apart, as the end of a sentence."""
    by_text, by_lists = needed > MOST_TOKENS, kld is not None and kld <= tolerance
    if by_text and by_lists:
        return ": will probably not be told apart"
    if by_text:
        return ": will probably not be told apart by text alone"
    return ": will probably not be told apart by lists" if by_lists else ""


def _window(answer: SampledAnswer) -> Window:
    """A row for each token of the answer, and for its end."""
    first = len(answer.prompt) - 1
    return Window((*answer.prompt, *answer.tokens), tuple(range(first, first + answer.steps)))
