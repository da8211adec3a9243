"""What the identification of one or two endpoints found, and the verdict on an endpoint that was asked alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from deltarank.results import (
    FINETUNE,
    Endpoint,
    EndpointVerdict,
    EndpointVerdictKind,
    Identification,
    escape,
)

OnRound = Callable[[str, Identification], None]
"""Called with the side and what is known of it, after each round of answers."""


@dataclass(frozen=True)
class Identified:
    """By side.

    problems   why sides cannot be identified, as clauses
    differs    those of them that read another prompt than the weights' tokenizer and template give
    stopped    of sides of which no answer came, why no more was asked, as clauses
    """

    identifications: Mapping[str, Identification] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    differs: frozenset[str] = frozenset()
    stopped: Mapping[str, str] = field(default_factory=dict)

    def sentences(self) -> Iterator[str]:
        """Of two endpoints."""
        for side in sorted({*self.identifications, *self.problems, *self.stopped}):
            if side in self.identifications:
                yield from self.identifications[side].sentences
            elif side in self.problems:
                yield f"What {side.upper()} serves cannot be identified: {self.problems[side]}."
            else:
                yield f"Not decided what {side.upper()} serves: {self.stopped[side]}."


def judge_one(endpoint: Endpoint, found: Identified, stopped: str | None) -> EndpointVerdict:
    """Whether it serves the finetune: "same" if it was identified as it, "different" if that is excluded."""
    host = endpoint.url.split("://", 1)[-1].removesuffix("/v1")
    name = f"{escape(endpoint.model)} at {escape(host)}"
    identification = found.identifications.get("a")
    if identification is not None:
        return EndpointVerdict(_kind(identification), identification.sentences)
    if (problem := found.problems.get("a")) is not None:
        differs = "a" in found.differs
        kind = EndpointVerdictKind.TEMPLATE_DIFFERS if differs else EndpointVerdictKind.UNUSABLE
        return EndpointVerdict(kind, (f"What {name} serves cannot be identified: {problem}.",))
    why = found.stopped.get("a") or stopped or "nothing was asked"
    return EndpointVerdict(EndpointVerdictKind.UNDECIDED, (f"Not decided what {name} serves: {why}.",))


def _kind(found: Identification) -> EndpointVerdictKind:
    if found.named(FINETUNE).excluded:
        return EndpointVerdictKind.DIFFERENT
    return EndpointVerdictKind.SAME if found.decided else EndpointVerdictKind.UNDECIDED
