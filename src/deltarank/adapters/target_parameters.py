"""LoRAs that PEFT puts on bare parameters (`target_parameters`): experts that share one tensor, above all.

For a parameter of (experts, ...) PEFT stores A as (experts * r, inputs), expert by expert, and B as (outputs, r *
experts), where column k of every expert comes before column k + 1 of any. Several parameters of one module are wrapped
one in the other, so that the file says `base_layer` and not which parameter is meant: that is seen from the shapes.

Transformers 5 makes one tensor of experts that lie in files one by one (Mixtral, Qwen3-MoE): of a LoRA on that tensor,
each matrix in the files gets its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltarank.adapters.config_read import LoraConfig
from deltarank.adapters.read import AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.targets import SeparateExperts, StackedMatrices, TensorIndex

_WRAPPER = ".base_layer"


def expand_parameters(
    parts: Sequence[AdapterPart], config: LoraConfig, tensors: TensorIndex
) -> Iterator[AdapterPart | UnusedTensor]:
    """The parts, those on bare parameters by the names of these; what is meant for experts, expert by expert."""
    for part in parts:
        found = _meant(part, config, tensors) if config.parameters and part.kind is PartKind.LINEAR else None
        if found is None:
            yield part
        else:
            yield from found


def _meant(part: AdapterPart, config: LoraConfig, tensors: TensorIndex) -> Sequence[AdapterPart | UnusedTensor] | None:
    """None for a part on a module."""
    module = part.module
    while module.endswith(_WRAPPER):
        module = module.removesuffix(_WRAPPER)
    own = f"{module}.weight"
    if config.aims_at_parameter(own) and tensors.find(own) is not None:
        return [replace(part, module=own, tensor=own, bare=True)]
    held: list[StackedMatrices | SeparateExperts] = [*tensors.stacks_of(module)] or [*tensors.fused_of(module)]
    stacks = [stack for stack in held if config.aims_at_parameter(stack.name)]
    if not stacks:
        return None
    fitting = [stack for stack in stacks if _fits(part, stack)]
    if len(fitting) == 1:
        (one,) = fitting
        return _slices(part, one) if isinstance(one, StackedMatrices) else _singles(part, one)
    reason = "several parameters could be meant" if fitting else f"its shape fits no targeted parameter of {module}"
    return [UnusedTensor(part.up.name, reason, LoadEffect.NONE if fitting else LoadEffect.REFUSED)]


def _fits(part: AdapterPart, stack: StackedMatrices | SeparateExperts) -> bool:
    assert part.down is not None
    if isinstance(stack, SeparateExperts):
        whole = part.down.shape[0] % len(stack.parts) == 0
        return whole and (part.up.shape[0], part.down.shape[1]) == stack.shape
    sides = {part.up.shape[0], part.down.shape[1]}
    return sides == set(stack.slices[0].base.shape) and part.down.shape[0] % len(stack.slices) == 0


def _singles(part: AdapterPart, stack: SeparateExperts) -> list[AdapterPart | UnusedTensor]:
    """Gate has the first rows of each expert, up the rest."""
    found: list[AdapterPart | UnusedTensor] = []
    for number, targets in enumerate(stack.parts):
        slot, first = (number, len(stack.parts)), 0
        for target in targets:
            rows = (first, first + target.base.shape[0])
            found.append(replace(part, module=stack.name, tensor=target.name, bare=True, slot=slot, rows=rows))
            first = rows[1]
    return found


def _slices(part: AdapterPart, stack: StackedMatrices) -> list[AdapterPart | UnusedTensor]:
    experts = len(stack.slices)
    return [
        replace(part, module=stack.name, tensor=f"{stack.name}[{number}]", bare=True, slot=(number, experts))
        for number in range(experts)
    ]
