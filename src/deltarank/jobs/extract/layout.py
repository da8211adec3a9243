"""What an adapter contains: matrices with factors, tensors carried beside them, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltarank.checkpoints import Pair, SummedTensor
from deltarank.results import Outcome
from deltarank.servers import ExpertLayout, Server
from deltarank.tensor_names import EXPERT, kind_of_tensor


@dataclass(frozen=True)
class FusedExpert:
    """One expert of a tensor that holds several.

    index    its position in the tensor
    experts  how many experts the tensor holds
    layout   how the tensor stores them, and how PEFT addresses it
    """

    index: int
    experts: int
    layout: ExpertLayout


@dataclass(frozen=True)
class Target:
    """A matrix that gets factors.

    module        the path of its module in the base, which the adapter is loaded on; with `as_parameter`, the name of
                  the parameter
    rank          of its factors as written
    transposed    it is stored as inputs x outputs
    as_parameter  PEFT puts the factors on the parameter (`target_parameters`), not on the module that holds it
    fused_expert  set for an expert that shares its tensor with others
    """

    pair: Pair
    module: str
    rank: int
    transposed: bool
    as_parameter: bool = False
    fused_expert: FusedExpert | None = None

    @property
    def is_expert(self) -> bool:
        return kind_of_tensor(self.pair.base.tensor) == EXPERT

    @property
    def module_name(self) -> str:
        """The last component of the module's path."""
        return self.module.removesuffix(".weight").rpartition(".")[2]

    @property
    def linear_shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.pair.shape[::-1] if self.transposed else self.pair.shape


@dataclass(frozen=True)
class ZeroModule:
    """A module that gets factors of zeros, for a server that requires every layer of a module type."""

    module: str
    linear_shape: tuple[int, int]


@dataclass(frozen=True)
class UnfactoredTensor:
    """A tensor that gets no factors.

    pair          its two sides, of which the change is summed; None if only one checkpoint has it
    whole_module  the module that `modules_to_save` may carry it with
    bias_of       of a bias: the module beside whose factors its change may be carried
    tied_head     the output head that is tied to it, which is carried as a copy
    """

    name: str
    kind: str
    reason: str
    pair: Pair | SummedTensor | None
    whole_module: str | None = None
    bias_of: str | None = None
    tied_head: str | None = None

    @property
    def can_be_carried(self) -> bool:
        """Whether the adapter contains it if it changed."""
        return self.whole_module is not None or self.bias_of is not None

    @property
    def summed(self) -> SummedTensor | None:
        return as_summed(self.pair, self.reason) if isinstance(self.pair, Pair) else self.pair


def as_summed(pair: Pair, reason: str) -> SummedTensor:
    """A matrix of which only the size of the change is measured."""
    return SummedTensor(pair.name, Outcome.EXCLUDED, reason, pair.shape, pair.base, pair.finetune)


@dataclass(frozen=True)
class AdapterLayout:
    """What an adapter contains, known from headers alone. Each tensor of either checkpoint is in one of the first two.

    targets       matrices that get factors
    unfactored    all other tensors
    zero_modules  modules of the base that get factors of zeros
    notes         what the user should know about it
    """

    server: Server
    rank: int
    targets: tuple[Target, ...]
    unfactored: tuple[UnfactoredTensor, ...]
    zero_modules: tuple[ZeroModule, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summed(self) -> tuple[SummedTensor, ...]:
        """The tensors that are read only for the size of their change."""
        return tuple(summed for tensor in self.unfactored if (summed := tensor.summed) is not None)

    def max_nbytes(self, dtype: torch.dtype) -> float:
        """Bytes of the adapter on disk if every tensor changed."""
        factors = [(target.linear_shape, target.rank) for target in self.targets]
        factors += [(zero.linear_shape, self.rank) for zero in self.zero_modules]
        numbers = sum((outputs + inputs) * rank for (outputs, inputs), rank in factors)
        if any(tensor.bias_of for tensor in self.unfactored):
            numbers += sum(target.linear_shape[0] for target in self.targets)
        whole = [
            tensor.pair.nbytes / 2 * (2 if tensor.tied_head else 1)
            for tensor in self.unfactored
            if tensor.whole_module and tensor.pair
        ]
        return float(numbers * dtype.itemsize + sum(whole))
