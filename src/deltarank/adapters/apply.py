"""What an adapter adds to each tensor, as PEFT or a given server adds it.

PEFT's behaviour was read in peft 0.21, and the tests compare with PEFT itself. The behaviour of servers is in
servers.json, as read in their sources; no server was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from deltarank.adapters.config_read import LoraConfig, lora_scale
from deltarank.adapters.notes import notes_on_semantics, notes_on_targets
from deltarank.adapters.read import AdapterPart, LoadEffect, LoraAdapter, PartKind, UnusedTensor
from deltarank.adapters.server_refusals import check_loadable, handling_of
from deltarank.adapters.target_parameters import expand_parameters
from deltarank.adapters.targets import Placement, Target, TensorIndex, place_part
from deltarank.checkpoints import Pair, dimensions, parse_expert_name, quoted
from deltarank.errors import AdapterError
from deltarank.results import count
from deltarank.servers import PEFT, Handling, Server, file_router_name, get_server, modules_fused_by_peft
from deltarank.tensor_names import EXPERT, kind_of_tensor

_OUTPUT_HEADS = frozenset({"lm_head.weight"})
_FUSED_EXPERTS = "the checkpoints contain all experts of a layer in one tensor, and this one is for a single expert"
_NO_TENSOR = "the two checkpoints have no such tensor in common"


@dataclass(frozen=True)
class Change:
    """A part that is added to a tensor, and the scale of its product B A (1 for a part that is not a product)."""

    placement: Placement
    scale: float


@dataclass(frozen=True)
class NewBias:
    """A bias for a module that has none in the checkpoints (`lora_bias`). `weight` is that module's matrix."""

    part: AdapterPart
    weight: Target
    scale: float


@dataclass(frozen=True)
class Applied:
    """What an adapter changes in two checkpoints, from headers alone.

    changes          by the name of the tensor that they change, in the order in which they are added
    unused           the tensors of the adapter that change nothing, and why
    notes            what the server does differently from PEFT, a sentence each
    biases           new biases, which the checkpoints have no tensor for
    """

    changes: Mapping[str, tuple[Change, ...]]
    unused: tuple[UnusedTensor, ...]
    notes: tuple[str, ...]
    biases: tuple[NewBias, ...] = ()

    def check_loads_in_peft(self) -> None:
        """Raises AdapterError (slug "adapter-refused") if PEFT would not load it, or fill gaps with random numbers."""
        for entry in self.unused:
            if entry.effect is not LoadEffect.NONE:
                raise AdapterError(
                    f"PEFT does not load this adapter correctly: {quoted(entry.name)}: {entry.reason}.",
                    cure="Download or copy the adapter again, or save it again with PEFT's `save_pretrained`.",
                    slug="adapter-refused",
                )

    def left_out_biases(self, adapter: LoraAdapter) -> list[str]:
        """A note for callers that cannot add new biases."""
        number = sum(not adapter.is_padding(bias.part.up.name) for bias in self.biases)
        note = f"{count(number, 'bias', 'biases')} of the adapter left out: the base has no bias in these modules"
        return [note] if number else []


def apply_adapter(
    adapter: LoraAdapter, targets: Iterable[Target], *, server: str | None, config: Mapping[str, Any]
) -> Applied:
    """Finds what an adapter changes in the tensors that two checkpoints share. No tensor is read.

    Args:
        server: the server whose rules apply; None: PEFT.
        config: config.json of the base.

    Raises:
        UsageError: (slug "bad-server") there is no such server.
        AdapterError: (slug "adapter-refused") the server does not load this adapter; (slug "adapter-wrong-base")
            most of it fits nothing here; (slug "adapter-empty") it has no usable tensor; (slug
            "adapter-experts-apart") it is for single experts, and the checkpoints hold them fused.
    """
    rules = get_server(server or PEFT)
    check_loadable(adapter, rules)
    tensors = TensorIndex(targets)
    placements, unused = _place_parts(adapter, tensors, config)
    biases, unused_biases = _new_biases(adapter, tensors, rules)
    unused += unused_biases
    fused_names = _names_fused_by_peft(tensors, config)
    kept: list[Placement] = []
    for placement in placements:
        entry = _why_ignored(adapter, placement.part, rules, fused_names)
        if entry is None:
            kept.append(placement)
        else:
            unused.append(entry)
    if rules.needs_every_layer:
        kept, dropped = _drop_incomplete_modules(kept, tensors, rules)
        unused += dropped
    changes: dict[str, tuple[Change, ...]] = {}
    for placement in sorted(kept, key=lambda each: each.part.is_lora):
        earlier = changes.get(placement.target.name, ())
        changes[placement.target.name] = (*earlier, Change(placement, _scale(adapter, placement.part, rules)))
    all_unused = (*(_without_idle_effect(entry, adapter, tensors) for entry in adapter.unused), *unused)
    notes = (*notes_on_semantics(adapter, rules), *notes_on_targets(adapter, tensors))
    return Applied(changes, tuple(dict.fromkeys(all_unused)), notes, tuple(biases))


