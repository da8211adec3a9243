"""What an adapter adds to each tensor: as PEFT adds it, or as a server would, mistakes included.

What PEFT does was read in peft 0.21 and is held against PEFT itself in the tests. What servers do stands in
servers.json, as read in their sources; none of them was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from deltarank.adapters.config_read import LoraConfig, lora_scale
from deltarank.adapters.read import AdapterPart, LoadEffect, LoraAdapter, PartKind, UnusedTensor
from deltarank.adapters.server_semantics import (
    IGNORES,
    TAKES,
    ServerSemantics,
    check_loadable,
    handling_of,
    semantics_of,
)
from deltarank.adapters.target_parameters import expand_parameters
from deltarank.adapters.targets import Placement, Target, TensorIndex, place_part
from deltarank.checkpoints import Pair, parse_expert_name
from deltarank.errors import AdapterError
from deltarank.results import count, listing
from deltarank.servers import kind_of_tensor, modules_fused_by_peft, router_in_files

_HEADS = frozenset({"lm_head.weight"})
_APART = "the checkpoints have all experts of a layer in one tensor, and this is for a single one"
_NO_TENSOR = "the checkpoints have no such tensor in common"


@dataclass(frozen=True)
class Change:
    """A part that is added, and by what its product is multiplied (1 for what is no product)."""

    placement: Placement
    scale: float


@dataclass(frozen=True)
class NewBias:
    """A bias for a module that has none in the checkpoints (`lora_bias`). `beside` is that module's matrix."""

    part: AdapterPart
    beside: Target
    scale: float


@dataclass(frozen=True)
class Applied:
    """An adapter laid over two checkpoints, from headers alone.

    changes          by the name of the tensor that they change, in the order in which they are added
    biases           what is added beside what the checkpoints have
    unused           what of the file changes nothing, and why
    notes            what the server does otherwise than PEFT, a sentence each
    """

    changes: Mapping[str, tuple[Change, ...]]
    unused: tuple[UnusedTensor, ...]
    notes: tuple[str, ...]
    biases: tuple[NewBias, ...] = ()

    def refuse_broken(self) -> None:
        """Raises AdapterError (slug "adapter-refused") where PEFT would load nothing of it, or random numbers."""
        for entry in self.unused:
            if entry.effect is not LoadEffect.NONE:
                raise AdapterError(
                    f"PEFT does not load this adapter as it is: {ascii(entry.name)[1:-1]}: {entry.reason}.",
                    cure="Download or copy the adapter again, or save it again with PEFT's `save_pretrained`.",
                    slug="adapter-refused",
                )

    def notes_on_biases(self, adapter: LoraAdapter) -> list[str]:
        """For whoever has no place for them."""
        number = sum(not adapter.is_padding(bias.part.up.name) for bias in self.biases)
        left = f"{count(number, 'bias', 'biases')} of the adapter left out: the base has none to add to"
        return [left] if number else []


def apply_adapter(
    adapter: LoraAdapter, targets: Iterable[Target], *, server: str | None, config: Mapping[str, Any]
) -> Applied:
    """Lays an adapter over the tensors that two checkpoints share.

    Args:
        server: whose semantics count; None is PEFT.
        config: config.json of the base.

    Raises:
        UsageError: (slug "bad-server") there is no such server.
        AdapterError: (slug "adapter-refused") the server does not load this; (slug "adapter-wrong-base") most of it
            fits nothing here.
    """
    semantics = semantics_of(server)
    check_loadable(adapter, semantics)
    tensors = TensorIndex(targets)
    placements, unused = _land_all(adapter, tensors, config)
    biases, unread = _new_biases(adapter, tensors, semantics)
    unused += unread
    kept: list[Placement] = []
    confused = _confused(tensors, config)
    for placement in placements:
        entry = _why_not(adapter, placement.part, semantics, confused)
        if entry is None:
            kept.append(placement)
        else:
            unused.append(entry)
    if semantics.all_layers:
        kept, dropped = _whole_types(kept, tensors, semantics)
        unused += dropped
    changes: dict[str, tuple[Change, ...]] = {}
    for placement in sorted(kept, key=lambda each: each.part.is_lora):
        before = changes.get(placement.target.name, ())
        changes[placement.target.name] = (*before, Change(placement, _scale(adapter, placement.part, semantics)))
    told = (*(_weighed(entry, adapter, tensors) for entry in adapter.unused), *unused)
    notes = (*_notes(adapter, semantics), *_untouched(adapter, tensors))
    return Applied(changes, tuple(dict.fromkeys(told)), notes, tuple(biases))


