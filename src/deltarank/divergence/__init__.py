"""Divergence of predictions and of texts: per-token statistics, intervals, tests. Knows no model."""

from __future__ import annotations

from deltarank.divergence.attribution import PartMeasurement, attribution_of
from deltarank.divergence.chat_files import AnyTokenizer
from deltarank.divergence.prompts import Prompt, read_prompts
from deltarank.divergence.summary import logits_of
from deltarank.divergence.texts import Document, read_texts
from deltarank.divergence.token_stats import TokenStats, token_stats
from deltarank.divergence.writing import Answer, writing_of

__all__ = [
    "Answer",
    "AnyTokenizer",
    "Document",
    "PartMeasurement",
    "Prompt",
    "TokenStats",
    "attribution_of",
    "logits_of",
    "read_prompts",
    "read_texts",
    "token_stats",
    "writing_of",
]
