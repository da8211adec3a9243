"""Divergence of predictions and of texts: per-token statistics, intervals, tests. Knows no model."""

from __future__ import annotations

from deltarank.divergence.attribution import PartMeasurement, summarise_attribution
from deltarank.divergence.chat_template import Tokenizer
from deltarank.divergence.prompts import Prompt, encode_prompts, prompts_that_fit, read_prompts
from deltarank.divergence.summary import summarise_logits
from deltarank.divergence.texts import Document, read_texts
from deltarank.divergence.token_stats import TokenStats, compare_logits
from deltarank.divergence.writing import Answer, summarise_writing

__all__ = [
    "Answer",
    "Document",
    "PartMeasurement",
    "Prompt",
    "TokenStats",
    "Tokenizer",
    "compare_logits",
    "encode_prompts",
    "prompts_that_fit",
    "read_prompts",
    "read_texts",
    "summarise_attribution",
    "summarise_logits",
    "summarise_writing",
]
