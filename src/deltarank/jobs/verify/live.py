"""`verify --live`: whether a running server applies the adapter.

A few fresh prompts are chosen on which base and base + adapter differ most. The server's first tokens there are
compared with those of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltarank.adapters import Applied, LoraAdapter
from deltarank.checkpoints import Checkpoint
from deltarank.divergence import kld_lower_bound
from deltarank.errors import JobError
from deltarank.jobs.verify.live_models import LocalModels, adapter_edits
from deltarank.jobs.verify.live_server import LiveServer
from deltarank.jobs.verify.live_verdict import (
    FEWEST_PROMPTS,
    LEAST_SEEN,
    Asked,
    GreedyTokens,
    ListedTokens,
    PromptCounts,
    check_text,
    judge_greedy,
    judge_lists,
)
from deltarank.openai_api import Distribution, lists_repeat
from deltarank.results import LiveCheck, LiveVerdict, escape, percent

LISTED_PROMPTS, GREEDY_PROMPTS = 5, 8
CLEAR_MARGIN = 0.2
"""Nats by which a greedy token must lead the other model's: other kernels and rounding decide nearer ties."""


def check_live(
    server: LiveServer,
    base: Checkpoint,
    adapter: LoraAdapter,
    applied: Applied,
    *,
    tolerance: float,
    device: torch.device,
) -> LiveCheck:
    """What `server` answers as: base + adapter, the base, or neither.

    Args:
        applied: what the adapter changes in the base.
        tolerance: nats per token within which it is near to one of them.

    Raises:
        AdapterError: PEFT would not load the adapter as it is.
        CheckpointError, UsageError, JobError: the base cannot be run, or the server gives no usable answers; slug
            "live-tokenizer-differs": the texts of its tokens are not those of the base's tokenizer.
    """
    models = LocalModels(base, adapter_edits(adapter, applied, device), device)
    counts = _prompt_counts(server, models)
    prompts = _fitting(server, models, counts)
    predictions = models.predict([models.tokens.prompt_ids(prompt, counts.shift) for prompt in prompts])
    candidates = [_Candidate(prompt, *rows) for prompt, *rows in zip(prompts, *predictions, strict=True)]
    lists = _ask_for_lists(server, candidates) if server.lists else []
    asked = Asked(server.ref, counts, tolerance)
    why = _unusable(server, [listed for _, listed in lists])
    if why is None:
        found = judge_lists(asked, _compare_lists(server, models, lists))
        if found.verdict in (LiveVerdict.ADAPTER, LiveVerdict.BASE):
            found = check_text(found, _compare_greedy(server, models, candidates))
    else:
        found = judge_greedy(asked, why, _compare_greedy(server, models, candidates))
    return replace(found, sentences=(*found.sentences, *_left_out(adapter, applied)))


def _fitting(server: LiveServer, models: LocalModels, counts: PromptCounts) -> list[str]:
    """The server's prompts, cut to as many tokens as it has accepted and as the base takes; equal ones once."""
    most = min(counts.ours, models.context - 2)  # a BOS token, and the token of the answer
    return list(dict.fromkeys(_cut(each, most, models) for each in server.prompts))


def _cut(prompt: str, most: int, models: LocalModels) -> str:
    """By words, to at most so many tokens."""
    while len(models.tokens.prompt_ids(prompt)) > most and " " in prompt:
        prompt = prompt.rsplit(" ", 1)[0]
    return prompt


def _left_out(adapter: LoraAdapter, applied: Applied) -> Iterator[str]:
    """What the local base + adapter lacks."""
    for note in applied.left_out_biases(adapter):
        yield f"Not exact: {note}."


@dataclass(frozen=True)
class _Candidate:
    """A prompt, and all log-probabilities after it, (vocabulary,)."""

    prompt: str
    base: Tensor
    adapter: Tensor

    @property
    def apart(self) -> float:
        """The KL divergence in the direction in which it is smaller."""
        return min(_kld(self.base, self.adapter), _kld(self.adapter, self.base))

    def seen(self, listed: int) -> float:
        """The probability that a list of the most probable tokens shows: the smaller of both models'."""
        tokens = min(listed, len(self.base))
        return min(float(each.topk(tokens).values.exp().sum()) for each in (self.base, self.adapter))

    @property
    def greedy(self) -> tuple[int, int]:
        return int(self.base.argmax()), int(self.adapter.argmax())

    @property
    def margin(self) -> float:
        """By how much each model prefers its own greedy token to that of the other: the smaller of both."""
        base, adapter = self.greedy
        return float(min(self.base[base] - self.base[adapter], self.adapter[adapter] - self.adapter[base]))


def _kld(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).nan_to_num(0.0).sum())


def _prompt_counts(server: LiveServer, models: LocalModels) -> PromptCounts:
    """How the server's prompt differs from the tokenizer's in its number of tokens; a BOS token is reproduced."""
    ids, theirs = models.tokens.prompt_ids(server.first_prompt), server.first_prompt_tokens
    difference = 0 if theirs is None else theirs - len(ids)
    return PromptCounts(len(ids), theirs, models.tokens.bos_shift(ids, difference), server.is_shortened)


