"""The names of the candidates, as results, plans and messages show them."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import YARDSTICKS
from deltarank.results import FINETUNE, FINETUNE_AGAIN, CandidateKind, is_hub_url, parse_hub_address

WHOLE_DELTA = "whole delta"
BASE = "base"
ANY_RANK = "any rank"

_RANK, _TRUNCATION = "rank ", "truncation alone at rank "

_RESERVED = frozenset({FINETUNE, FINETUNE_AGAIN, WHOLE_DELTA, BASE, ANY_RANK, *YARDSTICKS})


def candidate_kinds(options: OutputsOptions, truncated_rank: int | None) -> tuple[tuple[str, CandidateKind], ...]:
    """The name and the kind of each candidate, in the order in which they are measured.

    Args:
        truncated_rank: that of the candidate of truncation alone; None: there is none.
    """
    names: dict[CandidateKind, Sequence[str]] = {
        CandidateKind.CONTROL: (FINETUNE_AGAIN, WHOLE_DELTA),
        CandidateKind.BASE: (BASE,),
        CandidateKind.RANK: (*map(rank_name, options.ranks), ANY_RANK),
        CandidateKind.TRUNCATION: () if truncated_rank is None else (truncation_name(truncated_rank),),
        CandidateKind.ADAPTER: adapter_names(options),
        CandidateKind.MODEL: model_names(options),
        CandidateKind.YARDSTICK: options.yardsticks,
    }
    return tuple((name, kind) for kind in names for name in names[kind])


def rank_name(rank: int) -> str:
    return f"{_RANK}{rank}"


def truncation_name(rank: int) -> str:
    return f"{_TRUNCATION}{rank}"


def adapter_names(options: OutputsOptions) -> tuple[str, ...]:
    return _short_names(options.adapters, "adapter")


def model_names(options: OutputsOptions) -> tuple[str, ...]:
    """Those of the other checkpoints. A name that an adapter has too gets "model" in front."""
    taken = adapter_names(options)
    return tuple(f"model {name}" if name in taken else name for name in _short_names(options.models, "model"))


def _short_names(refs: Sequence[str], kind: str) -> tuple[str, ...]:
    """The last part of each reference, or the whole where two share it. A reserved name gets its kind in front."""
    last_parts = [_last_part(ref) for ref in refs]
    names = [ref if last_parts.count(last) > 1 else last for ref, last in zip(refs, last_parts, strict=True)]
    return tuple(f"{kind} {name}" if _is_reserved(name) else name for name in names)


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or name.startswith((_RANK, _TRUNCATION))


def _last_part(ref: str) -> str:
    address = parse_hub_address(ref) if is_hub_url(ref) else None
    return (address.repo_id if address else ref).rstrip("/").rsplit("/", 1)[-1] or ref
