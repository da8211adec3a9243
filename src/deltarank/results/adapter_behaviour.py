"""What `outputs` measured of an adapter, as its deltarank.json and its model card state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from deltarank.results.codec import Count
from deltarank.results.formatting import figure, percent
from deltarank.results.logits import Interval
from deltarank.results.outputs import CandidateKind, CandidateResult, Outputs


def kept_in_words(kept: Interval | None) -> str:
    """ "keeps 89 % of the finetune's behaviour (95 % interval 87 to 91 %)"; "" if it is not known."""
    if kept is None:
        return ""
    if kept.value < 0:
        return "is farther from the finetune than the base"
    ends = [percent(end) for end in (kept.low, kept.high) if end is not None]
    # not "over 99.9 to over 99.9 %"
    is_informative = len(ends) == 2 and not all(end.startswith("over") for end in ends)
    interval = f" (95 % interval {ends[0].removesuffix(' %')} to {ends[1]})" if is_informative else ""
    return f"keeps {percent(kept.value)} of the finetune's behaviour{interval}"


@dataclass(frozen=True)
class AdapterBehaviour:
    """The divergence of base + adapter from the finetune, in nats per token.

    text, own          the text that was scored, and whether it is the finetune's own answers
    tokens, documents  how much was scored
    kld                the mean KL divergence; `low` and `high` are its 95 % interval
    kept               1 - kld / the base's
    references         the divergence of the base and of the yardsticks, by name, the largest first
    server             the server as which the adapter was applied; None: PEFT
    """

    text: str
    own: bool
    tokens: Count
    documents: Count
    kld: float
    low: float | None = None
    high: float | None = None
    kept: Interval | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    server: str | None = None

    @classmethod
    def of(cls, outputs: Outputs, adapter: CandidateResult) -> Self | None:
        """On the main text of the outputs; None if the adapter was not scored on it."""
        text = outputs.main_text
        found = {on.text: on for on in adapter.logits}
        if text is None or (logits := found.get(text.name)) is None:
            return None
        compared = (CandidateKind.BASE, CandidateKind.YARDSTICK)
        others = [each for each in outputs.candidates if each.kind in compared]
        klds = {each.name: on.kld.mean for each in others for on in each.logits if on.text == text.name}
        return cls(
            text=text.name,
            own=text.own,
            tokens=logits.tokens,
            documents=logits.documents,
            kld=logits.kld.mean,
            low=logits.kld.low,
            high=logits.kld.high,
            kept=logits.kept,
            references=dict(sorted(klds.items(), key=lambda each: -each[1])),
            server=outputs.settings.get("server"),
        )

    @property
    def sentence(self) -> str:
        """ "keeps 95 % of the finetune's behaviour on the finetune's own answers: 0.03 nats per token from ..."."""
        on_text = "on the finetune's own answers" if self.own else f"on {self.text}"
        kept = kept_in_words(self.kept) or "was measured"
        others = "".join(f", {name} {figure(kld)}" for name, kld in self.references.items())
        return f"{kept} {on_text}: {figure(self.kld)} nats per token from the finetune{others}"
