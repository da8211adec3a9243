"""The finetune as the teacher: its predictions in the documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltarank.divergence import Document
from deltarank.errors import CheckpointError, JobError
from deltarank.models import PredictionStore, Predictor, Window, batch_windows

_TOKENS_AT_ONCE = 2048

_SAME = 0.01
"""Of the norm of an output: what rounding changes is far less, what an encoder changes far more."""


def store_predictions(predictor: Predictor, documents: Sequence[Document], store: PredictionStore) -> list[Window]:
    """Stores the finetune's predictions in the documents, except for those that are stored already.

    Args:
        predictor: runs the finetune.

    Raises:
        JobError: (slug "outputs-not-finite") a prediction is NaN or infinite.
    """
    windows = [Window.from_mask(document.ids, document.scored) for document in documents]
    for batch in batch_windows(windows, size=None, tokens=_TOKENS_AT_ONCE):
        if store.has_head and all(map(store.has, batch)):
            continue
        inputs = predictor.head_inputs([windows[i] for i in batch])
        for number, each in zip(batch, inputs, strict=True):
            _check_finite(each)
            store.save(number, each)
        if not store.has_head:
            _check_finite(predictor.head.logits(inputs[0][:1]))
            store.save_head(predictor.head)
    return windows


def check_causal(predictor: Predictor, name: str) -> None:
    """Raises CheckpointError (slug "not-a-language-model") if a prediction depends on the tokens after it.

    transformers builds encoders (BERT) as language models, too.
    """
    one, other = predictor.head_inputs([Window((1, 2, 3, last), (0,)) for last in (4, 5)])
    if float((one - other).norm()) > _SAME * float(one.norm()):
        raise CheckpointError(
            f"{name!a} predicts no next token: its output at a token depends on the tokens after it.",
            cure="Leave out --calibrate: plain extraction runs no model.",
            slug="not-a-language-model",
        )


def _check_finite(predictions: torch.Tensor) -> None:
    if not bool(predictions.isfinite().all()):
        raise JobError(
            "The finetune's predictions contain NaN or infinity, so nothing can be fitted to them.",
            cure="Run `deltarank compare` on the pair: it names tensors with such values.",
            slug="outputs-not-finite",
        )
