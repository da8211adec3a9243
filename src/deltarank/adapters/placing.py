"""Puts the parts of an adapter on the tensors of the base, by the names that the adapter's reader has for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.adapters.config_read import LoraConfig
from deltarank.adapters.parts import TRANSPOSE_CURE, AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.target_parameters import expand_parameters
from deltarank.adapters.targets import Placement, Target, TensorIndex, is_turned_around, place_part
from deltarank.checkpoints import SummedTensor
from deltarank.results import Outcome
from deltarank.servers import file_router_name
from deltarank.tensor_names import LM_HEAD, kind_of_tensor

EXPERTS = ".experts"
"""In the names of modules that are looked up by expert."""

NO_TENSOR = "the two checkpoints have no such tensor in common"
TIED = "the base ties its output head to this embedding, and the adapter changes only one of them"


@dataclass(frozen=True)
class Placed:
    """Where the parts of an adapter are.

    placements   the parts that have a place
    unused       those that have none
    """

    placements: tuple[Placement, ...]
    unused: tuple[UnusedTensor, ...]


class Placer:
    """Puts parts on tensors.

    Args:
        tied: names of the reader, of tensors that the base does not have but shares: the head's -> the embedding's.
        config: config.json of the base.
    """

    def __init__(
        self, tensors: TensorIndex, tied: Mapping[str, str], adapter_config: LoraConfig, config: Mapping[str, Any]
    ) -> None:
        self._tensors, self._tied, self._adapter_config, self._config = tensors, tied, adapter_config, config
        self._untied: dict[str, SummedTensor] = {}

    def place(self, parts: Iterable[AdapterPart]) -> Placed:
        placements: list[Placement] = []
        unused: list[UnusedTensor] = []
        for part in expand_parameters(tuple(parts), self._adapter_config, self._tensors):
            if isinstance(part, UnusedTensor):
                unused.append(part)
                continue
            target = self.find(part)
            if target is None:
                if not self.needs_no_place(part):
                    unused.append(UnusedTensor(part.up.name, NO_TENSOR))
                continue
            placed = place_part(part, target, self._config)
            if isinstance(placed, Placement):
                placements.append(placed)
            else:
                effect = LoadEffect.NONE if _may_be_longer(part, target) else LoadEffect.REFUSED
                cure = TRANSPOSE_CURE if is_turned_around(part, target) else ""
                unused.append(UnusedTensor(part.up.name, placed, effect, part.module, cure))
        return Placed(tuple(placements), tuple(unused))

    def find(self, part: AdapterPart) -> Target | None:
        found = self._tensors.find(part.tensor) or self._tensors.find(_name_in_files(part, self._config))
        return found or self._untied_head(part.tensor)

    def weight_beside(self, part: AdapterPart) -> Target | None:
        """The matrix of the module that a bias belongs to; None for any other part."""
        return self._tensors.find(f"{part.module}.weight") if part.kind is PartKind.BIAS else None

    def untied_by(self, placements: Iterable[Placement]) -> tuple[SummedTensor, ...]:
        """The heads that the base shares with an embedding, and that an adapter changes apart from it.

        PEFT ties what it adds only with `ensure_weight_tying`.
        """
        if self._adapter_config.ties_weights:
            return ()
        changed = {placement.target.name for placement in placements}
        for head, embedding in self._tied.items():
            target = self._tensors.find(embedding)
            if target is not None and target.name in changed:
                self._untied_head(head)
        return tuple(self._untied.values())

    def _untied_head(self, tensor: str) -> SummedTensor | None:
        """The head as a tensor of its own, which begins as the embedding."""
        embedding = self._tied.get(tensor)
        target = self._tensors.find(embedding) if embedding is not None else None
        if target is None or self._adapter_config.ties_weights:
            return None
        if tensor not in self._untied:
            synthetic = SummedTensor(tensor, Outcome.TIED, TIED, tuple(target.shape), target.base, target.finetune)
            self._untied[tensor] = self._tensors.find_tied(tensor) or synthetic
        return self._untied[tensor]

    def needs_no_place(self, part: AdapterPart) -> bool:
        """Whether a part is the copy of an embedding for a head that PEFT ties to it, or a bias beside a matrix."""
        is_copy = self._adapter_config.ties_weights and part.tensor in self._tied
        return is_copy or self.weight_beside(part) is not None

    def fits(self, part: AdapterPart, target: Target) -> bool:
        return isinstance(place_part(part, target, self._config), Placement)


def _may_be_longer(part: AdapterPart, target: Target) -> bool:
    """Whether a head could fit the base all the same: only the rows that both vocabularies have are compared."""
    if kind_of_tensor(part.tensor) != LM_HEAD or part.down is None:
        return False
    rows, columns = target.base.shape
    return part.up.shape[0] > rows and part.inputs == columns


def _name_in_files(part: AdapterPart, config: Mapping[str, Any]) -> str:
    """PEFT knows routers by the names of modules, which are not always those in files."""
    module, _, leaf = part.tensor.rpartition(".")
    return f"{file_router_name(module, config)}.{leaf}"
