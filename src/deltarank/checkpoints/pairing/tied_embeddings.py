"""An output head that one checkpoint stores and the other shares with its embedding, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.names import Location, VocabularyRole
from deltarank.checkpoints.pieces import FLOAT_DTYPES

_TIED_ROLE = {VocabularyRole.HEAD: VocabularyRole.INPUT, VocabularyRole.INPUT: VocabularyRole.HEAD}


class TiedEmbeddings:
    """The embedding and output head of one checkpoint, of which one may serve as both."""

    def __init__(
        self, tensors: Mapping[str, TensorInfo], locations: Mapping[str, Location], config: Mapping[str, Any]
    ) -> None:
        self._may_be_tied = _is_tied_by(config) is not False
        self._tensors: dict[VocabularyRole, list[TensorInfo]] = {}
        for name, location in locations.items():
            if location.vocabulary is not None:
                self._tensors.setdefault(location.vocabulary, []).append(tensors[name])

    def find_tied(self, info: TensorInfo, role: VocabularyRole | None) -> TensorInfo | None:
        """The tensor that serves as the counterpart of the other checkpoint's head (or embedding) `info`; None if none.

        It must be the only one of its role, and have as many columns. A configuration that denies the tie is believed.
        """
        if role not in _TIED_ROLE or not self._may_be_tied or role in self._tensors:
            return None
        candidates = self._tensors.get(_TIED_ROLE[role], [])
        return candidates[0] if len(candidates) == 1 and _fits(candidates[0], info) else None


def _fits(candidate: TensorInfo, info: TensorInfo) -> bool:
    are_matrices = len(candidate.shape) == len(info.shape) == 2
    return are_matrices and candidate.shape[1] == info.shape[1] and candidate.dtype in FLOAT_DTYPES


def _is_tied_by(config: Mapping[str, Any]) -> bool | None:
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None