def _land_all(
    adapter: LoraAdapter, tensors: TensorIndex, config: Mapping[str, Any]
) -> tuple[list[Placement], list[UnusedTensor]]:
    """Raises AdapterError if more than half of the adapter lands nowhere."""
    placements: list[Placement] = []
    found_parts = list(expand_parameters(adapter.parts, adapter.config, tensors))
    unused = [each for each in found_parts if isinstance(each, UnusedTensor)]
    parts = [each for each in found_parts if isinstance(each, AdapterPart)]
    for part in parts:
        target = tensors.find(part.tensor) or tensors.find(_in_files(part, config))
        if target is None and adapter.config.ties and part.kind is PartKind.WHOLE and part.tensor in _HEADS:
            continue  # the copy of an embedding that the base's output head is tied to
        if target is None and _beside(part, tensors) is not None:
            continue  # see `_new_biases`
        found = (
            place_part(part, target, fan_in_fan_out=adapter.config.fan_in_fan_out, model_type=config.get("model_type"))
            if target is not None
            else _APART
            if _is_apart(part, tensors)
            else _NO_TENSOR
        )
        if isinstance(found, Placement):
            placements.append(found)
        else:
            harmless = target is None or _is_passed_over(part, adapter.config) or _may_be_longer(part, target)
            unused.append(UnusedTensor(part.up.name, found, LoadEffect.NONE if harmless else LoadEffect.REFUSED))
    if len(placements) <= len(unused):
        _refuse_stranger(adapter, unused, len(placements) + len(unused))
    return placements, unused


def _may_be_longer(part: AdapterPart, target: Target) -> bool:
    """Of two vocabularies the shorter one is compared: what is longer may fit the base all the same."""
    if kind_of_tensor(part.tensor) != "lm_head" or part.down is None:
        return False
    rows, columns = target.base.shape
    return part.up.shape[0] > rows and part.down.shape[1] == columns


def _is_apart(part: AdapterPart, tensors: TensorIndex) -> bool:
    """Whether a part is for a single expert of those that share a tensor."""
    expert = parse_expert_name(part.tensor)
    return expert is not None and bool(tensors.stacks_of(expert[0]))


def _new_biases(
    adapter: LoraAdapter, tensors: TensorIndex, semantics: ServerSemantics
) -> tuple[list[NewBias], list[UnusedTensor]]:
    """Biases beside the factors of modules that have none."""
    biases: list[NewBias] = []
    unused: list[UnusedTensor] = []
    for part in adapter.parts:
        beside = _beside(part, tensors)
        if beside is None or tensors.find(part.tensor) is not None:
            continue
        entry = _why_not(adapter, part, semantics, frozenset())
        if entry is None and part.up.shape not in {(side,) for side in beside.base.shape}:
            sides = " x ".join(map(str, part.up.shape)) or "a number"
            entry = UnusedTensor(
                part.up.name, f"{sides} does not fit {' x '.join(map(str, beside.shape))}", LoadEffect.REFUSED
            )
        if entry is None:
            biases.append(NewBias(part, beside, _scale(adapter, part, semantics)))
        else:
            unused.append(entry)
    return biases, unused


def _beside(part: AdapterPart, tensors: TensorIndex) -> Target | None:
    """The matrix of the module that a bias is for."""
    return tensors.find(f"{part.module}.weight") if part.kind is PartKind.BIAS else None


