"""How PEFT addresses the unusual tensors of some model families: fused experts, routers and transposed weights."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from deltarank.servers.data import load_data
from deltarank.system import compile_globs


@dataclass(frozen=True)
class ExpertLayout:
    """Experts that share one tensor, (experts, ...), which PEFT addresses as a bare parameter of their module.

    parameters    all such parameters of the module, in the order in which the model registers them
    inputs_first  each expert is stored as inputs x outputs
    """

    parameters: tuple[str, ...]
    inputs_first: bool

    @classmethod
    def of(cls, tensor: str, config: Mapping[str, Any]) -> ExpertLayout | None:
        """The layout of a tensor of the model with this config.json; None where it is not known."""
        module, _, leaf = tensor.rpartition(".")
        for row in load_data()["fused_experts"]:
            applies = config.get("model_type") in row["model_types"] and leaf in row["parameters"]
            if applies and fnmatch.fnmatchcase(module, row["container"]):
                return cls(tuple(row["parameters"]), row["inputs_first"])
        return None


def model_types(config: Mapping[str, Any]) -> frozenset[str]:
    """The model types of a config.json: of the whole model, and of its language model."""
    text = config.get("text_config")
    found = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    return frozenset(each for each in found if isinstance(each, str))


def modules_fused_by_peft(config: Mapping[str, Any]) -> frozenset[str]:
    """The last components of the module names that PEFT treats as separate experts of this model, and fuses."""
    return frozenset(name for row in _families("fused_by_peft", config) for name in row["names"])


def peft_router_name(module: str, config: Mapping[str, Any]) -> str | None:
    """The name by which PEFT addresses a router, given its name in files or in PEFT; None where it is not known."""
    for row in _families("routers", config):
        for end in (row["in_files"], row["in_peft"]):
            if module.endswith(f".{end}"):
                return module.removesuffix(end) + str(row["in_peft"])
    return None


def file_router_name(module: str, config: Mapping[str, Any]) -> str:
    """The name that files have for one of PEFT's routers; any other module keeps its name."""
    for row in _families("routers", config):
        if module.endswith(f".{row['in_peft']}"):
            return module.removesuffix(row["in_peft"]) + str(row["in_files"])
    return module


def _families(table: str, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in load_data()[table]["families"] if config.get("model_type") in row["model_types"]]


def is_conv1d_model(config: Mapping[str, Any]) -> bool:
    """Whether the model's linear layers are transformers' Conv1D, which stores inputs x outputs."""
    return config.get("model_type") in load_data()["transposed"]["model_types"]


def is_transposed(tensor: str, config: Mapping[str, Any]) -> bool:
    """Whether this model stores this matrix as inputs x outputs."""
    return is_conv1d_model(config) and any(pattern.match(tensor) for pattern in _transposed_names())


@cache
def _transposed_names() -> tuple[re.Pattern[str], ...]:
    return compile_globs(load_data()["transposed"]["names"])
