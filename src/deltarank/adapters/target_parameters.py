"""LoRAs that PEFT puts on bare parameters (`target_parameters`), most often experts that share one tensor.

For a parameter of (experts, ...) PEFT stores A as (experts * r, inputs), expert by expert, and B as (outputs, r *
experts), where column k of every expert comes before column k + 1 of any. Several parameters of one module are wrapped
one in the other, so that the file says `base_layer` and not which parameter is meant: the shapes decide.

Transformers 5 fuses experts that are separate in files (Mixtral, Qwen3-MoE) into one tensor. Of a LoRA on that tensor,
each matrix in the files gets its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltarank.adapters.config_read import LoraConfig
from deltarank.adapters.parts import AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.targets import FUSED_FROM, SeparateExperts, StackedMatrices, TensorIndex
from deltarank.checkpoints import parse_expert_name

_WRAPPER = ".base_layer"


def expand_parameters(
    parts: Sequence[AdapterPart], config: LoraConfig, tensors: TensorIndex
) -> Iterator[AdapterPart | UnusedTensor]:
    """The parts, with those on bare parameters under the parameter's name, and those on experts split by expert."""
    for part in parts:
        expanded = _expand(part, config, tensors) if config.parameters and part.kind is PartKind.LINEAR else None
        if expanded is None:
            yield _in_fused(part, tensors) or part
        else:
            yield from expanded


def _expand(part: AdapterPart, config: LoraConfig, tensors: TensorIndex) -> Sequence[AdapterPart | UnusedTensor] | None:
    """None for a part on a module."""
    module = part.module
    while module.endswith(_WRAPPER):
        module = module.removesuffix(_WRAPPER)
    weight = f"{module}.weight"
    if config.targets_parameter(weight) and tensors.find(weight) is not None:
        return [replace(part, module=weight, tensor=weight, is_parameter=True)]
    candidates: list[StackedMatrices | SeparateExperts] = [*tensors.stacked_in(module)] or [*tensors.fused_in(module)]
    targeted = [candidate for candidate in candidates if config.targets_parameter(candidate.name)]
    if not targeted:
        return None
    fitting = [candidate for candidate in targeted if _fits(part, candidate)]
    if len(fitting) == 1:
        (one,) = fitting
        return _split_stacked(part, one) if isinstance(one, StackedMatrices) else _split_fused(part, one)
    reason = "it fits several targeted parameters" if fitting else f"its shape fits no targeted parameter of {module}"
    return [UnusedTensor(part.up.name, reason, LoadEffect.NONE if fitting else LoadEffect.REFUSED)]


def _in_fused(part: AdapterPart, tensors: TensorIndex) -> AdapterPart | None:
    """The part of a single expert as one of the tensor that holds all experts; None if there is no such tensor.

    PEFT (0.21) fuses the LoRAs of single experts in the same way.
    """
    expert = parse_expert_name(part.tensor) if part.kind is PartKind.LINEAR else None
    if expert is None or tensors.find(part.tensor) is not None:
        return None
    module, index, weight = expert
    wanted = (part.up.shape[0], part.inputs)
    for stacked in tensors.stacked_in(module):
        leaf = stacked.name.rpartition(".")[2]
        members = FUSED_FROM.get(leaf, ())
        if weight in members and index < len(stacked.slices):
            rows, columns = stacked.slices[index].base.shape
            if (rows, columns) == (len(members) * wanted[0], wanted[1]):
                before = members.index(weight) * wanted[0]
                name = f"{stacked.slices[index].base.tensor}[{index}]"
                return replace(part, tensor=name, padding=(before, rows - before - wanted[0]))
    return None


def _fits(part: AdapterPart, candidate: StackedMatrices | SeparateExperts) -> bool:
    assert part.down is not None
    if isinstance(candidate, SeparateExperts):
        is_divisible = part.down.shape[0] % len(candidate.experts) == 0
        return is_divisible and (part.up.shape[0], part.down.shape[1]) == candidate.shape
    sides = {part.up.shape[0], part.down.shape[1]}
    return sides == set(candidate.slices[0].base.shape) and part.down.shape[0] % len(candidate.slices) == 0


def _split_fused(part: AdapterPart, fused: SeparateExperts) -> list[AdapterPart | UnusedTensor]:
    """Gate has the first rows of each expert, up the rest."""
    parts: list[AdapterPart | UnusedTensor] = []
    for index, targets in enumerate(fused.experts):
        expert, first = (index, len(fused.experts)), 0
        for target in targets:
            rows = (first, first + target.base.shape[0])
            parts.append(
                replace(part, module=fused.name, tensor=target.name, is_parameter=True, expert=expert, rows=rows)
            )
            first = rows[1]
    return parts


def _split_stacked(part: AdapterPart, stacked: StackedMatrices) -> list[AdapterPart | UnusedTensor]:
    number = len(stacked.slices)
    return [
        replace(part, module=stacked.name, tensor=f"{stacked.name}[{i}]", is_parameter=True, expert=(i, number))
        for i in range(number)
    ]
