"""The class of transformers that loads a checkpoint: found from config.json, without weights and without its code."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, Mamba2Config

from deltarank.architectures import LoadingClass, UnknownClass, find_loading_class

LLAMA: dict[str, Any] = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
).to_dict()


def known(config: dict[str, Any]) -> LoadingClass:
    found = find_loading_class(config)
    assert isinstance(found, LoadingClass), found
    return found


def test_the_class_is_the_one_that_config_json_names() -> None:
    assert known(LLAMA | {"architectures": ["LlamaForSequenceClassification"]}).name == "LlamaForSequenceClassification"


@pytest.mark.parametrize("named", [None, [], ["LLaMAForCausalLM"], ["GPT2LMHeadModel"], ["pipeline"], [7]])
def test_without_a_class_of_this_configuration_it_is_the_causal_language_model(named: Any) -> None:
    assert known(LLAMA | {"architectures": named}).name == "LlamaForCausalLM"


def test_it_has_the_types_of_modules_the_shapes_of_parameters_and_what_is_tied() -> None:
    found = known(LLAMA | {"tie_word_embeddings": True})

    assert found.modules["model.layers.1.mlp.up_proj"] == "Linear"
    assert found.modules["model.norm"] == "LlamaRMSNorm"
    assert found.parameters["model.layers.1.mlp.up_proj.weight"] == (24, 16)
    assert found.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert all(parameter.is_meta for parameter in found.meta_model.parameters())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "there is no config.json"),
        ({"hidden_size": 8}, "config.json names no model_type"),
        ({"model_type": ["llama"]}, "config.json names no model_type"),
        ({"model_type": "a_private_model"}, "does not know the model type 'a_private_model'"),
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "the checkpoint's own code is not run"),
        (LLAMA | {"num_attention_heads": 0}, "cannot build the model"),
        (LLAMA | {"num_hidden_layers": 10**9}, "too many layers"),
        (AutoConfig.for_model("vit").to_dict(), "has no class 'vit'"),
    ],
)
def test_otherwise_it_says_why_there_is_none(config: dict[str, Any], reason: str) -> None:
    found = find_loading_class(config)

    assert isinstance(found, UnknownClass)
    assert reason in found.reason


def test_large_numbers_of_other_things_are_no_layers() -> None:
    assert known(LLAMA | {"vocab_size_per_layer_input": 262144, "moe_layer_start": 99999}).name == "LlamaForCausalLM"


def test_infinite_numbers_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    config = Mamba2Config(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8, n_groups=1)
    config.save_pretrained(tmp_path)
    found = known(json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["Mamba2ForCausalLM"]})

    assert found.config.time_step_limit[1] == math.inf


def test_code_of_the_checkpoint_is_not_needed_for_an_architecture_that_transformers_has() -> None:
    assert known(LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}).name == "LlamaForCausalLM"
