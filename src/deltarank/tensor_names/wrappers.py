"""Prefixes that stand before the names of a model when it is a part of a larger one, or wrapped for training."""

from __future__ import annotations

from collections.abc import Sequence

WRAPPERS = frozenset(
    {"model", "language_model", "text_model", "base_model", "transformer", "module", "llm", "backbone", "gpt_neox"}
    | {"thinker", "diffusion_model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
    | {"_forward_module", "state_dict", "pretrained_model"}
)
"""Prefixes that a training framework or a larger model puts before the names of a language model."""

INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
"""Wrappers that may also appear inside a name: of torch.compile, FSDP, activation checkpoints and PEFT."""

BASE_MODEL_PREFIXES = frozenset(
    {
        "albert", "align", "altclip", "beit", "bert", "bert_model", "big_bird", "biogpt", "blip", "bridgetower",
        "bros", "camembert", "canine", "chinese_clip", "clap", "clip", "codegen", "convbert", "convnext",
        "convnextv2", "cpmant", "cvt", "data2vec_audio", "data2vec_text", "data2vec_vision", "deberta", "deit",
        "dinov2", "distilbert", "dpt", "electra", "ernie", "esm", "esmc", "falcon", "flaubert", "flava", "fnet",
        "focalnet", "funnel", "git", "glpn", "gpt_neox_japanese", "groupvit", "gte", "hiera", "hubert", "ibert",
        "layoutlm", "layoutlmv2", "layoutlmv3", "led", "levit", "lilt", "longformer", "luke", "lxmert", "markuplm",
        "mgp_str", "mobilebert", "mpnet", "mra", "nomic_bert", "nystromformer", "owlv2", "owlvit", "perceiver",
        "pixio", "prophetnet", "pvt", "pvt_v2", "question_encoder", "reformer", "rembert", "roberta",
        "roberta_prelayernorm", "roc_bert", "roformer", "rwkv", "seamless_m4t", "seamless_m4t_v2", "segformer",
        "sew", "sew_d", "siglip", "siglip2", "speecht5", "splinter", "swin", "swin2sr", "swinv2",
        "switch_transformers", "tapas", "timesformer", "unispeech", "unispeech_sat", "videomae", "vilt",
        "visual_bert", "vit", "vits", "vivit", "vjepa2", "wav2vec2", "wav2vec2_bert", "wav2vec2_conformer",
        "wavlm", "x_clip", "xlm", "xlnet", "yoso", "zoedepth",
    }
)  # fmt: skip
"""The `base_model_prefix` of the classes of transformers 5.24 under which a model with a head keeps the model itself.

Without those that are also the name of one of several parts of a model, such as "encoder", "decoder" or "vision_model".
"""


def strip_inner_wrappers(parts: Sequence[str]) -> list[str]:
    """The parts without wrappers inside the name; PEFT's trained copy, `X.modules_to_save.default`, is read as `X`."""
    inner = [part for part in parts if part not in INNER_WRAPPERS]
    if "modules_to_save" in inner[1:-2]:
        at = inner.index("modules_to_save")
        del inner[at : at + 2]
    return inner


def strip_wrappers(parts: Sequence[str]) -> list[str]:
    """The parts after the leading wrappers; none if all are wrappers."""
    rest = list(parts[wrapper_count(parts) :])
    return [] if rest and rest[0] in WRAPPERS else rest


def wrapper_count(parts: Sequence[str], wrappers: frozenset[str] = WRAPPERS) -> int:
    """How many leading parts are wrappers; the last part does not count."""
    return next((i for i, part in enumerate(parts[:-1]) if part not in wrappers), max(len(parts) - 1, 0))
