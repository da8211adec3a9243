"""The options of `endpoints`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltarank.errors import UsageError
from deltarank.results import EndpointApi, EndpointTestName
from deltarank.system import Default


@dataclass(frozen=True)
class Caps:
    """How much a run may use, over all its processes. Prices are per million tokens, in any currency."""

    max_requests: int = Default.ENDPOINT_REQUESTS
    max_tokens: int = Default.ENDPOINT_TOKENS
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise UsageError(
                "--max-cost needs the prices of the tokens.",
                cure="Give --price-in and --price-out, per million tokens. Where A and B differ, give the higher ones.",
                slug="prices-missing",
            )
        for name in ("max_requests", "max_tokens", "max_cost", "price_in", "price_out"):
            value, least = getattr(self, name), 0 if name.startswith("price") else 1e-9
            if value is not None and not least <= value < float("inf"):
                option, wanted = "--" + name.replace("_", "-"), "above 0" if least else "of 0 or more"
                raise UsageError(
                    f"{option} is {value}; a number {wanted} was expected.",
                    cure=f"Give another number with {option}.",
                    slug="bad-number",
                )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """In the currency of the prices; None if they are not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True)
class EndpointsOptions:
    """What decides the requests and the verdict. A run is resumed only with equal ones.

    api              None: completions if both endpoints have it, else chat
    test             None: the cheapest that both endpoints allow
    tolerance        nats per token; smaller differences are also made by kernels, batches and rounding
    alpha            the largest probability of calling the same model different
    seed             of the prompts
    """

    seed: int
    api: EndpointApi | None = None
    test: EndpointTestName | None = None
    tolerance: float = Default.ENDPOINT_TOLERANCE
    alpha: float = Default.ENDPOINT_ALPHA

    def __post_init__(self) -> None:
        for name, highest in (("tolerance", 0.1), ("alpha", 0.5)):
            if not 0 < getattr(self, name) <= highest:
                raise UsageError(
                    f"--{name} is {getattr(self, name)}; a number above 0 and up to {highest} was expected.",
                    cure=f"Give another number with --{name}.",
                    slug="bad-number",
                )

    def to_plain(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "api": self.api.value if self.api else None,
            "test": self.test.value if self.test else None,
            "tolerance": self.tolerance,
            "alpha": self.alpha,
        }


def make_options(seed: int, api: str | None, test: str | None, tolerance: float, alpha: float) -> EndpointsOptions:
    """Of plain values. Raises UsageError, and ValueError if there is no such API or test."""
    return EndpointsOptions(
        seed, EndpointApi(api) if api else None, EndpointTestName(test) if test else None, tolerance, alpha
    )
