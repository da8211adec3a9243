"""An output head that one checkpoint stores and the other takes from its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.names import Place, Vocabulary
from deltarank.checkpoints.pieces import FLOAT_DTYPES

_PARTNER = {Vocabulary.HEAD: Vocabulary.INPUT, Vocabulary.INPUT: Vocabulary.HEAD}


class Tables:
    """The vocabulary of one checkpoint, ready to stand in for a half of it that is not stored."""

    def __init__(
        self, tensors: Mapping[str, TensorInfo], places: Mapping[str, Place], config: Mapping[str, Any]
    ) -> None:
        self._may_be_tied = _says_tied(config) is not False
        self._tables: dict[Vocabulary, list[TensorInfo]] = {}
        for name, place in places.items():
            if place.vocabulary is not None:
                self._tables.setdefault(place.vocabulary, []).append(tensors[name])

    def partner(self, info: TensorInfo, role: Vocabulary | None) -> TensorInfo | None:
        """What stands in for the head (or embedding) `info` of the other checkpoint; None if nothing does.

        It must be the only one of its kind, with as many columns. A configuration that denies the tie is believed.
        """
        if role not in _PARTNER or not self._may_be_tied or role in self._tables:
            return None
        partners = self._tables.get(_PARTNER[role], [])
        return partners[0] if len(partners) == 1 and _fits(partners[0], info) else None


def _fits(partner: TensorInfo, info: TensorInfo) -> bool:
    return (
        len(partner.shape) == len(info.shape) == 2
        and partner.shape[1] == info.shape[1]
        and partner.dtype in FLOAT_DTYPES
    )


def _says_tied(config: Mapping[str, Any]) -> bool | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None
