"""Models as functions: the only room, beside the demo, that imports transformers."""

from deltarank.behaviour._attribution import Swap, attribution_of
from deltarank.behaviour._divergence import TokenStats, token_stats
from deltarank.behaviour._forward import LOGITS_AT_ONCE, Head, Predictor, Window, batches, told_of_memory
from deltarank.behaviour._model import Blueprint, Home, blueprint, file_names, load, output_head, stream, tokenizer_of
from deltarank.behaviour._prompts import Prompt, read_prompts
from deltarank.behaviour._sampling import Answer, check_room, fitting, generate, own_document
from deltarank.behaviour._statistics import logits_of
from deltarank.behaviour._store import Kept
from deltarank.behaviour._texts import Document, read_texts
from deltarank.behaviour._tokenizers import difference, moved_tokens
from deltarank.behaviour._weights import Edit, Lazy, Weights, read_piece
from deltarank.behaviour._words import sentences_of
from deltarank.behaviour._writing import writing_of
from deltarank.behaviour._yardsticks import YARDSTICKS, yardstick

__all__ = [
    "LOGITS_AT_ONCE",
    "YARDSTICKS",
    "Answer",
    "Blueprint",
    "Document",
    "Edit",
    "Head",
    "Home",
    "Kept",
    "Lazy",
    "Predictor",
    "Prompt",
    "Swap",
    "TokenStats",
    "Weights",
    "Window",
    "attribution_of",
    "batches",
    "blueprint",
    "check_room",
    "difference",
    "file_names",
    "fitting",
    "generate",
    "load",
    "logits_of",
    "moved_tokens",
    "output_head",
    "own_document",
    "read_piece",
    "read_prompts",
    "read_texts",
    "sentences_of",
    "stream",
    "token_stats",
    "tokenizer_of",
    "told_of_memory",
    "writing_of",
    "yardstick",
]
