"""Language models: loaded from checkpoints, run and sampled. Only this room and the demo import transformers."""

from __future__ import annotations

from deltarank.models.generate import check_room, fitting, generate, own_document
from deltarank.models.load import (
    ModelFolder,
    ModelSkeleton,
    file_names,
    load,
    model_skeleton,
    output_head,
    stream,
    tokenizer_of,
)
from deltarank.models.predict import LOGITS_AT_ONCE, Head, Predictor, Window, batches, translate_out_of_memory
from deltarank.models.prediction_store import PredictionStore
from deltarank.models.quantise import yardstick
from deltarank.models.tokenizers import changed_token_ids, difference
from deltarank.models.weights import Edit, Weights, read_piece

__all__ = [
    "LOGITS_AT_ONCE",
    "Edit",
    "Head",
    "ModelFolder",
    "ModelSkeleton",
    "PredictionStore",
    "Predictor",
    "Weights",
    "Window",
    "batches",
    "changed_token_ids",
    "check_room",
    "difference",
    "file_names",
    "fitting",
    "generate",
    "load",
    "model_skeleton",
    "output_head",
    "own_document",
    "read_piece",
    "stream",
    "tokenizer_of",
    "translate_out_of_memory",
    "yardstick",
]
