"""The kind that a tensor's name gives is that of its module in transformers: only linear layers carry a LoRA."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from deltarank.tensor_names import BARE_PARAMETER, EMBEDDING, LM_HEAD, POSITION, ROUTER, kind_of_tensor

LINEAR = {None, LM_HEAD, ROUTER}
"""Kinds of the weights of linear layers. Heads and routers are served in ways of their own."""

# Parameters of linear layers that no LoRA reaches: the mixer uses the weight and passes by the module.
PASSED_BY = {"mamba": "dt_proj", "falcon_mamba": "dt_proj"}


def tiny(model_type: str, auto: Any, **config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = auto.from_config(AutoConfig.for_model(model_type, **config))
    return model


@pytest.mark.parametrize(
    ("model_type", "auto"),
    [
        *((each, AutoModelForCausalLM) for each in ("llama", "gpt2", "cohere", "mamba", "falcon_mamba", "rwkv")),
        *((each, AutoModelForCausalLM) for each in ("bloom", "falcon", "mpt", "opt", "gpt_neox", "phi3", "mixtral")),
        *((each, AutoModelForMaskedLM) for each in ("bert", "roberta", "deberta-v2", "albert", "modernbert")),
        *((each, AutoModel) for each in ("vit", "swin", "clip", "siglip", "wav2vec2", "whisper", "t5", "dinov2")),
    ],
)
def test_kinds_are_those_of_the_modules(model_type: str, auto: Any) -> None:
    few = {"num_hidden_layers": 2} if model_type not in ("clip", "siglip", "swin", "whisper") else {}
    for name, module in tiny(model_type, auto, **few).named_modules():
        weights = [(key, weight) for key, weight in module.named_parameters(recurse=False) if weight.dim() == 2]
        for key, _ in weights:
            kind = kind_of_tensor(f"{name}.{key}")
            if isinstance(module, torch.nn.Linear | Conv1D):
                is_passed_by = name.endswith(PASSED_BY.get(model_type, "-"))
                assert kind == "state_space" if is_passed_by else kind in LINEAR, name
            elif isinstance(module, torch.nn.Embedding):
                assert kind in (EMBEDDING, POSITION), name
            elif "Router" in type(module).__name__:
                assert kind == ROUTER, name
            elif "expert" not in name and key != "in_proj_weight":
                assert kind not in LINEAR, f"{name}.{key}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.61.embed_tokens.weight", EMBEDDING),
        ("model.layers.61.shared_head.head.weight", LM_HEAD),
        ("model.layers.61.eh_proj.weight", None),
        ("backbone.layers.0.mixer.A_log", "state_space"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("single_blocks.3.norm.query_norm.scale", "norm"),
        ("bert.encoder.layer.0.output.LayerNorm.gamma", "norm"),
        ("transformer_blocks.0.norm1.linear.weight", None),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", POSITION),
        ("blocks.0.att.x_r", BARE_PARAMETER),
        ("blocks.0.att.time_decay", BARE_PARAMETER),
        ("model.vision_tower.vision_model.head.probe", BARE_PARAMETER),
        ("quantizer.quantizers.0.codebook.weight", EMBEDDING),
        ("transformer.output_layer.weight", LM_HEAD),
        ("output.weight", LM_HEAD),
        ("bert.encoder.layer.0.output.dense.weight", None),
        ("context_embedder.weight", None),
        ("electra.embeddings_project.weight", None),
    ],
)
def test_kinds_of_names(name: str, kind: str | None) -> None:
    assert kind_of_tensor(name) == kind
