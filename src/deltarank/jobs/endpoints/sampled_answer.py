"""A sampled answer as tokens of a known tokenizer, and what the endpoint listed at each of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.divergence import encode_messages, encode_text
from deltarank.errors import JobError
from deltarank.models import ServedTokens
from deltarank.openai_api import Distribution, EndpointAnswer, Exchange, read_answers, read_usage

_FEWEST_PIECES = 4
"""Listed tokens of an answer by which a tokenizer is told."""

_PART = "\ufffd"
"""Of a character. At the end of a text, the text was cut off; elsewhere, nobody knows which tokens it stands for."""


@dataclass(frozen=True)
class SampledAnswer:
    """What was sampled after a prompt.

    has_ended   whether the model then ended the text, of which the probability counts, too
    lists       the listed log-probabilities at each token; empty if there are none
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    has_ended: bool
    lists: tuple[Distribution, ...] = ()

    @property
    def steps(self) -> int:
        """Tokens of which the probability counts."""
        return len(self.tokens) + self.has_ended


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers, by the finetune's tokenizer and chat template.

    ends     the ids of the tokens that end a text
    shift    1 or -1 if the endpoint has a BOS token more or less
    """

    tokens: ServedTokens
    ends: Collection[int]
    shift: int = 0

    def prompt_ids(self, request: Mapping[str, Any]) -> list[int]:
        """Of a request's prompt or messages.

        Raises:
            JobError: (slug "chat-template") the template refuses the messages.
        """
        messages = request.get("messages")
        if isinstance(messages, list):
            pairs = [(str(each.get("role")), str(each.get("content"))) for each in messages if isinstance(each, dict)]
            return encode_messages(self.tokens.tokenizer, pairs, add_generation_prompt=True)
        return self.tokens.prompt_ids(str(request.get("prompt", "")), self.shift)

    def read(self, exchange: Exchange) -> SampledAnswer | None:
        """None: it is empty, has reasoning (which templates put elsewhere), or its tokens cannot be known."""
        answer = next(iter(read_answers(exchange.payload or {})), None)
        if answer is None or answer.reasoning:
            return None
        prompt = self.prompt_ids(exchange.request)
        ids = self._listed_ids(answer)
        lists = answer.positions if ids is not None else ()
        if ids is None:
            ids = self._ids_of_text(exchange, answer, prompt)
        if not ids or not prompt:
            return None
        has_ended = bool(answer.has_ended and self.ends) and not (lists == () and answer.text.endswith(_PART))
        if ids[-1] in self.ends:
            ids, has_ended = ids[:-1], True
        return SampledAnswer(tuple(prompt), tuple(ids), has_ended, lists[: len(ids)]) if ids else None

    def _listed_ids(self, answer: EndpointAnswer) -> list[int] | None:
        """By the ids that the endpoint gives, or the texts of the tokens; None where a text has no id, or several.

        Raises:
            JobError: (slug "endpoint-tokenizer-differs") most of the texts that make up the answer have none.
        """
        if answer.token_ids:
            return list(answer.token_ids)
        found = [self.tokens.ids_by_text.get(text, ()) for text in answer.tokens]
        unknown = sum(not each for each in found)
        if len(found) >= _FEWEST_PIECES and 2 * unknown > len(found) and "".join(answer.tokens) == answer.text:
            raise tokenizer_differs(
                f"{unknown} of the {len(found)} tokens that it lists for an answer are no tokens of it"
            )
        return [each[0] for each in found] if found and all(len(each) == 1 for each in found) else None

    def _ids_of_text(self, exchange: Exchange, answer: EndpointAnswer, prompt: list[int]) -> list[int] | None:
        """Those that the tokenizer makes of the text; None if they are others for certain, or another number."""
        text = answer.text.rstrip(_PART)
        if _PART in text:
            return None
        is_whole = text == answer.text
        ids = self._after_prompt(str(exchange.request.get("prompt", "")), text, prompt)
        counted = read_usage(exchange.payload or {}).completion_tokens
        if ids is None or counted is None or not is_whole:
            return ids
        return ids if counted in (len(ids), len(ids) + bool(answer.has_ended)) else None

    def _after_prompt(self, shown: str, text: str, prompt: list[int]) -> list[int] | None:
        """None where a token spans the end of the prompt and the beginning of the answer."""
        if not shown:
            return encode_text(self.tokens.tokenizer, text)
        both = self.tokens.prompt_ids(shown + text, self.shift)
        return both[len(prompt) :] if both[: len(prompt)] == prompt else None


def tokenizer_differs(reason: str) -> JobError:
    return JobError(
        f"The endpoint's tokenizer is not that of the weights: {reason}.",
        cure="Check that --weights names the base and the finetune that the endpoint may serve. Other weights than "
        "these, served under another tokenizer, need their own --weights.",
        slug="endpoint-tokenizer-differs",
    )
