"""What an adapter calls the modules of the base: what its class in transformers calls them.

Where the class is not known, modules have the names of their tensors in the files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from deltarank.adapters import implied_modules
from deltarank.architectures import Architecture, UnknownClass
from deltarank.checkpoints import Checkpoint
from deltarank.jobs.extract.reasons import not_a_parameter, part_of_a_parameter
from deltarank.servers import is_transposed, peft_router_name
from deltarank.tensor_names import EXPERT, kind_of_tensor


@dataclass(frozen=True)
class ModuleNames:
    """The names of a base's modules."""

    base: Checkpoint
    architecture: Architecture | UnknownClass

    def parameter(self, tensor: str) -> str:
        """The name that the class gives to a tensor of the base.

        Experts that the class fuses keep their names in the files, from which PEFT fuses their factors likewise.
        """
        known = self.architecture
        found = known.parameter(tensor) if isinstance(known, Architecture) else None
        return tensor if found is None else found

    def module(self, tensor: str) -> str:
        """The module that holds this parameter."""
        return self.parameter(tensor).rpartition(".")[0]

    def refusal(self, tensor: str) -> str | None:
        """Why no adapter can be applied to a tensor of the base, as far as the class decides; None if one may be."""
        known = self.architecture
        if isinstance(known, UnknownClass) or tensor not in self.base.tensors or known.parameter(tensor) is not None:
            return None
        if tensor not in known.tensors.by_source:
            return not_a_parameter(known.model_class.name)
        return None if kind_of_tensor(tensor) == EXPERT else part_of_a_parameter(known.model_class.name)

    def router(self, tensor: str) -> str | None:
        """The module of a router; None where it is not known."""
        if isinstance(self.architecture, Architecture) and self.architecture.parameter(tensor) is not None:
            return self.module(tensor)
        return peft_router_name(tensor.rpartition(".")[0], self.base.config)

    def kind(self, tensor: str) -> str | None:
        """The kind of a tensor by its name (`servers.kind_of_tensor`), else by the type of its module."""
        kind, module_type = kind_of_tensor(tensor), self.module_type(tensor)
        if kind is None and module_type is not None:
            return "embedding" if module_type == "Embedding" else "norm" if "Norm" in module_type else None
        return kind

    def is_transposed(self, tensor: str) -> bool:
        """Whether a matrix is stored as inputs x outputs."""
        module_type = self.module_type(tensor)
        return is_transposed(tensor, self.base.config) if module_type is None else module_type == "Conv1D"

    def module_type(self, tensor: str) -> str | None:
        """The type of the module that holds this parameter; None where it is not known."""
        known = self.architecture
        return known.module_type(tensor) if isinstance(known, Architecture) else None

    @cached_property
    def modules(self) -> Collection[str]:
        """All modules of the model."""
        known = self.architecture
        return known.model_class.modules if isinstance(known, Architecture) else implied_modules(self.base.tensors)

    @property
    def can_generate(self) -> bool:
        """Whether the class writes text; True where it is not known."""
        known = self.architecture
        return isinstance(known, UnknownClass) or known.model_class.can_generate

    def tied_head(self, embedding: str) -> str | None:
        """The output head that the base takes from this tensor; None where it has its own, or where none is known."""
        known = self.architecture
        if isinstance(known, UnknownClass):
            return self._tied_head_by_config()
        tied = (head for head, source in known.model_class.tied.items() if source == known.parameter(embedding))
        stored = known.tensors.by_parameter
        heads = [head for head in tied if head not in stored and kind_of_tensor(head) == "lm_head"]
        return heads[0].removesuffix(".weight") if heads else None

    def _tied_head_by_config(self) -> str | None:
        config = self.base.config
        classes = config.get("architectures")
        is_known = isinstance(classes, list) and any(str(name).endswith("ForCausalLM") for name in classes)
        has_own = any(kind_of_tensor(name) == "lm_head" for name in self.base.tensors)
        return "lm_head" if is_known and not has_own and config.get("tie_word_embeddings") is not False else None
