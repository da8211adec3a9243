"""PEFT's rules (0.21) for what it loads of an adapter, for where PEFT itself cannot be asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from deltarank.adapters.config_read import LoraConfig
from deltarank.adapters.keys import PREFIX, StoredKey, leaf, parse_key, whole_tensor_key
from deltarank.adapters.parts import NOT_LORA, AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.read import LoraAdapter
from deltarank.checkpoints import Checkpoint, quoted
from deltarank.servers import modules_fused_by_peft
from deltarank.tensor_names import EXPERT, kind_of_tensor

_DEFAULT_TARGETS = (
    "adapter_config.json has no target_modules, and PEFT's own list for this model type does not have its module"
)
_NO_LORA_BIAS = "adapter_config.json does not set lora_bias, so PEFT ignores it"
TAKEN_FOR_EXPERT = "PEFT (0.21) takes modules of this name for single experts in such a model, and does not apply it"
_LEFT_OUT_BY = {
    "target_modules": "target_modules does not name its module, so PEFT ignores it",
    "exclude_modules": "exclude_modules names its module, so PEFT ignores it",
    "modules_to_save": "modules_to_save names its module, so PEFT puts no LoRA there",
    "layers_to_transform": "layers_to_transform leaves out its layer, so PEFT ignores it",
}
NOT_APPLIED = "PEFT puts no LoRA on its module, although target_modules names it"
_HIDDEN = "its module has a LoRA and is not in modules_to_save, so PEFT ignores it"


def why_ignored(key: str, config: LoraConfig, modules: Collection[str], fused_names: frozenset[str]) -> str:
    """Why PEFT ignores a tensor that it knows no parameter for.

    Args:
        modules: those of the model.
        fused_names: from `names_fused_by_peft`.
    """
    parsed = parse_key(key)
    if parsed is None:
        return NOT_LORA
    if not parsed.has_prefix:
        return f"its name does not begin with {PREFIX}, so PEFT ignores it"
    if parsed.adapter_name not in ("", "default"):
        return f"it belongs to an adapter named {quoted(parsed.adapter_name)}; PEFT loads the one named `default`"
    if parsed.module not in modules:
        return f"PEFT ignores it: the model has no module {quoted(parsed.module)}"
    if isinstance(parsed, StoredKey):
        if not parsed.is_lora_bias:
            return _HIDDEN
        return _NO_LORA_BIAS if not config.lora_bias else _why_not_targeted(parsed.module, config)
    return TAKEN_FOR_EXPERT if leaf(parsed.module) in fused_names else _why_not_targeted(parsed.module, config)


def _why_not_targeted(module: str, config: LoraConfig) -> str:
    field = config.field_against(module)
    if not field:
        return NOT_APPLIED
    return _LEFT_OUT_BY[field] if config.has_targets or field != "target_modules" else _DEFAULT_TARGETS


def why_peft_ignores(part: AdapterPart, config: LoraConfig, fused_names: frozenset[str]) -> UnusedTensor | None:
    """Why PEFT does not load a part that has a place; None if it does.

    Args:
        fused_names: from `names_fused_by_peft`.
    """
    if (reason := _why_not_a_target(part, config)) is not None:
        return UnusedTensor(part.up.name, reason)
    is_expert = kind_of_tensor(part.tensor) == EXPERT
    if part.module.rpartition(".")[2] in fused_names and part.is_lora and not (part.is_parameter or is_expert):
        return UnusedTensor(part.up.name, TAKEN_FOR_EXPERT)
    stated = config.rank_of(part.module)
    if part.is_lora and stated != part.rank:
        reason = f"its rank is {part.rank:,} in the file and {stated:,} in adapter_config.json"
        return UnusedTensor(part.up.name, reason, LoadEffect.REFUSED)
    return None


def _why_not_a_target(part: AdapterPart, config: LoraConfig) -> str | None:
    if part.kind is PartKind.BIAS and not config.lora_bias:
        return _NO_LORA_BIAS
    if part.kind is PartKind.WHOLE:
        is_hidden = config.targets_module(part.module) and not (part.is_wrapped or config.saves_module(part.module))
        return _HIDDEN if is_hidden else None
    if part.is_parameter:
        return None if config.targets_parameter(part.module) else _LEFT_OUT_BY["target_modules"]
    field = config.field_against(part.module)
    return _LEFT_OUT_BY[field] if field else None


def unsaved_modules(adapter: LoraAdapter, base: Checkpoint) -> Iterator[UnusedTensor]:
    """The tensors of modules in `modules_to_save` that the file lacks: PEFT refuses an adapter without them."""
    config = adapter.config
    for tensor in base.tensors if config.modules_to_save else ():
        key = whole_tensor_key(tensor)
        if config.saves_module(tensor.rpartition(".")[0]) and key not in adapter.file.tensors:
            yield UnusedTensor(
                key, "modules_to_save names its module, and the file does not have it", LoadEffect.REFUSED
            )


def names_fused_by_peft(base: Checkpoint) -> frozenset[str]:
    """The last components of names that PEFT treats as experts; empty for a model that has no separate experts."""
    has_experts = any(kind_of_tensor(name) == EXPERT for name in base.tensors)
    return modules_fused_by_peft(base.config) if has_experts else frozenset()
