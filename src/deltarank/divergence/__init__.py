"""Divergence of predictions and of texts: per-token statistics, intervals, tests. Knows no model."""

from __future__ import annotations

from deltarank.divergence.attribution import PartMeasurement, documents_needed, summarise_attribution
from deltarank.divergence.bootstrap import resample
from deltarank.divergence.candidate_evidence import CandidateEvidence, tokens_needed, uniform_posterior
from deltarank.divergence.chat_template import Tokenizer, encode_messages, encode_text
from deltarank.divergence.e_values import (
    ALPHA,
    confidence_interval,
    log_e_values,
    log_e_values_two_sided,
    sign_flip_p_value,
    votes_needed,
)
from deltarank.divergence.exchangeability import (
    PAIRING_CHANCE,
    labellings,
    mmd_squared,
    pairing_score,
    permutation_p,
)
from deltarank.divergence.listed_text import log_bets, log_e_of_bets
from deltarank.divergence.prompts import Prompt, built_in_passages, encode_prompts, prompts_that_fit, read_prompts
from deltarank.divergence.sampled_texts import TextBets, TextScore, log_wealth
from deltarank.divergence.sampler_settings import (
    PLAIN,
    SETTINGS,
    TEMPERATURES,
    SamplerSetting,
    log_probabilities_by_setting,
)
from deltarank.divergence.summary import abx_bound, blind_bound, summarise_logits
from deltarank.divergence.text_files import hash_texts, messages_of, read_json_lines, read_text_file
from deltarank.divergence.texts import LONGEST_DOCUMENT, Document, encode_record, find_text_files, read_texts
from deltarank.divergence.token_stats import TokenStats, compare_logits
from deltarank.divergence.top_logprobs import kld_lower_bound, unseen_mass
from deltarank.divergence.writing import Answer, similarity_p, summarise_writing

__all__ = [
    "ALPHA",
    "LONGEST_DOCUMENT",
    "PAIRING_CHANCE",
    "PLAIN",
    "SETTINGS",
    "TEMPERATURES",
    "Answer",
    "CandidateEvidence",
    "Document",
    "PartMeasurement",
    "Prompt",
    "SamplerSetting",
    "TextBets",
    "TextScore",
    "TokenStats",
    "Tokenizer",
    "abx_bound",
    "blind_bound",
    "built_in_passages",
    "compare_logits",
    "confidence_interval",
    "documents_needed",
    "encode_messages",
    "encode_prompts",
    "encode_record",
    "encode_text",
    "find_text_files",
    "hash_texts",
    "kld_lower_bound",
    "labellings",
    "log_bets",
    "log_e_of_bets",
    "log_e_values",
    "log_e_values_two_sided",
    "log_probabilities_by_setting",
    "log_wealth",
    "messages_of",
    "mmd_squared",
    "pairing_score",
    "permutation_p",
    "prompts_that_fit",
    "read_json_lines",
    "read_prompts",
    "read_text_file",
    "read_texts",
    "resample",
    "sign_flip_p_value",
    "similarity_p",
    "summarise_attribution",
    "summarise_logits",
    "summarise_writing",
    "tokens_needed",
    "uniform_posterior",
    "unseen_mass",
    "votes_needed",
]
