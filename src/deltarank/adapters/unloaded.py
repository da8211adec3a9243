"""LoRAs of a file that its reader does not load: how many, why, and what makes it load them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.adapters.keys import FactorKey
from deltarank.adapters.parts import AdapterPart, UnusedTensor
from deltarank.adapters.peft_rules import NOT_APPLIED, TAKEN_FOR_EXPERT
from deltarank.adapters.placing import Placer
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import AdapterReading
from deltarank.adapters.targets import Placement, Target, TensorIndex
from deltarank.checkpoints import quoted
from deltarank.results import count

_NAMES_DO_NOT_HELP = (
    "Make one for PEFT with `deltarank extract --server peft`; `deltarank verify --server NAME` measures this one as "
    "the server NAME applies it."
)

_CURES = {
    "exclude_modules": "Remove its modules from exclude_modules of adapter_config.json.",
    "modules_to_save": "Remove its modules from modules_to_save of adapter_config.json.",
    "layers_to_transform": "Name its layers in layers_to_transform of adapter_config.json.",
}
"""By the field that leaves a module out."""


@dataclass(frozen=True)
class Unloaded:
    """LoRAs that belong to the base, and that the reader does not load.

    loaded, total  the LoRAs that it loads, and those of the file
    reader         "PEFT"
    example        the key of one that it does not load
    reason         why
    cure           what to rename, or to change in adapter_config.json
    """

    loaded: int
    total: int
    reader: str
    example: str
    reason: str
    cure: str

    @property
    def sentence(self) -> str:
        """The headline over an adapter of which nothing, or a part, is loaded."""
        which = (
            f"none of the {count(self.total, 'LoRA')}"
            if not self.loaded
            else f"{self.loaded:,} of the {self.total:,} LoRAs"
        )
        return f"{self.reader} loads {which} in this file: {quoted(self.example)}: {self.reason}."


def find_unloaded(
    adapter: LoraAdapter,
    reading: AdapterReading,
    unused: Sequence[UnusedTensor],
    kept: Sequence[Placement],
    placer: Placer,
    tensors: TensorIndex,
) -> Unloaded | None:
    """None if the reader loads every LoRA that has a tensor of such a name in the base.

    Args:
        adapter: with all parts of the file.
        unused: what the reader does not load, and why.
        kept: the parts that the reader applies.
    """
    applied = {placement.part.up.name for placement in kept if placement.part.is_lora}
    loras = {part.up.name: part for part in adapter.parts if part.is_lora}
    dead = [part for name, part in loras.items() if name not in applied]
    found = [(part, meant_target(part, placer, tensors)) for part in dead]
    meant = [(part, target) for part, target in found if target is not None]
    if not meant:
        return None
    part, target = meant[0]
    expected = reading.names.of_file(target.base.tensor)
    reasons = {entry.name: entry.reason for entry in unused}
    reason = reasons.get(part.up.name, f"{reading.reader} does not load it")
    is_unreachable = reason in (TAKEN_FOR_EXPERT, NOT_APPLIED)
    cure = _NAMES_DO_NOT_HELP if is_unreachable else _cure(part, expected.removesuffix(".weight"), reading)
    return Unloaded(len(applied & loras.keys()), len(loras), reading.reader, part.up.name, reason, cure)


def meant_target(part: AdapterPart, placer: Placer, tensors: TensorIndex) -> Target | None:
    """The target that a part was probably made for, whatever its keys look like."""
    target = placer.find(part) or tensors.find_similar(part.tensor)
    return target if target is not None and placer.fits(part, target) else None


def _cure(part: AdapterPart, module: str, reading: AdapterReading) -> str:
    is_embedding = part.kind.value == "embedding"
    old = FactorKey(part.module, False, is_embedding, part.has_prefix, part.adapter_name)
    new = FactorKey(module, False, is_embedding)
    if str(old) == str(new):
        field = reading.adapter.config.field_against(module)
        return _CURES.get(field, "Name its modules in target_modules of adapter_config.json.")
    before, after = _difference(str(old).split("."), str(new).split("."))
    cure = f"Rename {quoted(before)} in the keys of its file to {quoted(after)}, to get such as {quoted(str(new))}"
    is_named = reading.adapter.config.field_against(module) != "target_modules"
    also = "" if is_named else ", and name the modules likewise in target_modules"
    return f"{cure}{also}."


def _difference(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    """The parts of two names without what they have in common at the end; with one part that they share before."""
    same = 0
    while same < min(len(old), len(new)) - 1 and old[-1 - same] == new[-1 - same]:
        same += 1
    if same == 0 or len(old) - same > 8:
        return ".".join(old), ".".join(new)
    return ".".join(old[: len(old) - same]) + ".", ".".join(new[: len(new) - same]) + "."
