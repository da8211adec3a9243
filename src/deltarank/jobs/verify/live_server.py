"""A running server: the first token of its answer to a prompt, within a small number of requests."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from deltarank.errors import JobError
from deltarank.openai_api import (
    Distribution,
    EndpointClient,
    EndpointRef,
    RequestRefusedError,
    fresh_prompt,
    listing_logprobs,
    make_request,
    parse_endpoint,
    read_answers,
    read_usage,
    with_text,
)
from deltarank.results import EndpointApi, escape, shorten
from deltarank.system import Default

MOST_REQUESTS, PROMPTS = 20, 32
_LISTS = (20, 5, 0)
"""How many tokens are asked for: the first number that the server accepts."""

_CURES = {
    "endpoint-busy": "Wait, and repeat the same command.",
    "endpoint-too-slow": "Try again when the server has less to do, and check that it answers other clients.",
}
"""In place of cures that name options of `endpoints`."""


class LiveServer:
    """A server with /completions. Every prompt is fresh, and answered with one token.

    Making one sends the first request, so that a server that cannot be used is found before anything is computed.

    Attributes:
        prompts: fresh ones, none longer in bytes than the first prompt was before it was shortened.
        first_prompt, first_prompt_tokens: of that request, as the server counts them; None if it does not.
        is_shortened: whether the server refused the first prompt until it was shortened.
        lists: whether it lists log-probabilities.

    Raises:
        UsageError: `given` is not MODEL@URL, or the variable with the key is not set.
        JobError: it cannot be reached, refuses the key, or does not know the model.
    """

    def __init__(self, given: str, key_variable: str | None) -> None:
        self.ref: EndpointRef = parse_endpoint(given, key_variable, key_option="--key")
        self._seed = secrets.randbits(48)
        self._client = EndpointClient("of --live", self.ref, timeout=Default.ENDPOINT_TIMEOUT)
        self._listed, self._requests = 0, 0
        self.first_prompt, *prompts = sorted(
            map(self._prompt, range(PROMPTS + 1)), key=lambda each: -len(each.encode())
        )
        self.prompts: tuple[str, ...] = tuple(prompts)
        self.is_shortened = False
        try:
            self.lists, self.first_prompt_tokens = self._try_lists()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def _prompt(self, number: int) -> str:
        return fresh_prompt(self._seed, "live", number, EndpointApi.COMPLETIONS)

    @property
    def _words(self) -> int:
        return len(self.first_prompt.split(" "))

    @property
    def listed(self) -> int:
        """How many tokens are asked for at a position."""
        return self._listed

    @property
    def has_requests_left(self) -> bool:
        return self._requests < MOST_REQUESTS

    def first_token_list(self, prompt: str) -> Distribution:
        """The listed log-probabilities of the first token; empty if the server lists none, or refuses this prompt."""
        try:
            return _first_list(self._post(prompt, listing_logprobs(EndpointApi.COMPLETIONS, self._listed)))
        except RequestRefusedError:  # too long for its context, for example
            return {}

    def greedy_token(self, prompt: str) -> str | None:
        """The text of the first token at temperature 0; None if the server refuses this prompt."""
        try:
            answers = read_answers(self._post(prompt, {"temperature": 0.0}))
        except RequestRefusedError:
            return None
        return answers[0].text if answers else ""

    def _try_lists(self) -> tuple[bool, int | None]:
        """Whether it lists anything, and how many tokens it counts in the first prompt."""
        payload = self._first_accepted(_LISTS)
        while payload is None:
            payload = self._shortened()
        return self._lists_again(payload), read_usage(payload).prompt_tokens

    def _first_accepted(self, numbers: Sequence[int]) -> dict[str, Any] | None:
        """The answer to the first prompt with the first of these numbers of listed tokens that is not refused.

        Raises:
            JobError: the prompt has one word, and is refused whatever is listed; or the model is not known.
        """
        for self._listed in numbers:
            try:
                return self._post(self.first_prompt, listing_logprobs(EndpointApi.COMPLETIONS, self._listed))
            except RequestRefusedError as refusal:
                is_last = self._listed == 0 and " " not in self.first_prompt
                if refusal.status == 404 or is_last:
                    raise self._not_found(refusal) from None
        return None

    def _shortened(self) -> dict[str, Any] | None:
        """As `_first_accepted`, of half of the first prompt: it may be too long for the server's context."""
        self.first_prompt, self.is_shortened = _first_words(self.first_prompt, self._words // 2), True
        plain = self._first_accepted([0])
        if plain is None:
            return None
        listed = self._first_accepted(_LISTS[:-1])
        self._listed = self._listed if listed else 0
        return listed or plain

    def _lists_again(self, payload: dict[str, Any]) -> bool:
        """llama.cpp lists nothing where the sampled token is a part of a character: six prompts are tried."""
        if self._listed == 0:
            return False
        more = (_first_words(self._prompt(-number), self._words) for number in range(1, 6))
        return bool(_first_list(payload)) or any(map(self.first_token_list, more))

    def _post(self, prompt: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._requests += 1
        request = make_request("", "", self.ref.model, EndpointApi.COMPLETIONS, prompt, max_tokens=1, **parameters)
        try:
            return self._client.post(request.path, request.body).payload
        except JobError as error:
            raise JobError(error.message, cure=_CURES.get(error.slug, error.cure), slug=error.slug) from None

    def _not_found(self, refusal: RequestRefusedError) -> JobError:
        said = f": {shorten(escape(refusal.message), most=160)}" if refusal.message else ""
        return JobError(
            f"Endpoint of --live ({escape(self.ref.host)}) does not answer for model '{escape(self.ref.model)}' at "
            f"/completions (HTTP {refusal.status}){said}",
            cure="Check the name of the model, which GET /models lists, and the address, which usually ends in /v1.",
            slug="endpoint-not-found",
        )


def _first_words(prompt: str, most: int) -> str:
    return " ".join(prompt.split(" ")[:most])


def _first_list(payload: dict[str, Any]) -> Distribution:
    return with_text(next((each.positions[0] for each in read_answers(payload) if each.positions), {}))
