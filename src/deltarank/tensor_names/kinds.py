"""Kinds of tensors by what they do: of the matrices, only those of linear layers can carry a LoRA.

The names are those of transformers 5.24, diffusers and the original repositories of the models. For 420 model types of
transformers the kind was compared with the class of the module (`tests/laws/test_tensor_kinds.py` repeats some).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from deltarank.tensor_names.wrappers import strip_inner_wrappers, strip_wrappers

EXPERT, ROUTER, LM_HEAD, EMBEDDING, POSITION = "expert", "router", "lm_head", "embedding", "position"
BARE_PARAMETER = "parameter"


@dataclass(frozen=True)
class TensorKind:
    """One kind: its key, its plural for messages, and a pattern for the end of the names that belong to it."""

    kind: str
    words: str
    pattern: re.Pattern[str]


def _kind(kind: str, words: str, pattern: str) -> TensorKind:
    return TensorKind(kind, words, re.compile(rf"(?:.*\.)?(?:{pattern})", re.DOTALL))


_NORM = r"\w*[nN]orm(?:_?\d+|_\w|s\.\d+)?|\w*_norm_\w+|ln|ln_?\w{1,8}|\w+_ln\d?|bn\d"
_POSITION = (
    r"wpe|\w*position_embedding\w*|\w*position_embeds_layer|\w*positional_embedding\w*|pos_emb(?:ed)?|\w*_pos_emb(?:ed)?"
    r"|embed_positions|positions_embed|relative_attention_bias|rel_pos_(?:[xy]_)?bias|relative_position_bias_table"
    r"|relative_pos_embeddings|position_enc|distance_embedding|bias_values|pe_k"
)
_EMBEDDING = (
    r"\w*embed_\w*tokens?|embed_tokens_per_layer|wte|tokens_embed|tok_embeddings|\w*tok_embedding|embed_in|shared"
    r"|embed_(?:timestep|global|layer_ids)|(?!patch_|predictor_|box_linear_)\w*embeddings?"
    r"|(?!patch_|decoder_|class_|reference_point_)(?:\w*_)?embed|input_embeds_layers?(?:\.\d+)?|\w*embeddings?[_.]\d+"
    r"|point_embed\.\d+|denoising_class_embed"
    r"|visual_embeddings_table|codebook\w*|\w*codevectors|queries_(?:embedder|features)|query_feat|\w*segment_emb"
    r"|\w+_tokens?|reference_points|HashBucketCodepointEmbedder_\d+"
)
# The order decides where several patterns match.
_KINDS = (
    _kind("norm", "norms", rf"(?:{_NORM})\.(?:weight|bias|gamma|beta|scale)"),
    _kind(
        ROUTER,
        "routers",
        r"gate\.weight|gate\.wg\.weight|router\.(?:weight|bias)|router\.\w+\.weight|shared_expert_gate\.weight"
        r"|gate\.e_score_correction_bias",
    ),
    _kind("bias", "biases", r"\w*bias(?:es)?|sinks|pos_bias_[uv]"),
    _kind(
        LM_HEAD,
        "lm_head",
        r"lm_head\.weight|\w+_lm_head\.weight|shared_head\.head\.weight|lm_head\.decoder\.weight"
        r"|predictions\.decoder\.weight|vocab_projector\.weight|embed_out\.weight",
    ),
    _kind(POSITION, "position embeddings", rf"(?:{_POSITION})\.weight"),
    _kind(EMBEDDING, "embeddings", rf"(?:{_EMBEDDING})\.weight"),
    _kind(EXPERT, "experts", r"\w*(?:moe|mlp)\.(?:input|output)_linear\.weight"),
    # The kernels of state space models read its weight and pass by the module's forward, and with it a LoRA on it.
    _kind(
        "state_space",
        "parameters of state space layers",
        r"A_log|D|(?:mamba|mixer|ssm)\.dt_proj\.weight|conv1d\.weight",
    ),
    # The weight of a module ends in "weight" (also MultiheadAttention's in_proj_weight). What does not belongs to no
    # linear layer: class tokens, scales, RWKV's mixing coefficients, tables. A file of matrices has no modules at all.
    TensorKind(BARE_PARAMETER, "bare parameters", re.compile(r"(?!.*weight$).*\..*", re.DOTALL)),
    _kind("only_in_base", "only in the base", r"(?!)"),
    _kind("only_in_finetune", "only in the finetune", r"(?!)"),
    _kind("shape_differs", "of two shapes", r"(?!)"),
    _kind("refused", "modules that PEFT does not adapt", r"(?!)"),
    _kind("not_finite", "NaN or Inf", r"(?!)"),
    _kind("not_floating", "no plain numbers", r"(?!)"),
    _kind("not_a_matrix", "no matrix", r"(?!)"),
)
_ROOT_HEADS = frozenset({"output", "output_layer", "head"})
_MAX_LENGTH = 2000  # of a name; longer ones are no real ones
_END = 3  # parts of a name that tell its kind


@lru_cache(maxsize=1 << 16)
def kind_of_tensor(name: str) -> str | None:
    """ "norm", LM_HEAD, EMBEDDING, ROUTER, EXPERT, BARE_PARAMETER, ...; None for the weight of a linear layer."""
    if len(name) > _MAX_LENGTH:
        return BARE_PARAMETER
    parts = strip_inner_wrappers(name.split("."))
    if parts[-1] == "weight" and parts[-2:-1] and parts[-2] in _ROOT_HEADS and len(strip_wrappers(parts)) == 2:
        return LM_HEAD
    end = ".".join(parts[-_END:])
    kind = next((each.kind for each in _KINDS if each.pattern.fullmatch(end)), None)
    return EXPERT if kind in (None, BARE_PARAMETER) and "experts" in parts[:-1] else kind


def kind_in_words(kind: str) -> str:
    """The plural of a kind, for messages: "norm" -> "norms". An unknown kind is returned unchanged."""
    return next((each.words for each in _KINDS if each.kind == kind), kind)
