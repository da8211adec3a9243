"""Names of the same parts of a decoder in the files of other programs, translated to those of Llama in transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltarank.checkpoints.pairing.name_matches import core_name

_LAYER = r"layers\.(\d+)\."


@dataclass(frozen=True)
class Convention:
    """How one program names the parts.

    signature        a name that only its files have, without wrappers
    renames          (its name, the name in transformers); layers are r"layers.N."
    is_interleaved   the rows of q and k are ordered for Meta's rotary embedding
    """

    title: str
    signature: re.Pattern[str]
    renames: tuple[tuple[re.Pattern[str], str], ...]
    is_interleaved: bool = False

    def translate(self, core: str) -> str:
        """The name in transformers of a name without wrappers; unchanged if it is not one of these."""
        for pattern, replacement in self.renames:
            new, found = pattern.subn(replacement, core)
            if found:
                return new
        return core


def _convention(
    title: str,
    signature: str,
    layer: str,
    inside: Mapping[str, str],
    outside: Mapping[str, str],
    *,
    is_interleaved: bool = False,
) -> Convention:
    renames = [(rf"^{layer}{re.escape(old)}\.", rf"layers.\1.{new}.") for old, new in inside.items()]
    renames += [(rf"^{re.escape(old)}\.", f"{new}.") for old, new in outside.items()]
    compiled = tuple((re.compile(old), new) for old, new in renames)
    return Convention(title, re.compile(rf"^{layer}{signature}"), compiled, is_interleaved)


_META_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wqkv": "self_attn.wqkv",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_META_OUTSIDE = {"tok_embeddings": "embed_tokens", "output": "lm_head"}
_CONVENTIONS = (
    _convention(
        "Meta's and Mistral's own files", r"attention\.wq\.", _LAYER, _META_LAYER, _META_OUTSIDE, is_interleaved=True
    ),
    _convention("InternLM2", r"attention\.wqkv\.", _LAYER, _META_LAYER, _META_OUTSIDE),
    _convention(
        "Qwen",
        r"mlp\.w1\.",
        r"h\.(\d+)\.",
        {
            "attn.c_attn": "self_attn.c_attn",
            "attn.c_proj": "self_attn.o_proj",
            "mlp.w1": "mlp.up_proj",
            "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj",
            "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm",
        },
        {"wte": "embed_tokens", "ln_f": "norm"},
    ),
    _convention(
        "ChatGLM",
        r"self_attention\.query_key_value\.",
        r"encoder\.layers\.(\d+)\.",
        {
            "self_attention.query_key_value": "self_attn.query_key_value",
            "self_attention.dense": "self_attn.o_proj",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
        },
        {"embedding.word_embeddings": "embed_tokens", "output_layer": "lm_head", "encoder.final_layernorm": "norm"},
    ),
)


def convention_of(names: Iterable[str]) -> Convention | None:
    """The convention of a checkpoint; None for transformers' and any other."""
    cores = [core_name(name) for name in names]
    return next((each for each in _CONVENTIONS if any(each.signature.match(core) for core in cores)), None)
