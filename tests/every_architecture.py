"""The model types whose tensors transformers renames, merges or splits when it loads them, built on the meta device."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto


def _model_types() -> list[str]:
    """The mapping names model types and classes. The classes are not imported for it."""
    converted = _build_checkpoint_conversion_mapping().keys()
    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    by_class = {model_type for table in tables for model_type, name in table.items() if str(name) in converted}
    return sorted(model_type for model_type in {*converted, *by_class} if model_type in CONFIG_MAPPING)


CONVERTED = _model_types()
"""All of them in the installed version."""

FAMILIES = (
    *("gemma3", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "mistral3", "fuyu", "qwen2_audio"),
    *("mixtral", "deepseek_v3", "qwen3_vl_moe", "jamba", "nomic_bert"),
)
"""One of each kind, for tests of every day."""

_CLASSES = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "depth")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")
_MOST_LAYERS, _MOST_EXPERTS = 4, 8


def build(model_type: str) -> PreTrainedModel | str:
    """A model with few layers and experts, without weights; or why there is none."""
    reason = ""
    for make in (_small_config, lambda model_type: CONFIG_MAPPING[model_type]()):
        try:
            config = make(model_type)
            with torch.device("meta"):
                return _class_for(config)._from_config(config)
        except Exception as error:  # not every configuration of defaults is complete, and some need other packages
            reason = f"{type(error).__name__}: {error}"
    return reason


def _small_config(model_type: str) -> PreTrainedConfig:
    config = CONFIG_MAPPING[model_type]()
    _shrink(config)
    return type(config).from_dict(config.to_dict())  # which checks that the numbers fit each other


def _shrink(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif isinstance(value, list) and name in _LISTS:
            setattr(config, name, value[:_MOST_LAYERS])
        elif isinstance(value, int) and not isinstance(value, bool) and name in (*_LAYERS, *_EXPERTS):
            setattr(config, name, min(value, _MOST_LAYERS if name in _LAYERS else _MOST_EXPERTS))


def _class_for(config: PreTrainedConfig) -> Any:
    for name in _CLASSES:
        mapping = getattr(modeling_auto, name)
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError("there is no class for it")


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """What config.json says."""
    return model.config.to_dict() | {"architectures": [type(model).__name__]}


def saved_tensors(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """What `save_pretrained` writes, by name, on the meta device."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    stored = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    reverted: Mapping[str, torch.Tensor] = revert_weight_conversion(model, stored)
    return reverted


def write_headers(model: PreTrainedModel, folder: Path) -> Path:
    """A checkpoint whose file is a hole after the header: it takes no space, and all its numbers are 0."""
    folder.mkdir(parents=True)
    header, start = {}, 0
    for name, tensor in saved_tensors(model).items():
        if tensor.is_floating_point():
            end = start + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    return folder
