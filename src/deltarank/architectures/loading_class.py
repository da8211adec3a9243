"""The class of transformers that loads a checkpoint, built on the meta device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deltarank.architectures.loaded_tensors import LoadedTensors, Shape, load_tensors
from deltarank.architectures.transformers_logging import first_line, silence_transformers
from deltarank.system import silence_logging

_NO_CONFIG = "there is no config.json, or it is empty or cannot be read"
_MOST_LAYERS = 10_000
_NUMBER_OF_LAYERS = re.compile(r"(?:num|n)_(?:\w+_)?(?:layers?|blocks|experts)|(?:en|de)coder_layers|depth")


@dataclass(frozen=True)
class UnknownClass:
    """There is no such class here.

    reason  why, as the end of a sentence: "config.json names no model_type"
    """

    reason: str


@dataclass(frozen=True, eq=False)
class LoadingClass:
    """A model class without weights.

    name        of the class: "Gemma3ForConditionalGeneration"
    config      transformers' configuration
    meta_model  a model on the meta device; do not change it, `new_model` makes another
    """

    name: str
    config: Any = field(repr=False)
    meta_model: Any = field(repr=False)

    @cached_property
    def parameters(self) -> Mapping[str, Shape]:
        """All tensors of the model's state dict by name, tied ones included."""
        return {name: tuple(tensor.shape) for name, tensor in self.meta_model.state_dict().items()}

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """The type of each module by its path: "Linear", "Conv1D", "Embedding", "LlamaRMSNorm"."""
        return {path: type(module).__name__ for path, module in self.meta_model.named_modules() if path}

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Parameter -> the parameter that it is tied to: {"lm_head.weight": "model.embed_tokens.weight"}."""
        return dict(getattr(self.meta_model, "all_tied_weights_keys", None) or {})

    @property
    def can_generate(self) -> bool:
        """Whether the class writes text."""
        return hasattr(self.meta_model, "prepare_inputs_for_generation")

    def load(self, tensors: Mapping[str, Sequence[int]]) -> LoadedTensors:
        """What the class makes of a file's tensors, given their names and shapes."""
        with silence_logging():
            return load_tensors(self.meta_model, tensors)

    def new_model(self) -> Any:
        """Another model on the meta device, which may be changed."""
        return _build(type(self.meta_model), self.config)


def find_loading_class(config: Mapping[str, Any]) -> LoadingClass | UnknownClass:
    """The class that a config.json names in `architectures`; else the one of AutoModelForCausalLM.

    Code from the checkpoint (`auto_map`) is never run: a model that needs it is unknown here.
    """
    try:
        text = json.dumps(config, sort_keys=True)
    except (TypeError, ValueError):
        return UnknownClass("config.json is no plain JSON")
    return _find(text)


@lru_cache(maxsize=4)  # the same checkpoint is asked for by several steps of a job, and building takes seconds
def _find(text: str) -> LoadingClass | UnknownClass:
    config: dict[str, Any] = json.loads(text)
    if not isinstance(config.get("model_type"), str):
        return UnknownClass("config.json names no model_type" if config else _NO_CONFIG)
    if any(number > _MOST_LAYERS for number in _numbers_of_layers(config)):
        return UnknownClass("config.json names too many layers")
    with silence_logging(), silence_transformers():
        return _find_in_transformers(config)


def _find_in_transformers(config: Mapping[str, Any]) -> LoadingClass | UnknownClass:
    from transformers import CONFIG_MAPPING, __version__

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        needs_code = " and the checkpoint's own code is not run" if "auto_map" in config else ""
        return UnknownClass(f"transformers {__version__} does not know the model type {model_type!a}{needs_code}")
    try:
        made = _read_config(_without_quantisation(config))
        model_class = _class_of(config, made)
        if model_class is None:
            return UnknownClass(f"transformers {__version__} has no class {_named_class(config)!a}")
        return LoadingClass(model_class.__name__, made, _build(model_class, made))
    except Exception as error:  # configurations and models check their values with errors of many kinds
        return UnknownClass(f"transformers {__version__} cannot build the model of config.json: {first_line(error)}")


def _read_config(config: Mapping[str, Any]) -> Any:
    """As transformers reads a file: it writes infinite numbers, for one, in a way of its own."""
    from transformers import AutoConfig

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _class_of(config: Mapping[str, Any], made: Any) -> type[Any] | None:
    """The class that the config names, if it is one for such a config; else that of AutoModelForCausalLM."""
    import transformers
    from transformers import AutoModelForCausalLM, PreTrainedModel

    name = str(_named_class(config))
    named = getattr(transformers, name, None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel):
        wanted = getattr(named, "config_class", None)
        if (isinstance(wanted, type) and isinstance(made, wanted)) or name in _auto_classes(config["model_type"]):
            return named
    mapping: Any = AutoModelForCausalLM._model_mapping
    found = mapping.get(type(made), None)
    one = found[0] if isinstance(found, tuple | list) else found
    return one if isinstance(one, type) else None


def _auto_classes(model_type: str) -> set[str]:
    """The classes that transformers' Auto classes choose for a model type: some are written for another one."""
    from transformers.models.auto import modeling_auto

    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    found = [table.get(model_type) for table in tables]
    return {name for each in found for name in ((each,) if isinstance(each, str) else each or ())}


def _named_class(config: Mapping[str, Any]) -> str | None:
    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    return named if isinstance(named, str) and len(named) < 200 else None


def _build(model_class: type[Any], config: Any) -> Any:
    import torch

    config = deepcopy(config)
    if getattr(config, "use_pretrained_backbone", False):  # it would be downloaded
        config.use_pretrained_backbone = False
    with silence_logging(), silence_transformers(), torch.device("meta"):
        return model_class._from_config(config, attn_implementation="eager").eval()


def _without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Modules of quantised layers have other names of tensors, and need packages that may be missing."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _numbers_of_layers(config: Mapping[str, Any]) -> Iterator[int]:
    """A damaged config must not keep the machine busy for hours."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers_of_layers(value)
        elif isinstance(value, int) and _NUMBER_OF_LAYERS.fullmatch(key):
            yield value