def _place_parts(
    adapter: LoraAdapter, tensors: TensorIndex, config: Mapping[str, Any]
) -> tuple[list[Placement], list[UnusedTensor]]:
    """Raises AdapterError if less than half of the parts have a place."""
    expanded = list(expand_parameters(adapter.parts, adapter.config, tensors))
    unused = [each for each in expanded if isinstance(each, UnusedTensor)]
    placements: list[Placement] = []
    for part in expanded:
        if isinstance(part, UnusedTensor):
            continue
        target = tensors.find(part.tensor) or tensors.find(_name_in_files(part, config))
        if target is None:
            if not (_is_tied_head(part, adapter.config) or _weight_beside(part, tensors) is not None):
                reason = _FUSED_EXPERTS if _is_single_expert(part, tensors) else _NO_TENSOR
                unused.append(UnusedTensor(part.up.name, reason))
            continue
        placed = place_part(part, target, fan_in_fan_out=adapter.config.fan_in_fan_out, config=config)
        if isinstance(placed, Placement):
            placements.append(placed)
        else:
            is_harmless = _why_peft_ignores(part, adapter.config) is not None or _may_be_longer(part, target)
            effect = LoadEffect.NONE if is_harmless else LoadEffect.REFUSED
            unused.append(UnusedTensor(part.up.name, placed, effect))
    if not adapter.parts or (unused and len(placements) <= len(unused)):
        _raise_wrong_base(adapter, unused, len(placements) + len(unused))
    return placements, unused


def _is_tied_head(part: AdapterPart, config: LoraConfig) -> bool:
    """Whether a part is the copy of an embedding for the output head that the base ties to it."""
    return config.ties_weights and part.kind is PartKind.WHOLE and part.tensor in _OUTPUT_HEADS


def _may_be_longer(part: AdapterPart, target: Target) -> bool:
    """Whether a head could fit the base all the same: only the rows that both vocabularies have are compared."""
    if kind_of_tensor(part.tensor) != "lm_head" or part.down is None:
        return False
    rows, columns = target.base.shape
    return part.up.shape[0] > rows and part.down.shape[1] == columns


def _is_single_expert(part: AdapterPart, tensors: TensorIndex) -> bool:
    """Whether a part is for one of several experts that share a tensor in the checkpoints."""
    expert = parse_expert_name(part.tensor)
    return expert is not None and bool(tensors.stacked_in(expert[0]))


def _new_biases(adapter: LoraAdapter, tensors: TensorIndex, server: Server) -> tuple[list[NewBias], list[UnusedTensor]]:
    """The biases of LoRAs on modules that have no bias in the checkpoints."""
    biases: list[NewBias] = []
    unused: list[UnusedTensor] = []
    for part in adapter.parts:
        weight = _weight_beside(part, tensors)
        if weight is None or tensors.find(part.tensor) is not None:
            continue
        entry = _why_ignored(adapter, part, server, frozenset())
        if entry is None and part.up.shape not in {(side,) for side in weight.base.shape}:
            reason = f"{dimensions(part.up.shape)} does not fit {dimensions(weight.shape)}"
            entry = UnusedTensor(part.up.name, reason, LoadEffect.REFUSED)
        if entry is None:
            biases.append(NewBias(part, weight, _scale(adapter, part, server)))
        else:
            unused.append(entry)
    return biases, unused


def _weight_beside(part: AdapterPart, tensors: TensorIndex) -> Target | None:
    """The matrix of the module that a bias belongs to; None for any other part."""
    return tensors.find(f"{part.module}.weight") if part.kind is PartKind.BIAS else None


def _name_in_files(part: AdapterPart, config: Mapping[str, Any]) -> str:
    """PEFT knows routers by the names of modules, which are not always those in files."""
    module, _, leaf = part.tensor.rpartition(".")
    return f"{file_router_name(module, config)}.{leaf}"


