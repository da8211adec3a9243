"""Two endpoints as black boxes: what each can do, the tests between them, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from deltarank.results.codec import Count, Share, StoredResult
from deltarank.results.formatting import escape, figure
from deltarank.results.identification import Identification
from deltarank.results.json_schema import schema_of
from deltarank.results.logits import Interval
from deltarank.results.notebook_parts import sentences_html, table_html

FORMAT_VERSION = 1

Finite = Annotated[float, Meta(ge=-1e9, le=1e9)]
"""A difference, or the logarithm of an e-value."""


class EndpointVerdictKind(StrEnum):
    """SAME: closer than the tolerance. TEMPLATE_DIFFERS: the prompts that the models read differ, so nothing can be
    said about the weights. UNUSABLE: no test can be run.

    Of one endpoint, SAME says that it serves the finetune of the given weights, and DIFFERENT that it does not.
    """

    SAME = "same"
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    TEMPLATE_DIFFERS = "template_differs"
    UNUSABLE = "unusable"


class EndpointTestName(StrEnum):
    """The tests, the cheapest for the same evidence first."""

    PROMPT_LOGPROBS = "prompt_logprobs"
    FIRST_TOKEN_LOGPROBS = "first_token_logprobs"
    GREEDY_FIRST_TOKEN = "greedy_first_token"
    SAMPLES = "samples"


class EndpointApi(StrEnum):
    """Which address answers: /completions or /chat/completions."""

    COMPLETIONS = "completions"
    CHAT = "chat"


class PromptLogprobs(StrEnum):
    """Which request returns the log-probabilities of the prompt's own tokens."""

    ECHO = "echo"
    PROMPT_LOGPROBS = "prompt_logprobs"


@dataclass(frozen=True)
class Capabilities:
    """What an endpoint can do, as its answers to a few requests show. None: not known.

    top_logprobs     how many alternatives it lists for each token; 0: none
    prompt_logprobs  how it returns those of the prompt; None: it does not
    certainty        the mean probability of the most probable first token, over the probe's prompts
    greedy_repeats   whether temperature 0 gave the same text twice
    prompt_tokens    whether it counts the tokens of the prompt
    honoured         parameter -> whether it had an effect
    thinks           whether it writes reasoning before the answer
    """

    api: EndpointApi
    top_logprobs: Count = 0
    certainty: Share | None = None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: bool = False
    seed: bool | None = None
    n: bool = False
    greedy_repeats: bool | None = None
    prompt_tokens: bool = False
    honoured: Mapping[str, bool] = field(default_factory=dict)
    thinks: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """A model at an address. `capabilities` is None if it was not usable.

    requests, tokens     that the run sent to it; tokens of prompts and of answers
    reported_models      the names of the model that its answers gave
    """

    model: str
    url: str
    capabilities: Capabilities | None
    requests: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    reported_models: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}@{self.url}"


@dataclass(frozen=True)
class EvidencePoint:
    """After one more prompt: the tokens used so far, and the logarithms of both e-values.

    distance         between A and B on this prompt, in the unit of the test; `noise_a` and `noise_b` between two
                     answers of one endpoint
    """

    tokens: Count
    log_e_different: Finite
    log_e_same: Finite
    distance: Finite
    noise_a: Finite
    noise_b: Finite


@dataclass(frozen=True)
class ListedText:
    """Whether an endpoint draws its tokens from the probabilities that it lists: e-values that it does not.

    e_value_sharper      the tokens are more probable than draws would be, as with a lower temperature or top-p
    e_value_surprising   they are less probable, as if the lists were those of another model
    """

    e_value_sharper: float
    e_value_surprising: float


@dataclass(frozen=True)
class EndpointTest:
    """One test between A and B, with A against itself and B against itself in the same minutes.

    n                prompts
    statistic        the mean distance between A and B, in `unit`; `interval` at 95 %, bootstrapped over prompts
    p                min(1, 1 / the largest e-value so far that they differ): a p-value whenever one stops
    permutation_p    of the mean distance of sampled texts, with labels permuted within each prompt: (1 + b) / (1 + B).
                     A p-value only for a number of prompts that was fixed beforehand; a run stops when it is decided
    e_value          the evidence that A and B differ; `e_value_same` that the mean distance is less than `tolerance`
    effect           nats per token that A and B are apart at least; None if the test does not bound them
    control_aa       the mean distance between two answers of A; `control_bb` of B
    certainty        the mean probability of the most probable token, where lists were compared
    unseen           the mean share of probability on tokens that the two lists do not share
    text_a           whether the tokens of A fit its lists; `text_b` of B; None if the test does not see it
    decided          which e-value was reached: "different", "same" (less than `tolerance` apart), None: neither
    """

    name: EndpointTestName
    n: Count
    unit: str
    statistic: Finite
    interval: Interval
    tolerance: Finite
    p: Share
    e_value: float
    e_value_same: float
    effect: float | None
    control_aa: Finite
    control_bb: Finite
    unseen: Share | None = None
    certainty: Share | None = None
    permutation_p: Share | None = None
    text_a: ListedText | None = None
    text_b: ListedText | None = None
    decided: EndpointVerdictKind | None = None
    evidence: tuple[EvidencePoint, ...] = ()


