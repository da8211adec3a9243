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
from deltarank.jobs.verify.live_verdict import GreedyTokens, ListedTokens, PromptCounts, judge_greedy, judge_lists
from deltarank.openai_api import Distribution
from deltarank.results import LiveCheck, escape, percent

CANDIDATES = 32
"""Prompts that are predicted locally. The server gets those on which base and adapter differ most."""

LISTED_PROMPTS, GREEDY_PROMPTS = 5, 8
CLEAR_MARGIN = 0.2
"""Nats by which a greedy token must lead the other model's: other kernels and rounding decide nearer ties."""


def check_live(
    server: LiveServer, base: Checkpoint, adapter: LoraAdapter, applied: Applied, device: torch.device
) -> LiveCheck:
    """What `server` answers as: base + adapter, the base, or neither.

    Args:
        applied: what the adapter changes in the base.

    Raises:
        AdapterError: PEFT would not load the adapter as it is.
        CheckpointError, UsageError, JobError: the base cannot be run, or the server gives no usable answers; slug
            "live-tokenizer-differs": the texts of its tokens are not those of the base's tokenizer.
    """
    models = LocalModels(base, adapter_edits(adapter, applied, device), device)
    counts = _prompt_counts(server, models)
    prompts = [server.prompt(1 + number) for number in range(CANDIDATES)]
    predictions = models.predict([models.token_ids(prompt, counts.shift) for prompt in prompts])
    candidates = [_Candidate(prompt, *rows) for prompt, *rows in zip(prompts, *predictions, strict=True)]
    if server.lists:
        found = judge_lists(server.ref, _compare_lists(server, models, candidates), counts)
    else:
        found = judge_greedy(server.ref, _compare_greedy(server, models, candidates), counts)
    return replace(found, sentences=(*found.sentences, *_left_out(adapter, applied)))


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
    ids, theirs = models.token_ids(server.first_prompt), server.first_prompt_tokens
    difference = 0 if theirs is None else theirs - len(ids)
    has_bos = models.bos is not None and ids[:1] == [models.bos]
    explained = (difference == 1 and models.bos is not None and not has_bos) or (difference == -1 and has_bos)
    return PromptCounts(len(ids), theirs, difference if explained else 0)


def _compare_lists(server: LiveServer, models: LocalModels, candidates: Sequence[_Candidate]) -> list[ListedTokens]:
    """On the prompts that differ most. A prompt for which the server lists nothing is left out."""
    found: list[ListedTokens] = []
    unknown: list[float] = []
    for each in sorted(candidates, key=lambda each: -each.apart):
        if len(found) == LISTED_PROMPTS or not server.has_requests_left:
            break
        if listed := server.first_token_list(each.prompt):
            unknown.append(_unknown_share(models, listed))
            found.append(_listed_tokens(models, each, listed))
    if unknown and math.fsum(unknown) / len(unknown) > 0.5:
        raise _tokenizer_differs(server, math.fsum(unknown) / len(unknown))
    return found


def _listed_tokens(models: LocalModels, each: _Candidate, listed: Distribution) -> ListedTokens:
    base, adapter = (dict(_on_list(models, row, listed)) for row in (each.base, each.adapter))
    return ListedTokens(
        to_base=kld_lower_bound(listed, base),
        to_adapter=kld_lower_bound(listed, adapter),
        apart=min(kld_lower_bound(base, adapter), kld_lower_bound(adapter, base)),
        seen=min(1.0, math.fsum(map(math.exp, listed.values()))),
    )


def _on_list(models: LocalModels, row: Tensor, listed: Distribution) -> Iterator[tuple[str, float]]:
    """The log-probabilities of the tokens that the server lists."""
    for text in listed:
        ids = [number for number in models.ids_by_text.get(text, ()) if number < len(row)]
        if ids:
            yield text, max(float(torch.logsumexp(row[ids], 0)), -1e3)


def _unknown_share(models: LocalModels, listed: Distribution) -> float:
    """The share of the listed probability that is on texts that no token of the base has."""
    mass = {text: math.exp(value) for text, value in listed.items()}
    unknown = math.fsum(value for text, value in mass.items() if text not in models.ids_by_text)
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
    texts = models.text_by_id
    hits = {"base": 0, "adapter": 0, "neither": 0}
    asked = 0
    for each in sorted(candidates, key=lambda each: -each.margin):
        base, adapter = (texts.get(number, "").strip() for number in each.greedy)
        is_clear = each.margin >= CLEAR_MARGIN and base != adapter and _is_text(base) and _is_text(adapter)
        if asked == GREEDY_PROMPTS or not server.has_requests_left:
            break
        if is_clear:
            answer = server.greedy_token(each.prompt).strip()
            hits["base" if answer == base else "adapter" if answer == adapter else "neither"] += 1
            asked += 1
    return GreedyTokens(**hits, candidates=len(candidates))


def _is_text(token: str) -> bool:
    """Whether a server can write it: it is not empty, and no part of a character."""
    return bool(token) and not any("\udc80" <= letter <= "\udcff" for letter in token)
