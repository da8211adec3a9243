"""Lets PEFT load an adapter into the base's class, on the meta device: first what would be written, then what was.

PEFT itself decides what it loads, so its rules for single architectures need not be repeated here: modules of a kind
that it does not load are left out, with its own words as the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from deltarank.adapters import CONFIG_FILE, WEIGHTS_FILE, whole_tensor_key
from deltarank.architectures import Architecture, LoadingClass, PeftLoad, UnknownClass, load_with_peft, peft_version
from deltarank.checkpoints import Checkpoint, open_checkpoint
from deltarank.errors import JobError
from deltarank.jobs.extract.assemble import AdapterWriter
from deltarank.jobs.extract.contents import AdapterContents
from deltarank.jobs.extract.layout import AdapterLayout, Target, UnfactoredTensor
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.jobs.extract.reasons import not_whole_in_peft, refused_by_peft
from deltarank.jobs.extract.result import AdapterMatrix, LoadCheck, SummedEnergy
from deltarank.results import Outcome, listing
from deltarank.servers import Server
from deltarank.tensor_names import EXPERT

Shape = tuple[int, ...]

_REFUSED = "refused"

_Group = tuple[str, str | None, bool]
"""Modules that PEFT treats alike: the last component of their path (or the kind of their tensor), their type, and
whether it is a parameter."""


@dataclass(frozen=True)
class PeftRefusals:
    """What PEFT does not load of a layout, and why, in the words for the budget.

    factors  groups of modules with factors
    whole    groups of modules that are carried whole
    """

    factors: Mapping[_Group, str]
    whole: Mapping[_Group, str]


@dataclass(frozen=True)
class TrialLoads:
    """Loads adapters that are not written yet, as if every tensor had changed."""

    names: ModuleNames
    finetune: Checkpoint

    def refusals(self, layout: AdapterLayout) -> PeftRefusals:
        """None if PEFT loads the whole layout, or the class is not known."""
        if isinstance(self.names.architecture, UnknownClass) or self._load(layout).is_complete:
            return PeftRefusals({}, {})
        groups: dict[_Group, list[Target]] = {}
        for target in layout.targets:
            groups.setdefault(self._group(target), []).append(target)
        bare = replace(layout, unfactored=(), zero_modules=())
        loads = {group: self._load(replace(bare, targets=_samples(each))) for group, each in groups.items()}
        good = [target for group, load in loads.items() if load.is_complete for target in groups[group]]
        refused = {group: refused_by_peft(peft_version(), load.refusal) for group, load in loads.items()}
        return PeftRefusals(
            {group: reason for group, reason in refused.items() if not loads[group].is_complete},
            dict(self._refused_whole(replace(bare, targets=_samples(good)), layout.unfactored)) if good else {},
        )

    def _refused_whole(
        self, layout: AdapterLayout, tensors: Sequence[UnfactoredTensor]
    ) -> Iterator[tuple[_Group, str]]:
        """
        Args:
            layout: one that PEFT loads.
        """
        carried = tuple(tensor for tensor in tensors if tensor.whole_module)
        if self._load(replace(layout, unfactored=carried)).is_complete:
            return
        groups: dict[_Group, list[UnfactoredTensor]] = {}
        for tensor in carried:
            groups.setdefault(self._group_of_whole(tensor), []).append(tensor)
        for group, each in groups.items():
            load = self._load(replace(layout, unfactored=tuple(each)))
            if not load.is_complete:
                yield group, not_whole_in_peft(peft_version(), load.refusal)

    def without(self, layout: AdapterLayout, refusals: PeftRefusals) -> AdapterLayout:
        """The layout with what PEFT refuses left out."""
        reasons = {
            target.pair.name: refusals.factors[group]
            for target in layout.targets
            if (group := self._group(target)) in refusals.factors
        }
        refused = [target for target in layout.targets if target.pair.name in reasons]
        modules = {target.module for target in refused}
        left_out = [UnfactoredTensor(t.pair.name, _REFUSED, reasons[t.pair.name], t.pair) for t in refused]
        unfactored = [self._uncarried(tensor, modules, refusals) for tensor in layout.unfactored]
        targets = tuple(target for target in layout.targets if target.pair.name not in reasons)
        return replace(layout, targets=targets, unfactored=(*unfactored, *left_out))

    def _uncarried(self, tensor: UnfactoredTensor, modules: set[str], refusals: PeftRefusals) -> UnfactoredTensor:
        if tensor.whole_module and (reason := refusals.whole.get(self._group_of_whole(tensor))) is not None:
            return replace(tensor, whole_module=None, tied_head=None, reason=reason)
        if tensor.bias_of in modules:
            return replace(tensor, bias_of=None, reason="a bias of a module without factors")
        return tensor

    def _group(self, target: Target) -> _Group:
        if target.is_expert:
            return EXPERT, None, target.as_parameter
        return target.module_name, self.names.module_type(target.pair.base.tensor), target.as_parameter

    def _group_of_whole(self, tensor: UnfactoredTensor) -> _Group:
        name = tensor.pair.base.tensor if tensor.pair else tensor.name
        return tensor.kind, self.names.module_type(name), False

    def _load(self, layout: AdapterLayout) -> PeftLoad:
        assert isinstance(self.names.architecture, Architecture)
        contents = AdapterContents(
            layout,
            {target.pair.name: _changed(target) for target in layout.targets},
            {tensor.name: SummedEnergy(tensor.name, 1.0) for tensor in layout.unfactored},
        )
        writer = AdapterWriter(contents, self.names, self.finetune, torch.bfloat16, Path)
        shapes = {tensor.name: tensor.shape for tensor in writer.tensors}
        return _load(self.names.architecture.model_class, writer.config, shapes)


def _load(model_class: LoadingClass, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> PeftLoad:
    """A vocabulary that grew is loaded on a base that was resized, as the notes of the adapter say."""
    known = {whole_tensor_key(name): shape for name, shape in model_class.parameters.items()}
    grown = (
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2 and name in known and shape[1:] == known[name][1:] and shape[0] > known[name][0]
    )
    return _load_once(model_class, json.dumps(config), tuple(shapes.items()), max(grown, default=None))


@lru_cache(maxsize=2)  # with thousands of experts a load takes half a minute, and often all that was planned is written
def _load_once(
    model_class: LoadingClass, config: str, shapes: tuple[tuple[str, Shape], ...], vocabulary: int | None
) -> PeftLoad:
    return load_with_peft(model_class, json.loads(config), dict(shapes), vocabulary=vocabulary)


def _samples(targets: Sequence[Target]) -> tuple[Target, ...]:
    """One module stands for its group, but of experts PEFT wants all."""
    return tuple(targets if any(target.is_expert for target in targets) else targets[:1])


def _changed(target: Target) -> AdapterMatrix:
    pair = target.pair
    return AdapterMatrix(pair.name, target.module, pair.layer, pair.module, pair.shape, Outcome.MEASURED, target.rank)


def check_written(folder: Path, architecture: Architecture | UnknownClass, server: Server) -> LoadCheck:
    """Loads the files of an adapter.

    Raises:
        JobError: (slug "adapter-does-not-load") PEFT does not load all of it, and the server is to be PEFT.
    """
    if isinstance(architecture, UnknownClass):
        return LoadCheck(checked=False, reason=architecture.reason)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    with open_checkpoint(folder / WEIGHTS_FILE) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    name = architecture.model_class.name
    load = _load(architecture.model_class, config, shapes)
    reason = None if load.is_complete else _what_fails(load)
    if reason is not None and server.includes_peft:
        raise JobError(
            f"PEFT {peft_version()} does not load the adapter into {name}: {reason}. It is not kept.",
            cure="Leave these modules out with --exclude, or choose another --server.",
            slug="adapter-does-not-load",
        )
    return LoadCheck(checked=True, loads=load.is_complete, model_class=name, peft_version=peft_version(), reason=reason)


def _what_fails(load: PeftLoad) -> str:
    if load.refusal is not None:
        return f"it fails with {load.refusal}"
    parts = [f"it ignores {listing(list(load.unused), most=3)}"] if load.unused else []
    parts += [f"it finds nothing for {listing(list(load.missing), most=3)}"] if load.missing else []
    return " and ".join(parts)
