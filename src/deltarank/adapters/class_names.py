"""The names that PEFT has for the tensors of the base: those of the class that loads them, or those of the files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.targets import core_name
from deltarank.architectures import (
    LoadedTensors,
    LoadingClass,
    UnknownClass,
    find_adapted_architecture,
    find_architecture,
    find_loading_class,
)
from deltarank.checkpoints import Checkpoint


@dataclass(frozen=True)
class ClassNames:
    """The names of a class of transformers, which renames, merges and splits tensors when it loads them."""

    model_class: LoadingClass
    loaded: LoadedTensors
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, base: Checkpoint) -> ClassNames | str:
        """The names of the class that loads a checkpoint; or why they are not known."""
        found = find_architecture(base)
        return found.reason if isinstance(found, UnknownClass) else cls(found.model_class, found.tensors)

    @classmethod
    def of_adapter(cls, base: Checkpoint, adapter: LoraAdapter) -> ClassNames | str:
        """The names of the class that an adapter was made for, on a base; or why they are not known."""
        modules = {part.module for part in adapter.parts if not part.is_parameter}
        found = find_adapted_architecture(base, adapter.config.task, adapter.config.made_for, modules)
        if isinstance(found, UnknownClass):
            return found.reason
        own, name = find_loading_class(base.config), found.model_class.name
        if isinstance(own, UnknownClass) or own.name == name:
            return cls(found.model_class, found.tensors)
        notes = (f"PEFT loads the adapter into {name}, for which it was made, not into {own.name}",)
        return cls(found.model_class, found.tensors, notes)

    def is_new(self, tensor: str) -> bool:
        """Whether a parameter is made from no tensor of the files, and shares none: a new head."""
        return tensor in self.loaded.missing and tensor not in self.model_class.tied and self.in_files(tensor) is None

    def in_files(self, tensor: str) -> str | None:
        """A parameter that is one tensor of the files; or one of several tensors that make a parameter, by its name."""
        name, bracket, number = tensor.partition("[")
        conversion = self.loaded.by_parameter.get(name)
        if conversion is not None:
            return f"{conversion.sources[0]}{bracket}{number}" if conversion.is_renaming else None
        if tensor in self.loaded.by_source and not self.loaded.by_source[tensor].is_renaming:
            return tensor
        return self._left_over.get(core_name(tensor)) if tensor in self.loaded.missing else None

    def of_file(self, tensor: str) -> str:
        return self.loaded.renamed.get(tensor, tensor)

    @property
    def _left_over(self) -> Mapping[str, str]:
        """Tensors of the files that the class does not find, because their names have other prefixes."""
        return {core_name(name): name for name in self.loaded.unused}

    @property
    def modules(self) -> Collection[str]:
        return self.model_class.modules.keys()

    @property
    def tied(self) -> Mapping[str, str]:
        """Parameter without a tensor of its own -> the parameter that it is tied to."""
        return {name: other for name, other in self.model_class.tied.items() if name in self.loaded.missing}


class FileNames:
    """The names in the base's files, where the class is not known."""

    def __init__(self, base: Checkpoint) -> None:
        heads = [name for name in _HEADS if name in base.tensors]
        embeddings = [name for name in base.tensors if name.endswith(_EMBEDDINGS)]
        is_tied = _ties(base.config) and not heads and len(embeddings) == 1
        self.tied: Mapping[str, str] = {_HEADS[0]: embeddings[0]} if is_tied else {}
        self.modules: Collection[str] = {name.rpartition(".")[0] for name in base.tensors}

    def in_files(self, tensor: str) -> str | None:
        return tensor

    def of_file(self, tensor: str) -> str:
        return tensor


_HEADS = ("lm_head.weight",)
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def _ties(config: Mapping[str, Any]) -> bool:
    return config.get("tie_word_embeddings") is True
