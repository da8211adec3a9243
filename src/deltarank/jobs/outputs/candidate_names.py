"""The names of the candidates, as results, plans and messages show them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, count

from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import YARDSTICKS
from deltarank.results import FINETUNE, FINETUNE_AGAIN, CandidateKind, is_hub_url, parse_hub_address

WHOLE_DELTA = "whole delta"
BASE = "base"
ANY_RANK = "any rank"

_RANK, _TRUNCATION = "rank ", "truncation alone at rank "

_RESERVED = frozenset({FINETUNE, FINETUNE_AGAIN, WHOLE_DELTA, BASE, ANY_RANK, *YARDSTICKS})


def candidate_kinds(
    options: OutputsOptions, truncated_rank: int | None, taken: Collection[str] = ()
) -> tuple[tuple[str, CandidateKind], ...]:
    """The name and the kind of each candidate, in the order in which they are measured.

    Args:
        truncated_rank: that of the candidate of truncation alone; None: there is none.
        taken: the names of candidates that were measured before: all of `options` that have these names were, except
            for adapters and models, which get other names.
    """
    names: dict[CandidateKind, Sequence[str]] = {
        CandidateKind.CONTROL: (FINETUNE_AGAIN, WHOLE_DELTA),
        CandidateKind.BASE: (BASE,),
        CandidateKind.RANK: (*map(rank_name, options.ranks), ANY_RANK),
        CandidateKind.TRUNCATION: () if truncated_rank is None else (truncation_name(truncated_rank),),
        CandidateKind.ADAPTER: adapter_names(options, taken),
        CandidateKind.MODEL: model_names(options, taken),
        CandidateKind.YARDSTICK: options.yardsticks,
    }
    return tuple((name, kind) for kind in names for name in names[kind] if name not in taken)


def answers_prompts(name: str, kind: CandidateKind, options: OutputsOptions) -> bool:
    """Whether this candidate answers the prompts. Of a quick measurement, only those do that one would serve."""
    left_out = options.quick and (kind is CandidateKind.YARDSTICK or name == ANY_RANK)
    return kind.answers_prompts and not left_out


def rank_name(rank: int) -> str:
    return f"{_RANK}{rank}"


def truncation_name(rank: int) -> str:
    return f"{_TRUNCATION}{rank}"


def adapter_names(options: OutputsOptions, taken: Collection[str] = ()) -> tuple[str, ...]:
    return tuple(_short_names(options.adapters, "adapter", taken))


def model_names(options: OutputsOptions, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Those of the other checkpoints. A name that an adapter has too gets "model" in front."""
    return tuple(_short_names(options.models, "model", {*taken, *adapter_names(options, taken)}))


def _short_names(refs: Sequence[str], kind: str, taken: Collection[str]) -> Iterator[str]:
    """The last part of each reference, or the whole where two share it. A reserved name gets its kind in front.

    So does a name that is taken; if that is taken too, the whole reference, then with a number.
    """
    last_parts = [_last_part(ref) for ref in refs]
    for ref, last in zip(refs, last_parts, strict=True):
        name = ref if last_parts.count(last) > 1 else last
        short = [] if _is_reserved(name) else [name]
        numbered = (f"{kind} {ref} ({number})" for number in count(2))
        choices = chain(short, (f"{kind} {name}", f"{kind} {ref}"), numbered)
        yield next(each for each in choices if each not in taken)


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or name.startswith((_RANK, _TRUNCATION))


def _last_part(ref: str) -> str:
    address = parse_hub_address(ref) if is_hub_url(ref) else None
    return (address.repo_id if address else ref).rstrip("/").rsplit("/", 1)[-1] or ref
