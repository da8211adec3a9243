"""What an adapter adds to each tensor, as PEFT or a given server adds it.

PEFT itself says what it loads where the class of the base is known; its other behaviour was read in peft 0.21, and the
tests compare with PEFT. The behaviour of servers is in servers.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from deltarank.adapters.config_read import lora_scale
from deltarank.adapters.file_names import CONFIG_FILE
from deltarank.adapters.notes import notes_on_semantics, notes_on_targets
from deltarank.adapters.parts import AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.peft_reading import read_as_peft
from deltarank.adapters.peft_rules import names_fused_by_peft, unsaved_modules, why_peft_ignores
from deltarank.adapters.placing import EXPERTS, NO_TENSOR, Placed, Placer
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import AdapterReading
from deltarank.adapters.server_reading import read_as_mlx, read_as_server
from deltarank.adapters.server_refusals import handling_of
from deltarank.adapters.targets import Placement, Target, TensorIndex
from deltarank.adapters.unloaded import Unloaded, find_unloaded, meant_target
from deltarank.checkpoints import Checkpoint, Pair, SummedTensor, dimensions, quoted
from deltarank.errors import AdapterError
from deltarank.results import count
from deltarank.servers import PEFT, Handling, Server, get_server

SAVE_AGAIN = "Download or copy the adapter again, or save it again with PEFT's `save_pretrained`."


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
    untied           output heads that the base shares with its embedding, where the adapter changes only one of them;
                     before the changes, they have the values of the embedding
    unloaded         why its reader loads nothing of it, or not all of its LoRAs; None if it does
    """

    changes: Mapping[str, tuple[Change, ...]]
    unused: tuple[UnusedTensor, ...]
    notes: tuple[str, ...]
    biases: tuple[NewBias, ...] = ()
    untied: tuple[SummedTensor, ...] = ()
    unloaded: Unloaded | None = None

    @property
    def loads_nothing(self) -> bool:
        return not self.changes and not self.biases

    def check_loads_in_peft(self) -> None:
        """Raises AdapterError where PEFT would not apply it as it is.

        Slug "adapter-loads-nothing": PEFT ignores all of it. Slug "adapter-refused": PEFT would not load it, or fill
        gaps with random numbers.
        """
        for entry in self.unused:
            if entry.effect is not LoadEffect.NONE:
                alike = sum(each.reason == entry.reason or each.cure == entry.cure != "" for each in self.unused) - 1
                more = f" (and {count(alike, 'other tensor')} like it)" if alike else ""
                raise AdapterError(
                    f"PEFT does not load this adapter correctly: {quoted(entry.name)}: {entry.reason}{more}.",
                    cure=entry.cure or SAVE_AGAIN,
                    slug="adapter-refused",
                )
        if self.unloaded is not None and self.loads_nothing:
            raise AdapterError(self.unloaded.sentence, cure=self.unloaded.cure, slug="adapter-loads-nothing")

    def left_out_biases(self, adapter: LoraAdapter) -> list[str]:
        """A note for callers that cannot add new biases."""
        number = sum(not adapter.is_padding(bias.part.up.name) for bias in self.biases)
        note = f"{count(number, 'bias', 'biases')} of the adapter left out: the base has no bias in these modules"
        return [note] if number else []


def apply_adapter(adapter: LoraAdapter, targets: Iterable[Target], *, server: str | None, base: Checkpoint) -> Applied:
    """Finds what an adapter changes in the tensors that two checkpoints share. No tensor is read.

    Args:
        server: the server whose rules apply; None: PEFT.
        base: the checkpoint that the adapter is put on.

    Raises:
        UsageError: (slug "bad-server") there is no such server.
        AdapterError: (slug "adapter-refused") the server does not load this adapter; (slug "adapter-wrong-base")
            most of it fits nothing here; (slug "adapter-empty") it has no usable tensor.
    """
    rules = get_server(server or PEFT)
    targets = tuple(targets)
    if adapter.is_mlx:
        reading = read_as_mlx(adapter, base, server)
    else:
        reading = read_as_peft(adapter, base) if rules.is_peft else read_as_server(adapter, base, rules)
    return _Application(adapter, reading, TensorIndex(targets, reading.names), rules, base).result()


