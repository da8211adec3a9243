"""What goes into the adapter, once it is known which tensors changed, and where the whole change went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from deltarank.adapters import Budget, MatrixEnergies, OmittedTensor, module_type
from deltarank.jobs.extract.layout import AdapterLayout, Target, UnfactoredTensor, ZeroModule
from deltarank.jobs.extract.result import AdapterMatrix, SummedEnergy
from deltarank.results import Loss, Outcome, Unpaired
from deltarank.tensor_names import EXPERT, kind_of_tensor


@dataclass(frozen=True)
class AdapterContents:
    """A layout whose tensors have all been measured.

    matrices  the results of the targets, by tensor name
    sums      the energies of the other tensors that could be read, by tensor name
    """

    layout: AdapterLayout
    matrices: Mapping[str, AdapterMatrix]
    sums: Mapping[str, SummedEnergy]

    @cached_property
    def changed_types(self) -> set[str]:
        """Module types with at least one changed layer, and those that the server needs beside them.

        All types if none changed, because an empty adapter does not load.
        """
        changed = {matrix.path for matrix in self.matrices.values() if matrix.outcome is Outcome.MEASURED}
        changed |= {t.bias_of for t in self.layout.unfactored if t.bias_of and self._energy(t.name)}
        paths = {path for path in changed or {target.module for target in self.layout.targets} if path}
        partners = {partner for path in paths for partner in self.layout.server.partners(path)}
        return {_type_of(path) for path in paths | partners}

    @cached_property
    def factored(self) -> list[Target]:
        """The targets that get factors in the file."""
        return [t for t in self.layout.targets if _type_of(t.module) in self.changed_types and self._gets_factors(t)]

    def _gets_factors(self, target: Target) -> bool:
        is_known = self.matrices[target.pair.name].outcome in (Outcome.MEASURED, Outcome.IDENTICAL)
        server = self.layout.server
        return is_known or target.is_expert or server.needs_every_layer or bool(server.partners(target.module))

    @cached_property
    def zero_modules(self) -> list[ZeroModule]:
        return [zero for zero in self.layout.zero_modules if _type_of(zero.module) in self.changed_types]

    @cached_property
    def whole_modules(self) -> list[str]:
        """What `modules_to_save` carries: modules of which a tensor changed."""
        tensors = [tensor for tensor in self.layout.unfactored if tensor.whole_module]
        changed = {tensor.whole_module for tensor in tensors if self._energy(tensor.name)}
        return [module for module in dict.fromkeys(t.whole_module for t in tensors) if module and module in changed]

    @cached_property
    def whole_tensors(self) -> list[UnfactoredTensor]:
        """The tensors of those modules."""
        modules = set(self.whole_modules)
        return [tensor for tensor in self.layout.unfactored if tensor.whole_module in modules]

    @cached_property
    def biases(self) -> Mapping[str, UnfactoredTensor]:
        """Module -> the changed bias that is carried beside its factors."""
        modules = {target.module for target in self.factored}
        biases = [(t.bias_of, t) for t in self.layout.unfactored if t.bias_of in modules and self._energy(t.name)]
        return {module: bias for module, bias in biases if module is not None}

    def _energy(self, name: str) -> float | None:
        """||D||^2; None if it is not known."""
        return self.sums[name].energy if name in self.sums else None

    @property
    def failed(self) -> set[str]:
        """The names of the tensors whose change could not be measured."""
        matrices = {name for name, matrix in self.matrices.items() if matrix.written is None}
        return matrices | {name for name, each in self.sums.items() if each.energy is None}

    def budget(self, unpaired: Unpaired) -> Budget:
        biases = {bias.name for bias in self.biases.values()}
        stored_whole = {tensor.name for tensor in self.whole_tensors}
        stored = biases | stored_whole
        energies = [
            _matrix_energies(matrix, matrix.written)
            for matrix in self.matrices.values()
            if matrix.written and matrix.losses
        ]
        energies += [MatrixEnergies(self.sums[name].energy or 0.0, 0.0, self.sums[name].rounded) for name in biases]
        omitted = []
        for tensor in self.layout.unfactored:
            # If the finetune added vocabulary rows, the shared rows are a separate entry.
            energy = self._energy(tensor.name) if tensor.pair is not None else None
            if tensor.name not in stored and energy != 0.0:
                omitted.append(OmittedTensor(tensor.name, tensor.kind, tensor.reason, energy))
        for matrix in self.matrices.values():
            if matrix.written is None:
                reason = matrix.reason or matrix.outcome.sentence
                omitted.append(OmittedTensor(matrix.name, matrix.outcome.value, reason, None))
        budget = Budget.of(energies, [self._energy(name) or 0.0 for name in stored_whole], omitted)
        return replace(budget, unpaired=unpaired)


def _type_of(module: str) -> str:
    """Experts count as one type: they are extracted together or not at all."""
    return EXPERT if kind_of_tensor(f"{module}.weight") == EXPERT else module_type(module)


def _matrix_energies(matrix: AdapterMatrix, written: Loss) -> MatrixEnergies:
    lost = written.energy_lost * matrix.energy
    return MatrixEnergies(matrix.energy, min(matrix.losses[0].energy_lost * matrix.energy, lost), lost)
