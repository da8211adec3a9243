"""A checkpoint as its class loads it: the class, and the names and shapes that it gives to the checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.architectures.loaded_tensors import LoadedTensors
from deltarank.architectures.loading_class import LoadingClass, UnknownClass, find_loading_class
from deltarank.checkpoints import Checkpoint, dimensions

_LEAST_LOADED = 0.5
"""A class that has a place for less of a checkpoint's tensors is not theirs."""


@dataclass(frozen=True)
class Architecture:
    """The class that loads a checkpoint, and what it makes of the tensors."""

    model_class: LoadingClass
    tensors: LoadedTensors

    def parameter(self, tensor: str) -> str | None:
        """The parameter that a tensor of the files becomes; None if it becomes none, or a part of one."""
        return self.tensors.renamed.get(tensor)

    def module_type(self, tensor: str) -> str | None:
        """The type of the module whose parameter a tensor becomes: "Linear"."""
        parameter = self.parameter(tensor)
        return None if parameter is None else self.model_class.modules.get(parameter.rpartition(".")[0])


def find_architecture(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Architecture | UnknownClass:
    """The architecture of a checkpoint; unknown, too, where its tensors do not fit the class of its config.json.

    Args:
        config: used instead of the config.json beside the weights.
    """
    found = find_loading_class(checkpoint.config if config is None else config)
    if isinstance(found, UnknownClass):
        return found
    loaded = found.load({name: info.shape for name, info in checkpoint.tensors.items()})
    if loaded.mismatched:
        name, shape, expected = loaded.mismatched[0]
        return UnknownClass(
            f"config.json does not belong to these weights: {name!a} is {dimensions(shape)} in the files and "
            f"{dimensions(expected)} in {found.name}"
        )
    if len(loaded.unused) > _LEAST_LOADED * len(checkpoint.tensors):
        return UnknownClass(f"most of these tensors have other names than in {found.name}, the class of config.json")
    return Architecture(found, loaded)
