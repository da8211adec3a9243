"""From finished factors to an adapter's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from deltarank.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Budget,
    FillBuffer,
    LeftOut,
    MatrixEnergies,
    StreamedTensor,
    adapter_config,
    bias_key,
    exact_targets,
    factor_keys,
    fill_from_file,
    fill_from_files,
    fill_interleaved,
    module_type,
    whole_tensor_key,
    write_json,
    write_weights,
)
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, TensorInfo
from deltarank.jobs.extract.biases import bias_bytes
from deltarank.jobs.extract.layout import EXPERT, Empty, Layout, Target, UnfactoredTensor
from deltarank.jobs.extract.result import AdapterMatrix
from deltarank.jobs.extract.staging import Staging
from deltarank.results import Outcome
from deltarank.servers import kind_of_tensor


@dataclass(frozen=True)
class Finished:
    """All that was found out: a matrix for each target, and the energy of each other tensor that was read."""

    layout: Layout
    matrices: Mapping[str, AdapterMatrix]
    energies: Mapping[str, float | None]
    rounded: Mapping[str, float]
    dtype: torch.dtype

    @cached_property
    def live_types(self) -> set[str]:
        """Types of module of which a layer changed; all of them where nothing did: an empty adapter does not load."""
        changed = {m.path for m in self.matrices.values() if m.outcome is Outcome.MEASURED}
        changed |= {o.beside for o in self.layout.unfactored if o.beside and self.energies.get(o.name)}
        return {self._type(path) for path in changed or {t.module for t in self.layout.targets}}

    def _type(self, module: str) -> str:
        """Experts come together or not at all."""
        return EXPERT if kind_of_tensor(f"{module}.weight") == EXPERT else module_type(module)

    @cached_property
    def factored(self) -> list[Target]:
        """The targets that get factors in the file."""
        live = self.live_types
        return [t for t in self.layout.targets if self._type(t.module) in live and self._has_place(t)]

    def _has_place(self, target: Target) -> bool:
        known = self.matrices[target.pair.name].outcome in (Outcome.MEASURED, Outcome.IDENTICAL)
        return known or target.is_expert or self.layout.server.needs_every_layer

    @property
    def empties(self) -> list[Empty]:
        live = self.live_types
        return [empty for empty in self.layout.empties if self._type(empty.module) in live]

    @property
    def whole_modules(self) -> list[str]:
        """What `modules_to_save` carries: modules of which a tensor changed."""
        changed = {o.module for o in self.layout.unfactored if o.module and self.energies.get(o.name)}
        return [
            module for module in dict.fromkeys(o.module for o in self.layout.unfactored) if module in changed and module
        ]

    @property
    def carried(self) -> list[UnfactoredTensor]:
        """The tensors of those modules."""
        modules = set(self.whole_modules)
        return [other for other in self.layout.unfactored if other.module in modules]

    @cached_property
    def biases(self) -> Mapping[str, UnfactoredTensor]:
        """Those that are carried beside the factors of a module, by that module."""
        modules = {target.module for target in self.factored}
        found = {o.beside: o for o in self.layout.unfactored if o.beside in modules and self.energies.get(o.name)}
        return {module: other for module, other in found.items() if module is not None}

    def _energy(self, other: UnfactoredTensor) -> float | None:
        """None for what only one side has, such as the added rows of a vocabulary of which the unfactored were read."""
        return self.energies.get(other.name) if other.pair is not None else None

    def budget(self) -> Budget:
        measured = [m for m in self.matrices.values() if m.written is not None and m.losses]
        biases = {other.name for other in self.biases.values()}
        spent = [_spent(matrix) for matrix in measured]
        spent += [MatrixEnergies(self.energies[name] or 0.0, 0.0, self.rounded.get(name, 0.0)) for name in biases]
        carried = {other.name for other in self.carried}
        left = [
            (LeftOut(o.name, o.kind, o.reason, None), energy)
            for o in self.layout.unfactored
            if o.name not in carried | biases and (energy := self._energy(o)) != 0.0
        ]
        failed = [m for m in self.matrices.values() if m.written is None]
        left += [(LeftOut(m.name, m.outcome.value, m.reason or m.outcome.sentence, None), None) for m in failed]
        return Budget.of(spent, [self.energies[name] or 0.0 for name in carried], left)


def _spent(matrix: AdapterMatrix) -> MatrixEnergies:
    assert matrix.written is not None
    lost = matrix.written.energy_lost * matrix.energy
    return MatrixEnergies(matrix.energy, min(matrix.losses[0].energy_lost * matrix.energy, lost), lost)


def write_adapter(
    folder: Path,
    finished: Finished,
    staging: Staging,
    base: Checkpoint,
    finetune: Checkpoint,
    numbers: Mapping[str, int],
) -> None:
    """adapter_model.safetensors and adapter_config.json.

    Args:
        numbers: of the factors of each target, by the tensor's name.
    """
    layout = finished.layout
    wholes = [*_whole(finished, finetune), *_companions(finished, base)]
    tensors = [*_factors(finished, staging, numbers), *_zeros(finished), *wholes]
    write_weights(folder / WEIGHTS_FILE, tensors)
    targets = finished.factored
    modules = [*(t.module for t in targets if not t.bare), *(e.module for e in finished.empties)]
    bare = {t.pair.base.tensor for t in targets if t.bare}
    config = adapter_config(
        base=base.reference.ref,
        revision=base.reference.revision,
        rank=layout.rank,
        targets=exact_targets(modules, [name for name in base.tensors if name not in bare]),
        transposed=any(t.transposed for t in targets if not t.bare),
        ranks={t.module: t.rank for t in targets if t.rank != layout.rank},
        whole=finished.whole_modules,
        model=base.config or finetune.config,
        parameters=list(dict.fromkeys(t.module for t in targets if t.bare)),
        bias=bool(finished.biases),
        tied=any(other.head for other in finished.carried),
    )
    write_json(folder / CONFIG_FILE, config)


def _factors(finished: Finished, staging: Staging, numbers: Mapping[str, int]) -> Iterator[StreamedTensor]:
    stacks: dict[str, dict[int, Path | None]] = {}
    for target in finished.factored:
        is_kept = finished.matrices[target.pair.name].outcome is Outcome.MEASURED
        path = staging.factors(numbers[target.pair.name]) if is_kept else None
        if target.slot is None:
            outputs, inputs = target.sides
            yield from _two(target.module.removesuffix(".weight"), target.rank, outputs, inputs, finished.dtype, path)
            yield from _bias(finished, target)
            continue
        kept = stacks.setdefault(target.module, {})
        kept[target.slot.index] = path
        if len(kept) == target.slot.experts:
            yield from _stacked(_holder(target, finished), target, [kept[i] for i in range(len(kept))], finished.dtype)


def _bias(finished: Finished, target: Target) -> Iterator[StreamedTensor]:
    """PEFT puts a bias on every module or on none: zeros where none changed."""
    if finished.biases:
        other = finished.biases.get(target.module)
        fill = bias_bytes(other, finished.dtype) if other else None
        yield StreamedTensor(bias_key(target.module), finished.dtype, target.sides[:1], fill)


def _holder(target: Target, finished: Finished) -> str:
    """The module that a bare parameter's factors are stored under.

    PEFT wraps a module once for each parameter, the first one innermost.
    """
    assert target.slot is not None
    module, _, leaf = target.module.rpartition(".")
    here = {t.module.rpartition(".")[2] for t in finished.factored if t.slot and t.module.rpartition(".")[0] == module}
    options = [name for name in target.slot.stack.parameters if name in here]
    return module + ".base_layer" * (len(options) - 1 - options.index(leaf))


def _stacked(
    module: str, target: Target, paths: Sequence[Path | None], dtype: torch.dtype
) -> tuple[StreamedTensor, StreamedTensor]:
    """A of all experts one below the other; of B, column k of every expert side by side."""
    rank, (outputs, inputs), experts = target.rank, target.sides, len(paths)
    keys, size = factor_keys(module), dtype.itemsize
    a_bytes = rank * inputs * size
    return (
        StreamedTensor(keys[0], dtype, (experts * rank, inputs), fill_from_files(paths, a_bytes)),
        StreamedTensor(
            keys[1], dtype, (outputs, rank * experts), fill_interleaved(paths, a_bytes, (outputs, rank), size)
        ),
    )


def _zeros(finished: Finished) -> Iterator[StreamedTensor]:
    for empty in finished.empties:
        yield from _two(empty.module, finished.layout.rank, *empty.sides, finished.dtype, None)


def _two(
    module: str, rank: int, outputs: int, inputs: int, dtype: torch.dtype, path: Path | None
) -> tuple[StreamedTensor, StreamedTensor]:
    keys = factor_keys(module)
    a, b = StreamedTensor(keys[0], dtype, (rank, inputs)), StreamedTensor(keys[1], dtype, (outputs, rank))
    if path is None:
        return a, b
    return (
        StreamedTensor(a.name, dtype, a.shape, fill_from_file(path, 0)),
        StreamedTensor(b.name, dtype, b.shape, fill_from_file(path, a.nbytes)),
    )


def _whole(finished: Finished, finetune: Checkpoint) -> Iterator[StreamedTensor]:
    for other in finished.carried:
        info = finetune.tensors[other.name]
        leaf = other.name.rpartition(".")[2]
        for module in (other.module, other.head):  # PEFT wants what is tied twice
            if module is not None:
                yield StreamedTensor(
                    whole_tensor_key(f"{module}.{leaf}"),
                    FLOAT_DTYPES[info.dtype],
                    info.shape,
                    _bytes_of(info, finetune),
                )


def _companions(finished: Finished, base: Checkpoint) -> Iterator[StreamedTensor]:
    """What else a module holds that is carried whole, as the base has it: PEFT loads all of a module or fails."""
    modules = {o.pair.base.tensor.rpartition(".")[0]: o.module for o in finished.carried if o.pair is not None}
    carried = {o.pair.base.tensor for o in finished.carried if o.pair is not None}
    for name, info in base.tensors.items():
        holder, _, leaf = name.rpartition(".")
        if holder in modules and name not in carried and info.dtype in FLOAT_DTYPES:
            yield StreamedTensor(
                whole_tensor_key(f"{modules[holder]}.{leaf}"),
                FLOAT_DTYPES[info.dtype],
                info.shape,
                _bytes_of(info, base),
            )


def _bytes_of(info: TensorInfo, checkpoint: Checkpoint) -> FillBuffer:
    def fill(first: int, block: memoryview) -> None:
        checkpoint.source.read_into(info.file, info.start + first, block)

    return fill


def nbytes_of(layout: Layout, dtype: torch.dtype) -> float:
    """Bytes that the adapter takes at most."""
    sides = [*((t.sides, t.rank) for t in layout.targets), *((e.sides, layout.rank) for e in layout.empties)]
    factors = sum((outputs + inputs) * rank for (outputs, inputs), rank in sides) * dtype.itemsize
    if any(other.beside for other in layout.unfactored):
        factors += sum(target.sides[0] for target in layout.targets) * dtype.itemsize
    whole = [
        other.pair.nbytes / 2 * (2 if other.head else 1) for other in layout.unfactored if other.module and other.pair
    ]
    return float(factors + sum(whole))