def _in_files(part: AdapterPart, config: Mapping[str, Any]) -> str:
    """PEFT knows routers by the names of modules, which are not always those in files."""
    module, _, leaf = part.tensor.rpartition(".")
    return f"{router_in_files(module, config)}.{leaf}"


def _refuse_stranger(adapter: LoraAdapter, unused: list[UnusedTensor], parts: int) -> NoReturn:
    if not adapter.parts:
        first = adapter.unused[0] if adapter.unused else UnusedTensor("the file", "it holds no tensor")
        raise AdapterError(
            f"The adapter changes nothing: {ascii(first.name)[:120]}: {first.reason}.",
            cure="Give an adapter that PEFT's `save_pretrained` wrote.",
            slug="adapter-empty",
        )
    if unused[0].reason == _APART:
        raise AdapterError(
            f"{len(unused):,} of {count(parts, 'part')} of the adapter cannot be laid over these checkpoints, such as "
            f"{ascii(unused[0].name)[:120]}: {unused[0].reason}.",
            cure="Give a base or a finetune that holds its experts one by one, as most on the Hub do.",
            slug="adapter-experts-apart",
        )
    raise AdapterError(
        f"This adapter does not belong to this base: {len(unused):,} of {count(parts, 'part')} fit "
        f"nothing in it, such as {ascii(unused[0].name)[:120]}: {unused[0].reason}.",
        cure=f"Give the base that it was made for; its adapter_config.json names {adapter.config.base or 'none'}.",
        slug="adapter-wrong-base",
    )


def _confused(tensors: TensorIndex, config: Mapping[str, Any]) -> frozenset[str]:
    """The last words by which PEFT takes modules for experts; empty for a model that has none in its files."""
    has_experts = any(kind_of_tensor(target.base.tensor) == "expert" for target in tensors.targets)
    return modules_fused_by_peft(config) if has_experts else frozenset()


def _why_not(
    adapter: LoraAdapter, part: AdapterPart, semantics: ServerSemantics, confused: frozenset[str]
) -> UnusedTensor | None:
    """Why a part that fits changes nothing."""
    if not semantics.is_peft:
        ignored = handling_of(part, semantics) if not part.is_lora else semantics.stacks if part.slot else TAKES
        if part.kind is PartKind.EMBEDDING:
            ignored = semantics.inputs
        return None if ignored is TAKES else UnusedTensor(part.up.name, f"{semantics.title} passes it over")
    if (reason := _why_passed_over(part, adapter.config)) is not None:
        return UnusedTensor(part.up.name, reason)
    is_expert = kind_of_tensor(part.tensor) == "expert"
    if part.module.rpartition(".")[2] in confused and part.is_lora and not (part.bare or is_expert):
        reason = (
            "PEFT (0.21) takes modules of this name for single experts of such a model, and puts nothing on this one"
        )
        return UnusedTensor(part.up.name, reason)
    stated = adapter.config.rank_of(part.module)
    if part.is_lora and stated != part.rank:
        reason = f"of rank {part.rank:,} in the file and {stated:,} in adapter_config.json"
        return UnusedTensor(part.up.name, reason, LoadEffect.REFUSED)
    return None


def _is_passed_over(part: AdapterPart, config: LoraConfig) -> bool:
    return _why_passed_over(part, config) is not None


def _why_passed_over(part: AdapterPart, config: LoraConfig) -> str | None:
    """Why PEFT does not look at a part at all."""
    if part.kind is PartKind.BIAS and not config.lora_bias:
        return "adapter_config.json does not say lora_bias, so PEFT passes it over"
    if part.kind is PartKind.WHOLE:
        hidden = config.aims_at(part.module) and not (part.wrapped or config.saves(part.module))
        return "its module has a LoRA and is not in modules_to_save, so PEFT passes it over" if hidden else None
    aimed = config.aims_at_parameter(part.module) if part.bare else config.aims_at(part.module)
    return None if aimed else "target_modules does not name its module, so PEFT passes it over"