@dataclass(frozen=True)
class AnswerPair:
    """A prompt, and what each endpoint answered to it; `b` is None if there is one endpoint."""

    prompt: str
    a: str
    b: str | None = None


@dataclass(frozen=True)
class EndpointVerdict:
    """The answer in words. `sentences[0]` is the headline."""

    kind: EndpointVerdictKind
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class EndpointsFound:
    """Everything that was found of two endpoints, or of one.

    b                None: A alone was asked, and is compared with the finetune of the weights that were given
    template         what the counts of prompt tokens say, in words
    identification   which known model A serves, and `identification_b` B; None: no weights were given, or it cannot be
                     said
    """

    a: Endpoint
    b: Endpoint | None
    template: tuple[str, ...]
    tests: tuple[EndpointTest, ...]
    verdict: EndpointVerdict
    answers: tuple[AnswerPair, ...] = ()
    identification: Identification | None = None
    identification_b: Identification | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self.a,) if self.b is None else (self.a, self.b)

    @property
    def identifications(self) -> dict[str, Identification]:
        """By the letter of the endpoint."""
        both = {"A": self.identification, "B": self.identification_b}
        return {letter: each for letter, each in both.items() if each is not None}


@dataclass(frozen=True)
class EndpointResults(StoredResult):
    """The results of one run of `endpoints`: `from_json(to_json())` gives an equal object."""

    description = "the results of `deltarank endpoints`"
    cure = "Give the folder that `deltarank endpoints -o` wrote, or run it again."
    file_name = "results.json"
    readable_format = FORMAT_VERSION

    endpoints: EndpointsFound
    settings: Mapping[str, Any]
    tool_version: str
    created: str
    notes: tuple[str, ...] = ()
    format_version: Count = FORMAT_VERSION

    @property
    def verdict(self) -> EndpointVerdict:
        return self.endpoints.verdict

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of results.json."""
        return schema_of(cls, title="results.json of deltarank endpoints", figures={})

    def __repr__(self) -> str:
        return f"<EndpointResults {self.verdict.kind.value}: {escape(self.verdict.sentences[0])}>"

    def _repr_html_(self) -> str:
        rows = [
            (test.name.value, str(test.n), figure(test.statistic), figure(test.e_value))
            for test in self.endpoints.tests
        ]
        return sentences_html(
            self.verdict.sentences, table_html(("test", "prompts", "distance", "e-value"), rows) if rows else ""
        )


def capability_rows(*endpoints: Endpoint) -> list[tuple[str, ...]]:
    """A table of what each endpoint can do and what was asked of it, under its headings."""
    parts = [_capabilities(each) for each in endpoints]
    names = dict.fromkeys(name for part in parts for name in part)
    return [("", *"AB"[: len(parts)]), *((name, *(part.get(name, "-") for part in parts)) for name in names)]


def _capabilities(endpoint: Endpoint) -> dict[str, str]:
    known = endpoint.capabilities
    found = {"model": escape(endpoint.model), "address": escape(endpoint.url)}
    if known is not None:
        found |= {
            "API": known.api.value,
            "log-probabilities": f"{known.top_logprobs} a token" if known.top_logprobs else "no",
            "of the prompt": known.prompt_logprobs.value if known.prompt_logprobs else "no",
            "token ids": _yes(known.token_ids),
            "seed": _yes(known.seed),
            "several answers (n)": _yes(known.n),
            "greedy twice the same": _yes(known.greedy_repeats),
            "counts prompt tokens": _yes(known.prompt_tokens),
            **{f"{name} has an effect": _yes(is_honoured) for name, is_honoured in known.honoured.items()},
            "reasons before answering": _yes(known.thinks),
        }
    tokens = f"{endpoint.prompt_tokens:,} + {endpoint.completion_tokens:,}"
    return found | {"requests": f"{endpoint.requests:,}", "tokens in + out": tokens}


def _yes(value: bool | None) -> str:
    return "not known" if value is None else "yes" if value else "no"
