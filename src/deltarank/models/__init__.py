"""Language models: loaded from checkpoints, run and sampled. Only this room and the demo import transformers."""

from __future__ import annotations

from deltarank.models.generate import check_room, fitting, generate, own_document
from deltarank.models.load import Blueprint, Home, blueprint, file_names, load, output_head, stream, tokenizer_of
from deltarank.models.predict import LOGITS_AT_ONCE, Head, Predictor, Window, batches, told_of_memory
from deltarank.models.prediction_store import Kept
from deltarank.models.quantise import yardstick
from deltarank.models.tokenizers import difference, moved_tokens
from deltarank.models.weights import Edit, Weights, read_piece

__all__ = [
    "LOGITS_AT_ONCE",
    "Blueprint",
    "Edit",
    "Head",
    "Home",
    "Kept",
    "Predictor",
    "Weights",
    "Window",
    "batches",
    "blueprint",
    "check_room",
    "difference",
    "file_names",
    "fitting",
    "generate",
    "load",
    "moved_tokens",
    "output_head",
    "own_document",
    "read_piece",
    "stream",
    "tokenizer_of",
    "told_of_memory",
    "yardstick",
]