def _weighed(entry: UnusedTensor, adapter: LoraAdapter, tensors: TensorIndex) -> UnusedTensor:
    """What is half or of no shape harms only where PEFT would put it."""
    is_there = adapter.config.aims_at(entry.module) and tensors.find(f"{entry.module}.weight") is not None
    return entry if entry.effect is LoadEffect.NONE or is_there else replace(entry, effect=LoadEffect.NONE)


def _untouched(adapter: LoraAdapter, tensors: TensorIndex) -> Iterator[str]:
    """Matrices that the configuration aims at and that the file has nothing for."""
    config = adapter.config
    if config.targets.all or config.targets.unread or config.some_layers:
        return
    told = {tensors.find(part.tensor) for part in adapter.parts}
    told |= {tensors.find(f"{entry.module}.weight") for entry in adapter.unused if entry.module}
    names = [target.name.removesuffix(".weight") for target in tensors.targets if _is_linear(target)]
    found = [name for name in names if config.aims_at(name) and tensors.find(f"{name}.weight") not in told]
    if found:
        yield (
            f"target_modules names {count(len(found), 'matrix', 'matrices')} that the file has no factors for, so that "
            f"nothing is added there: {listing([ascii(name)[1:-1][:120] for name in found], most=3)}"
        )


def _is_linear(target: Target) -> bool:
    name = target.base.tensor
    return isinstance(target, Pair) and target.name.endswith(".weight") and kind_of_tensor(name) is None


def _scale(adapter: LoraAdapter, part: AdapterPart, semantics: ServerSemantics) -> float:
    config = adapter.config
    if part.kind is PartKind.WHOLE:
        return 1.0
    rslora = config.rslora and semantics.rslora is TAKES
    if semantics.scale == "patterns":
        return lora_scale(config.alpha_of(part.module), config.rank_of(part.module), rslora=rslora)
    rank = part.rank if semantics.scale == "tensor" and part.rank else config.rank
    return lora_scale(config.alpha, rank, rslora=rslora)


def _whole_types(
    placements: list[Placement], tensors: TensorIndex, semantics: ServerSemantics
) -> tuple[list[Placement], list[UnusedTensor]]:
    """Without the modules of which a layer is missing."""
    layers: dict[str, set[int | None]] = {}
    for target in tensors.targets:
        if isinstance(target, Pair):
            layers.setdefault(target.module, set()).add(target.layer)
    for placement in placements:
        if isinstance(placement.target, Pair):
            layers[placement.target.module].discard(placement.target.layer)
    dropped = [x for x in placements if isinstance(x.target, Pair) and layers[x.target.module]]
    kept = [x for x in placements if x not in dropped]
    reason = f"a layer of this module is missing, so {semantics.title} drops all of them"
    return kept, [UnusedTensor(x.part.up.name, reason) for x in dropped]


def _notes(adapter: LoraAdapter, semantics: ServerSemantics) -> Iterator[str]:
    config = adapter.config
    if config.targets.unread or config.excluded.unread:
        yield "target_modules is an expression too involved to be run: every tensor of the file is taken as meant"
    if config.unknown:
        names = listing(list(config.unknown), most=3)
        yield f"adapter_config.json has fields that PEFT 0.21 does not know, and they were passed over: {names}"
    if config.alpha_pattern and semantics.scale != "patterns":
        yield (
            f"{semantics.title} passes alpha_pattern over{semantics.unless}: one alpha ({config.alpha:g}) for all "
            "matrices"
        )
    if config.rank_pattern and semantics.scale != "patterns":
        ranks = "the rank of each tensor" if semantics.scale == "tensor" else f"one rank ({config.rank})"
        yield f"{semantics.title} passes rank_pattern over{semantics.unless}: scales follow {ranks}"
    if config.rslora and semantics.rslora is IGNORES:
        yield f"{semantics.title} ignores use_rslora: it multiplies by alpha / r where alpha / sqrt(r) is meant"