_Listed = Sequence[tuple[_Candidate, Distribution]]


def _ask_for_lists(server: LiveServer, candidates: Sequence[_Candidate]) -> _Listed:
    """After the prompts that differ most, of those after which lists of both models show most of the probability.

    A prompt for which the server lists nothing is left out.
    """
    found: list[tuple[_Candidate, Distribution]] = []
    for each in sorted(candidates, key=lambda each: (each.seen(server.listed) < LEAST_SEEN, -each.apart)):
        if len(found) == LISTED_PROMPTS or not server.has_requests_left:
            break
        if listed := server.first_token_list(each.prompt):
            found.append((each, listed))
    return found


def _unusable(server: LiveServer, lists: Sequence[Distribution]) -> str | None:
    """Why nothing can be said by these lists, in a sentence."""
    if not server.lists:
        return "The server lists no log-probabilities."
    if len(lists) < FEWEST_PROMPTS:
        return "The server lists log-probabilities too seldom."
    if lists_repeat(lists):
        return "The server's log-probabilities are the same after different prompts: they are made up, and not used."
    return None


def _compare_lists(server: LiveServer, models: LocalModels, lists: _Listed) -> list[ListedTokens]:
    unknown = math.fsum(_unknown_share(models, listed) for _, listed in lists) / len(lists)
    if unknown > 0.5:
        raise _tokenizer_differs(server, unknown)
    return [_listed_tokens(models, each, listed) for each, listed in lists]


def _listed_tokens(models: LocalModels, each: _Candidate, listed: Distribution) -> ListedTokens:
    base, adapter = (dict(models.tokens.on_list(row, listed)) for row in (each.base, each.adapter))
    along, length = _moments(listed, base, adapter)
    return ListedTokens(
        along=along,
        length=length,
        to_base=kld_lower_bound(listed, base),
        to_adapter=kld_lower_bound(listed, adapter),
        apart=min(kld_lower_bound(base, adapter), kld_lower_bound(adapter, base)),
        seen=min(1.0, math.fsum(map(math.exp, listed.values()))),
    )


def _moments(listed: Distribution, base: Distribution, adapter: Distribution) -> tuple[float, float]:
    """How far the server's log-probabilities have gone from the base's to the adapter's, as a fraction of two sums.

    With x = log p_adapter - log p_base and y = log p_server - log p_base of the listed tokens, weighted with the
    server's probabilities: the covariance of x and y, and the variance of x. Their ratio is 0 for the base and 1 for
    base + adapter.
    """
    texts = [text for text in listed if text in base and text in adapter]
    server, before, after = (
        torch.tensor([each[text] for text in texts], dtype=torch.float64) for each in (listed, base, adapter)
    )
    weights = torch.softmax(server, 0)
    centred = weights * (after - before - weights @ (after - before))
    return float(centred @ (server - before)), float(centred @ (after - before))


def _unknown_share(models: LocalModels, listed: Distribution) -> float:
    """The share of the listed probability that is on texts that no token of the base has."""
    mass = {text: math.exp(value) for text, value in listed.items()}
    unknown = math.fsum(value for text, value in mass.items() if text not in models.tokens.ids_by_text)
    return unknown / max(math.fsum(mass.values()), 1e-30)


def _tokenizer_differs(server: LiveServer, share: float) -> JobError:
    return JobError(
        f"The tokens that the endpoint of --live ({escape(server.ref.host)}) lists are not those of the base: "
        f"{percent(share)} of their probability is on texts that no token of the base has.",
        cure="Check that this model at this address is served from this base. Another tokenizer means another model.",
        slug="live-tokenizer-differs",
    )


def _compare_greedy(server: LiveServer, models: LocalModels, candidates: Sequence[_Candidate]) -> GreedyTokens:
    """On the prompts on which the greedy tokens differ by the largest margins."""
    texts = models.tokens.text_by_id
    hits = {"base": 0, "adapter": 0, "neither": 0, "empty": 0}
    for each in sorted(candidates, key=lambda each: -each.margin):
        base, adapter = (texts.get(number, "").strip() for number in each.greedy)
        is_clear = each.margin >= CLEAR_MARGIN and base != adapter and _is_text(base) and _is_text(adapter)
        if sum(hits.values()) == GREEDY_PROMPTS or not server.has_requests_left:
            break
        if is_clear and (answer := server.greedy_token(each.prompt)) is not None:
            given = answer.strip()
            whose = "base" if given == base else "adapter" if given == adapter else "neither"
            hits[whose if answer else "empty"] += 1
    return GreedyTokens(**hits, candidates=len(candidates))


def _is_text(token: str) -> bool:
    """Whether a server can write it: it is not empty, and no part of a character."""
    return bool(token) and not any("\udc80" <= letter <= "\udcff" for letter in token)