class _Application:
    """One adapter on one base, as one reader applies it."""

    def __init__(
        self, adapter: LoraAdapter, reading: AdapterReading, tensors: TensorIndex, rules: Server, base: Checkpoint
    ) -> None:
        self._whole, self._adapter, self._reading = adapter, reading.adapter, reading
        self._tensors, self._rules, self._base = tensors, rules, base
        tied = reading.names.tied if rules.is_peft else {}
        self._placer = Placer(tensors, tied, adapter.config, base.config)

    def result(self) -> Applied:
        placed = self._placer.place(self._adapter.parts)
        kept, ignored = self._kept(placed)
        biases, unused_biases = self._new_biases()
        lost = (*self._adapter.unused, *placed.unused, *ignored)
        unloaded = find_unloaded(self._whole, self._reading, lost, kept, self._placer, self._tensors)
        self._check_base(placed)
        changes: dict[str, tuple[Change, ...]] = {}
        for placement in sorted(kept, key=lambda each: each.part.is_lora):
            earlier = changes.get(placement.target.name, ())
            changes[placement.target.name] = (*earlier, Change(placement, self._scale(placement.part)))
        mine = [_without_idle_effect(entry, self._adapter, self._tensors) for entry in self._adapter.unused]
        if self._rules.is_peft and not self._reading.is_exact:
            mine += unsaved_modules(self._adapter, self._base)
        unused = (*mine, *placed.unused, *unused_biases, *ignored)
        if not self._whole.parts and not any(entry.effect is LoadEffect.REFUSED for entry in unused):
            _raise_empty(self._whole)
        if self._reading.refusal and not any(entry.effect is LoadEffect.REFUSED for entry in unused):
            reason = f"PEFT refuses it: {self._reading.refusal}"
            unused = (*unused, UnusedTensor(CONFIG_FILE, reason, LoadEffect.REFUSED))
        notes = (
            *self._reading.notes,
            *notes_on_semantics(self._adapter, self._rules),
            *notes_on_targets(self._whole, self._tensors),
        )
        untied = self._placer.untied_by(kept)
        return Applied(changes, tuple(dict.fromkeys(unused)), notes, tuple(biases), untied, unloaded)

    def _kept(self, placed: Placed) -> tuple[list[Placement], list[UnusedTensor]]:
        """The placements that the reader honours, and the parts that it ignores."""
        fused = names_fused_by_peft(self._base)
        kept: list[Placement] = []
        ignored: list[UnusedTensor] = []
        for placement in placed.placements:
            entry = self._why_ignored(placement.part, fused)
            if entry is None:
                kept.append(placement)
            else:
                ignored.append(entry)
        if self._rules.needs_every_layer:
            kept, dropped = _drop_incomplete_modules(kept, self._tensors, self._rules)
            ignored += dropped
        return kept, ignored

    def _why_ignored(self, part: AdapterPart, fused: frozenset[str]) -> UnusedTensor | None:
        """Why a part that fits changes nothing; None if it does change its tensor."""
        if not self._rules.is_peft:
            is_honoured = handling_of(part, self._rules) is Handling.HONOURED
            return None if is_honoured else UnusedTensor(part.up.name, f"{self._rules.title} ignores it")
        return None if self._reading.is_exact else why_peft_ignores(part, self._adapter.config, fused)

    def _new_biases(self) -> tuple[list[NewBias], list[UnusedTensor]]:
        """The biases of LoRAs on modules that have no bias in the checkpoints."""
        biases: list[NewBias] = []
        unused: list[UnusedTensor] = []
        for part in self._adapter.parts:
            weight = self._placer.weight_beside(part)
            if weight is None or self._placer.find(part) is not None:
                continue
            entry = self._why_ignored(part, frozenset())
            if entry is None and part.up.shape not in {(side,) for side in weight.base.shape}:
                reason = f"{dimensions(part.up.shape)} does not fit {dimensions(weight.shape)}"
                entry = UnusedTensor(part.up.name, reason, LoadEffect.REFUSED)
            if entry is None:
                biases.append(NewBias(part, weight, self._scale(part)))
            else:
                unused.append(entry)
        return biases, unused

    def _check_base(self, placed: Placed) -> None:
        """Raises AdapterError if less than half of the parts that should have a place have one."""
        read = {part.up.name for part in self._adapter.parts}
        ignored = [part for part in self._whole.parts if part.up.name not in read and EXPERTS not in part.module]
        lost = (*placed.unused, *(UnusedTensor(part.up.name, NO_TENSOR) for part in ignored))
        parts = {part.up.name: part for part in self._whole.parts}
        lost = tuple(entry for entry in lost if not entry.cure)
        strange = [entry for entry in lost if entry.reason != NO_TENSOR or self._is_strange(parts.get(entry.name))]
        if strange and len(placed.placements) <= len(strange):
            _raise_wrong_base(self._adapter, strange, len(placed.placements) + len(strange))

    def _is_strange(self, part: AdapterPart | None) -> bool:
        """Whether the base has nothing that a part could have been made for."""
        if part is not None and self._placer.needs_no_place(part):
            return False
        return part is None or meant_target(part, self._placer, self._tensors) is None

    def _scale(self, part: AdapterPart) -> float:
        config, rules = self._adapter.config, self._rules
        if part.kind is PartKind.WHOLE:
            return 1.0
        rslora = config.rslora and rules.rslora is Handling.HONOURED
        if rules.scale == "patterns":
            return lora_scale(config.alpha_of(part.module), config.rank_of(part.module), rslora=rslora)
        rank = part.rank if rules.scale == "tensor" and part.rank else config.rank
        return lora_scale(config.alpha, rank, rslora=rslora)


def _raise_empty(adapter: LoraAdapter) -> NoReturn:
    first = adapter.unused[0] if adapter.unused else UnusedTensor("the file", "it contains no tensor")
    raise AdapterError(
        f"The adapter changes nothing: {quoted(first.name)}: {first.reason}.",
        cure="Give an adapter that PEFT's `save_pretrained` wrote.",
        slug="adapter-empty",
    )


def _raise_wrong_base(adapter: LoraAdapter, unused: Sequence[UnusedTensor], parts: int) -> NoReturn:
    example = f"such as {quoted(unused[0].name)}: {unused[0].reason}"
    raise AdapterError(
        f"This adapter does not belong to this base: {len(unused):,} of {count(parts, 'part')} match no "
        f"tensor of the base, {example}.",
        cure=f"Give the base that it was made for; its adapter_config.json names {adapter.config.base or 'none'}.",
        slug="adapter-wrong-base",
    )


def _without_idle_effect(entry: UnusedTensor, adapter: LoraAdapter, tensors: TensorIndex) -> UnusedTensor:
    """The entry, less an effect that it cannot have because PEFT puts no LoRA on its module."""
    is_loaded = adapter.config.targets_module(entry.module) and tensors.find(f"{entry.module}.weight") is not None
    return entry if entry.effect is LoadEffect.NONE or is_loaded else replace(entry, effect=LoadEffect.NONE)


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