def _raise_wrong_base(adapter: LoraAdapter, unused: list[UnusedTensor], parts: int) -> NoReturn:
    if not adapter.parts:
        first = adapter.unused[0] if adapter.unused else UnusedTensor("the file", "it contains no tensor")
        raise AdapterError(
            f"The adapter changes nothing: {quoted(first.name)}: {first.reason}.",
            cure="Give an adapter that PEFT's `save_pretrained` wrote.",
            slug="adapter-empty",
        )
    example = f"such as {quoted(unused[0].name)}: {unused[0].reason}"
    if unused[0].reason == _FUSED_EXPERTS:
        raise AdapterError(
            f"{len(unused):,} of {count(parts, 'part')} of the adapter cannot be applied to these checkpoints, "
            f"{example}.",
            cure="Give a base or a finetune that contains each expert in tensors of its own, as most on the Hub do.",
            slug="adapter-experts-apart",
        )
    raise AdapterError(
        f"This adapter does not belong to this base: {len(unused):,} of {count(parts, 'part')} match no "
        f"tensor of the base, {example}.",
        cure=f"Give the base that it was made for; its adapter_config.json names {adapter.config.base or 'none'}.",
        slug="adapter-wrong-base",
    )


def _names_fused_by_peft(tensors: TensorIndex, config: Mapping[str, Any]) -> frozenset[str]:
    """The last components of names that PEFT treats as experts; empty for a model that has no separate experts."""
    has_experts = any(kind_of_tensor(target.base.tensor) == EXPERT for target in tensors.targets)
    return modules_fused_by_peft(config) if has_experts else frozenset()


def _why_ignored(
    adapter: LoraAdapter, part: AdapterPart, server: Server, fused_names: frozenset[str]
) -> UnusedTensor | None:
    """Why a part that fits changes nothing; None if it does change its tensor."""
    if not server.is_peft:
        is_honoured = handling_of(part, server) is Handling.HONOURED
        return None if is_honoured else UnusedTensor(part.up.name, f"{server.title} ignores it")
    if (reason := _why_peft_ignores(part, adapter.config)) is not None:
        return UnusedTensor(part.up.name, reason)
    is_expert = kind_of_tensor(part.tensor) == EXPERT
    if part.module.rpartition(".")[2] in fused_names and part.is_lora and not (part.is_parameter or is_expert):
        reason = "PEFT (0.21) takes modules of this name for single experts in such a model, and does not apply it"
        return UnusedTensor(part.up.name, reason)
    stated = adapter.config.rank_of(part.module)
    if part.is_lora and stated != part.rank:
        reason = f"its rank is {part.rank:,} in the file and {stated:,} in adapter_config.json"
        return UnusedTensor(part.up.name, reason, LoadEffect.REFUSED)
    return None


def _why_peft_ignores(part: AdapterPart, config: LoraConfig) -> str | None:
    """Why PEFT does not load a part; None if it does."""
    if part.kind is PartKind.BIAS and not config.lora_bias:
        return "adapter_config.json does not set lora_bias, so PEFT ignores it"
    if part.kind is PartKind.WHOLE:
        is_hidden = config.targets_module(part.module) and not (part.is_wrapped or config.saves_module(part.module))
        return "its module has a LoRA and is not in modules_to_save, so PEFT ignores it" if is_hidden else None
    is_target = config.targets_parameter(part.module) if part.is_parameter else config.targets_module(part.module)
    return None if is_target else "target_modules does not name its module, so PEFT ignores it"


def _without_idle_effect(entry: UnusedTensor, adapter: LoraAdapter, tensors: TensorIndex) -> UnusedTensor:
    """The entry, less an effect that it cannot have because PEFT puts no LoRA on its module."""
    is_loaded = adapter.config.targets_module(entry.module) and tensors.find(f"{entry.module}.weight") is not None
    return entry if entry.effect is LoadEffect.NONE or is_loaded else replace(entry, effect=LoadEffect.NONE)


def _scale(adapter: LoraAdapter, part: AdapterPart, server: Server) -> float:
    config = adapter.config
    if part.kind is PartKind.WHOLE:
        return 1.0
    rslora = config.rslora and server.rslora is Handling.HONOURED
    if server.scale == "patterns":
        return lora_scale(config.alpha_of(part.module), config.rank_of(part.module), rslora=rslora)
    rank = part.rank if server.scale == "tensor" and part.rank else config.rank
    return lora_scale(config.alpha, rank, rslora=rslora)


def _drop_incomplete_modules(
    placements: list[Placement], tensors: TensorIndex, server: Server
) -> tuple[list[Placement], list[UnusedTensor]]:
    """Without the modules that the adapter does not have in every layer."""
    missing: dict[str, set[int | None]] = {}
    for target in tensors.targets:
        if isinstance(target, Pair):
            missing.setdefault(target.module, set()).add(target.layer)
    for placement in placements:
        if isinstance(placement.target, Pair):
            missing[placement.target.module].discard(placement.target.layer)
    dropped = [x for x in placements if isinstance(x.target, Pair) and missing[x.target.module]]
    kept = [x for x in placements if x not in dropped]
    reason = f"the adapter lacks this module in some layers, so {server.title} drops it in all of them"
    return kept, [UnusedTensor(x.part.up.name, reason) for x in dropped]
