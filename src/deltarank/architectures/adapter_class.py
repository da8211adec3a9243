"""The class that an adapter was made for, which may be another one than that of its base's config.json."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from deltarank.architectures.architecture import Architecture, find_architecture
from deltarank.architectures.loading_class import UnknownClass
from deltarank.checkpoints import Checkpoint

_TABLES = {
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""By `task_type`, the table of classes of the Auto class that `AutoPeftModelFor...` uses."""


def find_adapted_architecture(
    base: Checkpoint, task: str, named: str, modules: Collection[str]
) -> Architecture | UnknownClass:
    """The class of the base, or that which an adapter states, if more of the adapter's modules are in that one.

    Args:
        task, named: `task_type` of adapter_config.json, and `base_model_class` of its `auto_mapping`.
        modules: those that the adapter's file has tensors for.
    """
    own = find_architecture(base)
    if isinstance(own, UnknownClass) or not _lacks_any(own, modules):
        return own
    stated = [name for name in (named, _class_for(task, base.config.get("model_type"))) if name]
    others = [_with_class(base, name) for name in dict.fromkeys(stated) if name != own.model_class.name]
    return max([own, *(each for each in others if each is not None)], key=lambda each: _number_found(each, modules))


def _class_for(task: str, model_type: Any) -> str | None:
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, _TABLES[task], {}) if task in _TABLES else {}
    name = table.get(model_type) if isinstance(model_type, str) else None
    return name if isinstance(name, str) else None


def _with_class(base: Checkpoint, name: str) -> Architecture | None:
    found = find_architecture(base, {**base.config, "architectures": [name]})
    return found if isinstance(found, Architecture) and found.model_class.name == name else None


def _number_found(architecture: Architecture, modules: Collection[str]) -> int:
    return sum(module in architecture.model_class.modules for module in modules)


def _lacks_any(architecture: Architecture, modules: Collection[str]) -> bool:
    return _number_found(architecture, modules) < len(modules)
