"""Writes the adapter's weights and configuration from stored factors and from both checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltarank.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    StreamedTensor,
    adapter_config,
    bias_key,
    exact_targets,
    factor_keys,
    fill_from_file,
    fill_from_files,
    fill_interleaved,
    whole_tensor_key,
    write_json,
    write_weights,
)
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, TensorInfo
from deltarank.jobs.extract.biases import fill_with_bias
from deltarank.jobs.extract.contents import AdapterContents
from deltarank.jobs.extract.layout import Target
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.results import Outcome

_COPIED_DTYPES = {**FLOAT_DTYPES, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}


@dataclass(frozen=True)
class AdapterWriter:
    """Writes adapter_model.safetensors and adapter_config.json. No tensor is ever whole in memory.

    dtype         of A and B
    factors_path  the file with the factors of a target, by tensor name
    """

    contents: AdapterContents
    names: ModuleNames
    finetune: Checkpoint
    dtype: torch.dtype
    factors_path: Callable[[str], Path]

    def write(self, folder: Path) -> None:
        """Raises OSError, and CheckpointError where a tensor that is carried whole cannot be read."""
        write_weights(folder / WEIGHTS_FILE, self.tensors)
        write_json(folder / CONFIG_FILE, self.config)

    @property
    def tensors(self) -> list[StreamedTensor]:
        """What adapter_model.safetensors contains."""
        return [*self._factors(), *self._zero_factors(), *self._whole_tensors(), *self._rest_of_whole_modules()]

    @property
    def base(self) -> Checkpoint:
        return self.names.base

    @property
    def config(self) -> dict[str, Any]:
        """What adapter_config.json contains."""
        targets, rank = self.contents.factored, self.contents.layout.rank
        modules = [target.module for target in targets if not target.as_parameter]
        modules += [zero.module for zero in self.contents.zero_modules]
        parameters = {target.module.rpartition(".")[0] for target in targets if target.as_parameter}
        return adapter_config(
            base=self.base.reference.ref,
            revision=self.base.reference.revision,
            rank=rank,
            targets=exact_targets(modules, [path for path in self.names.modules if path not in parameters]),
            transposed=any(target.transposed for target in targets if not target.as_parameter),
            ranks={target.module: target.rank for target in targets if target.rank != rank},
            whole=self.contents.whole_modules,
            model=self.base.config or self.finetune.config,
            parameters=list(dict.fromkeys(target.module for target in targets if target.as_parameter)),
            bias=bool(self.contents.biases),
            tied=any(tensor.tied_head for tensor in self.contents.whole_tensors),
            can_generate=self.names.can_generate,
        )

    def _factors(self) -> Iterator[StreamedTensor]:
        fused: dict[str, dict[int, Path | None]] = {}
        for target in self.contents.factored:
            is_changed = self.contents.matrices[target.pair.name].outcome is Outcome.MEASURED
            path = self.factors_path(target.pair.name) if is_changed else None
            if target.fused_expert is None:
                module = target.module.removesuffix(".weight")
                yield from self._factor_pair(module, target.rank, target.linear_shape, path)
                yield from self._bias(target)
                continue
            paths = fused.setdefault(target.module, {})
            paths[target.fused_expert.index] = path
            if len(paths) == target.fused_expert.experts:
                yield from self._fused_factors(target, [paths[index] for index in range(len(paths))])
                del fused[target.module]
        assert not fused, f"experts are missing in {list(fused)}"

    def _factor_pair(
        self, module: str, rank: int, linear_shape: tuple[int, int], path: Path | None
    ) -> Iterator[StreamedTensor]:
        """A and B, as stored in a file; zeros without one."""
        outputs, inputs = linear_shape
        key_a, key_b = factor_keys(module)
        a_bytes = rank * inputs * self.dtype.itemsize
        yield StreamedTensor(key_a, self.dtype, (rank, inputs), fill_from_file(path, 0) if path else None)
        yield StreamedTensor(key_b, self.dtype, (outputs, rank), fill_from_file(path, a_bytes) if path else None)

    def _bias(self, target: Target) -> Iterator[StreamedTensor]:
        """PEFT puts a bias on every module or on none: zeros where none changed."""
        if self.contents.biases:
            bias = self.contents.biases.get(target.module)
            fill = fill_with_bias(bias.pair, self.dtype) if bias and bias.pair else None
            yield StreamedTensor(bias_key(target.module), self.dtype, target.linear_shape[:1], fill)

    def _fused_factors(self, target: Target, paths: Sequence[Path | None]) -> Iterator[StreamedTensor]:
        """A: the experts' rows stacked. B: column k of all experts adjacent, for each k."""
        rank, (outputs, inputs), experts = target.rank, target.linear_shape, len(paths)
        key_a, key_b = factor_keys(self._peft_parameter_path(target))
        a_bytes = rank * inputs * self.dtype.itemsize
        fill_b = fill_interleaved(paths, a_bytes, (outputs, rank), self.dtype.itemsize)
        yield StreamedTensor(key_a, self.dtype, (experts * rank, inputs), fill_from_files(paths, a_bytes))
        yield StreamedTensor(key_b, self.dtype, (outputs, rank * experts), fill_b)

    def _peft_parameter_path(self, target: Target) -> str:
        """The module under which PEFT stores the factors of a parameter.

        PEFT wraps the module once for each parameter, the first one innermost.
        """
        assert target.fused_expert is not None
        module, _, parameter = target.module.rpartition(".")
        holders = (each.module.rpartition(".") for each in self.contents.factored if each.fused_expert)
        present = {name for holder, _, name in holders if holder == module}
        order = [name for name in target.fused_expert.layout.parameters if name in present]
        return module + ".base_layer" * (len(order) - 1 - order.index(parameter))

    def _zero_factors(self) -> Iterator[StreamedTensor]:
        for zero in self.contents.zero_modules:
            yield from self._factor_pair(zero.module, self.contents.layout.rank, zero.linear_shape, None)

    def _whole_tensors(self) -> Iterator[StreamedTensor]:
        for tensor in self.contents.whole_tensors:
            name = self.names.parameter(tensor.pair.base.tensor if tensor.pair else tensor.name).rpartition(".")[2]
            for module in (tensor.whole_module, tensor.tied_head):  # PEFT reads tied tensors from two entries
                if module is not None:
                    yield _copied(f"{module}.{name}", self.finetune.tensors[tensor.name], self.finetune)

    def _rest_of_whole_modules(self) -> Iterator[StreamedTensor]:
        """The other tensors of these modules, as the base has them: PEFT loads a module completely or fails."""
        carried = {tensor.pair.base.tensor for tensor in self.contents.whole_tensors if tensor.pair}
        modules = tuple(f"{module}." for module in self.contents.whole_modules)
        for name, info in self.base.tensors.items():
            parameter = self.names.parameter(name)
            if parameter.startswith(modules) and name not in carried and info.dtype in _COPIED_DTYPES:
                yield _copied(parameter, info, self.base)


def _copied(name: str, info: TensorInfo, checkpoint: Checkpoint) -> StreamedTensor:
    """A tensor of a checkpoint, byte for byte."""

    def fill(first: int, block: memoryview) -> None:
        checkpoint.source.read_into(info.file, info.start + first, block)

    return StreamedTensor(whole_tensor_key(name), _COPIED_DTYPES[info.dtype], info.shape, fill)
