"""What every test of two endpoints has: what it asks for a prompt, and how the answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.openai_api import EndpointAnswer
from deltarank.results import Capabilities, EndpointApi, EndpointTestName

Answers = Sequence[EndpointAnswer]


class PairTest(ABC):
    """One test. Each endpoint answers each prompt `draws` times, several requests at a time unless `one_at_a_time`."""

    name: EndpointTestName
    draws = 2
    max_tokens = 1
    one_at_a_time = False

    def __init__(self, options: EndpointsOptions, capabilities: Mapping[str, Capabilities]) -> None:
        self.options = options
        self.capabilities = capabilities
        self.design = self._design()

    @staticmethod
    @abstractmethod
    def missing(each: Capabilities) -> str | None:
        """Why an endpoint does not allow the test, as a clause; None if it does."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Of the requests, beside the prompt and max_tokens."""

    @abstractmethod
    def score(self, a: Answers, b: Answers, tokens: int) -> PromptScore | None:
        """None: the answers cannot be scored, whoever gave them."""

    @abstractmethod
    def _design(self) -> Design: ...

    def effect(self, scores: Sequence[PromptScore]) -> float | None:
        """Nats per token that A and B are apart at least."""
        return None

    def permutation_p(self, scores: Sequence[PromptScore]) -> float | None:
        """Of the mean distance, with the labels permuted within each prompt; None: labels are not permuted."""
        return None

    @property
    def listed(self) -> int:
        """How many tokens both list."""
        return min(each.top_logprobs for each in self.capabilities.values())

    @property
    def api(self) -> EndpointApi:
        return next(iter(self.capabilities.values())).api
