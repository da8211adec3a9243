"""What each endpoint can do, found by asking: which API, log-probabilities, seeds, and which parameters have an effect.

Two endpoints get the same prompts, so that the probe's answers also tell whether they count tokens alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from deltarank.errors import JobError
from deltarank.jobs.endpoints.asking import Asker
from deltarank.openai_api import (
    PATHS,
    Distribution,
    EndpointAnswer,
    EndpointRef,
    Exchange,
    Request,
    fresh_prompt,
    largest_probability,
    listing_logprobs,
    lists_repeat,
    make_request,
    read_answers,
    read_usage,
)
from deltarank.results import Capabilities, EndpointApi, PromptLogprobs, escape, shorten

SIDES = ("a", "b")
LONG = 16
MOST_LISTED, FEWER_LISTED = 20, 5
PURPOSE = "probe"

_SCRIPTS = "Grüße, 東京 — naïve façade; 3.14159 == pi, \t1,000,000 ₿ Ελλάδα"
"""Counts of its tokens differ between tokenizers that agree on English."""


@dataclass(frozen=True)
class _Features:
    """The parameters of a probe, by its key. Each gets a prompt of its own, but those that share a number."""

    key: str
    prompt: int
    max_tokens: int
    parameters: Mapping[str, Any]


class Probe:
    """Asks the questions, and reads the answers of one side."""

    def __init__(self, asker: Asker, refs: Mapping[str, EndpointRef], seed: int) -> None:
        self._asker = asker
        self._refs = refs
        self._seed = seed

    def find_api(self, wanted: EndpointApi | None) -> EndpointApi:
        """The API that all endpoints have: completions if possible.

        Raises:
            JobError: (slug "endpoint-not-found") one has none; (slug "no-common-api") each has another.
        """
        candidates = [wanted] if wanted else [EndpointApi.COMPLETIONS, EndpointApi.CHAT]
        answered: dict[str, EndpointApi] = {}
        refusals: dict[str, Exchange] = {}
        for api in candidates:
            requests = [self._request(side, api, _Features("plain", 0, 1, {}), required=True) for side in self._refs]
            found = dict(zip(self._refs, self._asker.ask_all(requests), strict=True))
            refusals |= {side: exchange for side, exchange in found.items() if exchange.is_refused}
            answered |= {side: api for side, exchange in found.items() if not exchange.is_refused}
            if not any(exchange.is_refused for exchange in found.values()):
                return api
        for side, exchange in refusals.items():
            if side not in answered:
                raise _not_found(side, self._refs[side], exchange, candidates)
        raise _no_common_api(answered)

    def ask(self, api: EndpointApi) -> dict[str, Capabilities]:
        """What each side can do."""
        self._asker.ask_all([self._request(side, api, each) for each in _features(api) for side in self._refs])
        for each in _prompt_features(api):  # one at a time: see PromptTokenLogprobs
            for side in self._refs:
                self._asker.ask(self._request(side, api, each))
        fewer = [side for side in self._refs if self._asker.asked[side, probe_key(api, "logprobs-1")].is_refused]
        self._asker.ask_all([self._request(side, api, each) for each in _fewer_logprobs(api) for side in fewer])
        return {side: self._read(side, api) for side in self._refs}

    def _request(self, side: str, api: EndpointApi, each: _Features, *, required: bool = False) -> Request:
        prompt = fresh_prompt(self._seed, PURPOSE, each.prompt, api)
        return make_request(
            side,
            probe_key(api, each.key),
            self._refs[side].model,
            api,
            f"{prompt} {_SCRIPTS}" if each.key == "scripts" else prompt,
            max_tokens=each.max_tokens,
            is_optional=not required,
            **each.parameters,
        )

    def _read(self, side: str, api: EndpointApi) -> Capabilities:
        answers = _AnswersOf(self._asker, side, api)
        plain, listed = answers.exchange("plain"), answers.listed()
        notes = [*_notes_on_lists(answers)]
        is_faked = bool(notes)
        return Capabilities(
            api=api,
            top_logprobs=0 if is_faked else listed,
            certainty=None if is_faked else answers.certainty(),
            prompt_logprobs=None if is_faked else answers.prompt_logprobs(),
            token_ids=any(each.has_token_ids for each in answers.of(*_LISTS, *_FEWER_LISTS)),
            seed=answers.seed(),
            n=len(answers.of("n")) == 2,
            greedy_repeats=answers.repeats("greedy-1", "greedy-2"),
            prompt_tokens=read_usage(plain.payload or {}).prompt_tokens is not None,
            honoured=answers.honoured(),
            thinks=any(each.reasoning or each.text.lstrip().startswith("<think>") for each in answers.all()),
            notes=tuple(notes),
        )


class _AnswersOf:
    """The probe's answers of one side."""

    def __init__(self, asker: Asker, side: str, api: EndpointApi) -> None:
        self._asked = asker.asked
        self._side = side
        self._api = api

    def exchange(self, key: str) -> Exchange:
        return self._asked.get((self._side, probe_key(self._api, key)), Exchange({}, None))

    def of(self, *keys: str) -> list[EndpointAnswer]:
        return [answer for key in keys for answer in read_answers(self.exchange(key).payload or {})]

    def text(self, key: str) -> str | None:
        """None: no answer, or an empty one."""
        return next((answer.whole_text for answer in self.of(key)), None) or None

    def all(self) -> list[EndpointAnswer]:
        return self.of("plain", "greedy-1", "seed-1", "seed-2")

    def listed(self) -> int:
        """How many tokens are listed at the first position."""
        most = [(min(len(each), MOST_LISTED)) for each in self.lists(*_LISTS)]
        fewer = [(min(len(each), FEWER_LISTED)) for each in self.lists(*_FEWER_LISTS)]
        return max(most or fewer, default=0)

    def lists(self, *keys: str) -> list[Distribution]:
        return [each.positions[0] for each in self.of(*keys) if each.positions and each.positions[0]]

    def certainty(self) -> float | None:
        """The mean probability of the most probable first token; None after one prompt: it may be by chance."""
        lists = self.lists(*_LISTS, *_FEWER_LISTS)
        return mean(map(largest_probability, lists)) if len(lists) > 1 else None

    def prompt_logprobs(self) -> PromptLogprobs | None:
        if any(len(each.prompt_positions) > 4 for each in self.of("prompt-logprobs")):
            return PromptLogprobs.PROMPT_LOGPROBS
        echoed = self.of("echo")
        return PromptLogprobs.ECHO if any(len(each.positions) > 4 for each in echoed) else None

    def repeats(self, first: str, second: str) -> bool | None:
        one, other = self.text(first), self.text(second)
        return None if one is None or other is None else one == other

    def seed(self) -> bool | None:
        """Whether one seed gave the same text twice, and another seed another text."""
        same, other = self.repeats("seed-1", "seed-1-again"), self.repeats("seed-1", "seed-2")
        return None if same is None or (same and other) else same

    def honoured(self) -> dict[str, bool]:
        """Parameters whose effect can be seen."""
        greedy = self.text("greedy-1")
        sampled = [self.text(key) for key in ("seed-1", "seed-2", "sampled")]
        found = {}
        if greedy is not None and all(sampled):
            found["temperature"] = any(each != greedy for each in sampled)
            if found["temperature"] and self.text("top-p"):
                found["top_p"] = self.text("top-p") == greedy
        used = read_usage(self.exchange("plain").payload or {}).completion_tokens
        if used is not None:
            found["max_tokens"] = used <= 1
        return found


