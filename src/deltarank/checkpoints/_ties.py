"""An output head that one checkpoint stores and the other takes from its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints._headers import TensorInfo
from deltarank.checkpoints._names import Place, Vocabulary
from deltarank.checkpoints._pieces import PLAIN

_PARTNER = {Vocabulary.HEAD: Vocabulary.INPUT, Vocabulary.INPUT: Vocabulary.HEAD}


def tied_partner(
    info: TensorInfo,
    role: Vocabulary | None,
    *,
    other: Mapping[str, TensorInfo],
    places: Mapping[str, Place],
    config: Mapping[str, Any],
) -> TensorInfo | None:
    """What stands in for a head (or embedding) that the other checkpoint does not store; None if nothing does.

    `other`, `places` and `config` are of the checkpoint that lacks it. A configuration that denies the tie is
    believed; where it says nothing, the one table that has the same columns is the partner.
    """
    if role not in _PARTNER or len(info.shape) != 2 or _says_tied(config) is False:
        return None
    vocabulary = [other[name] for name, place in places.items() if place.vocabulary in _PARTNER]
    same_role = [t for t in vocabulary if places[t.name].vocabulary is role]
    partners = [t for t in vocabulary if places[t.name].vocabulary is _PARTNER[role] and _fits(t, info)]
    return partners[0] if len(partners) == 1 and not same_role else None


def _fits(partner: TensorInfo, info: TensorInfo) -> bool:
    return len(partner.shape) == 2 and partner.shape[1] == info.shape[1] and partner.dtype in PLAIN


def _says_tied(config: Mapping[str, Any]) -> bool | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None