def _features(api: EndpointApi) -> Iterable[_Features]:
    """The questions of the second round. Number 1 is the prompt that shows what sampling parameters do."""
    yield from (_Features(f"logprobs-{i}", 1 + i, 1, listing_logprobs(api, MOST_LISTED)) for i in (1, 2, 3))
    yield from (_Features(f"greedy-{i}", 1, LONG, {"temperature": 0.0}) for i in (1, 2))
    yield from (_Features(key, 1, LONG, {"seed": seed}) for key, seed in _SEEDS)
    yield _Features("sampled", 1, LONG, {})
    yield _Features("top-p", 1, LONG, {"top_p": 1e-4})
    yield _Features("n", 6, 1, {"n": 2})
    yield _Features("scripts", 7, 1, {})


def _prompt_features(api: EndpointApi) -> Iterable[_Features]:
    """Whether log-probabilities of the prompt are given, in either form."""
    if api is EndpointApi.COMPLETIONS:
        yield _Features("echo", 8, 1, {"echo": True, **listing_logprobs(api, FEWER_LISTED)})
    yield _Features("prompt-logprobs", 5, 1, {"prompt_logprobs": FEWER_LISTED})


_LISTS, _FEWER_LISTS = (tuple(f"{name}-{i}" for i in (1, 2, 3)) for name in ("logprobs", "fewer"))
"""Three each: llama.cpp lists nothing where the sampled token is a part of a character."""

_SEEDS = (("seed-1", 11), ("seed-1-again", 11), ("seed-2", 12))


def _fewer_logprobs(api: EndpointApi) -> Sequence[_Features]:
    return [_Features(f"fewer-{i}", 1 + i, 1, listing_logprobs(api, FEWER_LISTED)) for i in (1, 2, 3)]


def _notes_on_lists(answers: _AnswersOf) -> Iterable[str]:
    """Log-probabilities that cannot be those of a model: the same list after two prompts."""
    if lists_repeat(answers.lists(*_LISTS) or answers.lists(*_FEWER_LISTS)):
        yield "its log-probabilities are the same after different prompts, and are not used"


def probe_key(api: EndpointApi, key: str) -> str:
    return f"{PURPOSE}:{api.value}:{key}"


def _no_common_api(answered: Mapping[str, EndpointApi]) -> JobError:
    each = " and ".join(f"{side.upper()} only at {PATHS[answered[side]]}" for side in sorted(answered))
    return JobError(
        f"The endpoints have no API in common: {each}.",
        cure="Compare endpoints that have the same API, or serve the weights yourself, with a server that has both.",
        slug="no-common-api",
    )


def _not_found(side: str, ref: EndpointRef, exchange: Exchange, tried: Sequence[EndpointApi]) -> JobError:
    status, reason = exchange.refused or (0, "")
    where = " or ".join(PATHS[api] for api in tried)
    said = f": {shorten(escape(reason), most=160)}" if reason else ""
    return JobError(
        f"Endpoint {side.upper()} ({escape(ref.host)}) does not answer for model '{escape(ref.model)}' at "
        f"{where} (HTTP {status}){said}",
        cure="Check the name of the model, which GET /models lists, and the address, which usually ends in /v1. "
        "--chat and --completions choose the API.",
        slug="endpoint-not-found",
    )
