"""adapter_config.json as PEFT would read it. The file is untrusted: each field that is used is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from deltarank.adapters.file_names import CONFIG_FILE
from deltarank.adapters.layer_selection import ALL_LAYERS, LayerSelection
from deltarank.adapters.patterns import (
    InvalidFieldError,
    ModulePatterns,
    ModuleSelector,
    is_plain_name,
    name_suffixes,
)
from deltarank.checkpoints import refuse_pointer
from deltarank.errors import AdapterError
from deltarank.results import listing

MAX_CONFIG_SIZE = 16_000_000
"""In bytes. A pattern for each of 70,000 experts takes about 7 MB."""

_LONGEST_CLASS = 200
MAX_RANK = 1_000_000
MAX_ALPHA = 1e9

MERGE_CURE = (
    "Merge it into its base with PEFT (`merge_and_unload`, then `save_pretrained`), and give the merged folder to "
    "`deltarank compare`."
)
_UNSUPPORTED = {
    "use_dora": "DoRA, which also rescales the base's columns",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "a block-diagonal LoRA",
    "alora_invocation_tokens": "an activated LoRA, which applies to some tokens only",
    "kasa_config": "KaSA, which also truncates the base",
    "monteclora_config": "a Monte Carlo LoRA, which draws random samples",
    "arrow_config": "a router over several LoRAs",
    "layer_replication": "a LoRA over repeated layers",
    "trainable_token_indices": "a LoRA with trained token embeddings",
}
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
)
_NO_WEIGHTS = "It cannot be merged: such an adapter changes what the layers read, and no weight of the base."
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq", "mica")
"""Initialisations that also change the base, or that PEFT repeats when it loads the adapter."""


KNOWN_FIELDS = frozenset(
    {
        *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "velora_config", "qalora_group_size", "runtime_config", "lora_bias"),
        *("target_parameters", "ensure_weight_tying", *_UNSUPPORTED),
    }
)
"""The fields of PEFT up to 0.21. A field of a later version may change the numbers."""


_FOR_PEFT = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "exclude_modules", "modules_to_save", "bias"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_rslora"),
    *("lora_bias", "target_parameters", "ensure_weight_tying"),
)
"""The fields that decide which tensors PEFT loads, and where."""


@dataclass(frozen=True)
class LoraConfig:
    """The fields of the configuration that decide what is added to the base.

    rank, alpha      for modules that no pattern matches
    targets          the modules that PEFT puts a LoRA on; it ignores factors of any other module
    excluded         modules that are not targets, although `targets` matches them
    parameters       suffixes of the names of bare parameters that have a LoRA (`target_parameters`)
    ties_weights     what is done to an embedding is also done to the output head that the base ties to it
    layers           the layers whose modules are targets (`layers_to_transform`)
    task             `task_type`, which decides what PEFT saves beside the factors: "CAUSAL_LM"
    unknown          fields that are set and that no known version of PEFT has
    made_for         the class that `auto_mapping` names; "" if there is none
    base             the model that the adapter was made for, as it says; "" if it names none
    for_peft         the checked fields, as PEFT takes them
    """

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    fan_in_fan_out: bool
    bias: str
    lora_bias: bool
    modules_to_save: tuple[str, ...]
    targets: ModuleSelector
    excluded: ModuleSelector
    parameters: frozenset[str] = frozenset()
    ties_weights: bool = False
    layers: LayerSelection = ALL_LAYERS
    task: str = ""
    made_for: str = ""
    unknown: tuple[str, ...] = ()
    base: str = ""
    for_peft: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_safe_to_run(self) -> bool:
        """Whether PEFT can match all expressions in a reasonable time."""
        return not (self.targets.not_run or self.excluded.not_run)

    @property
    def has_targets(self) -> bool:
        return self.for_peft.get("target_modules") is not None

    @property
    def has_patterns(self) -> bool:
        return bool(self.rank_pattern) or bool(self.alpha_pattern)

    def rank_of(self, module: str) -> int:
        return int(self.rank_pattern.get(module, self.rank))

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.get(module, self.alpha)

    def targets_module(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on a module of this name, if the model has one."""
        return not self.field_against(module)

    def field_against(self, module: str) -> str:
        """The field of adapter_config.json that keeps PEFT from putting a LoRA on a module; "" if none does."""
        if not self.targets.matches(module):
            return "target_modules"
        if self.excluded and self.excluded.matches(module):
            return "exclude_modules"
        if self._is_in_saved_module(module):
            return "modules_to_save"
        return "" if self.layers.has(module) else "layers_to_transform"

    def _is_in_saved_module(self, module: str) -> bool:
        """Whether a module in `modules_to_save` is this one or contains it; PEFT puts no LoRA there."""
        parts = f".{module}."
        return any(f".{name}." in parts for name in self.modules_to_save)

    def targets_parameter(self, name: str) -> bool:
        return any(suffix in self.parameters for suffix in name_suffixes(name))

    def saves_module(self, module: str) -> bool:
        """Whether `modules_to_save` names it. PEFT compares the ends of names, with or without a dot before them."""
        return any(module.endswith(name) for name in self.modules_to_save)


def lora_scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def parse_config(text: bytes) -> LoraConfig:
    """Reads the text of an adapter_config.json.

    Raises:
        HeaderError: (slug "lfs-pointer") it is a Git LFS pointer.
        AdapterError: (slug "adapter-bad-config") the text is not the JSON of a configuration; (slug
            "adapter-not-lora") the adapter is not a LoRA; (slug "adapter-unsupported") it is a LoRA that is more than
            scale * B A.
    """
    data = parse_object(text)
    _check_is_lora(data)
    _check_is_supported(data)
    try:
        ranks, alphas = _read_mapping(data, "rank_pattern"), _read_mapping(data, "alpha_pattern")
        return LoraConfig(
            rank=_check_rank(data.get("r", 8), "r"),
            alpha=_check_number(data.get("lora_alpha", 8), "lora_alpha"),
            rslora=_read_flag(data, "use_rslora"),
            rank_pattern=ModulePatterns({k: _check_rank(v, "rank_pattern") for k, v in ranks.items()}),
            alpha_pattern=ModulePatterns({k: _check_number(v, "alpha_pattern") for k, v in alphas.items()}),
            fan_in_fan_out=_read_flag(data, "fan_in_fan_out"),
            bias=_check_bias(data.get("bias", "none")),
            lora_bias=_read_flag(data, "lora_bias"),
            modules_to_save=_read_saved(data),
            targets=_read_selector(data, "target_modules", default=ModuleSelector(selects_all=True)),
            excluded=_read_selector(data, "exclude_modules", default=ModuleSelector()),
            parameters=frozenset(_read_names(data, "target_parameters")),
            ties_weights=_read_flag(data, "ensure_weight_tying"),
            base=ascii(base)[1:-1][:120] if isinstance(base := data.get("base_model_name_or_path"), str) else "",
            layers=LayerSelection.read(data),
            task=task if isinstance(task := data.get("task_type"), str) else "",
            made_for=_read_class(data),
            for_peft={name: data[name] for name in _FOR_PEFT if name in data},
            unknown=tuple(ascii(name)[1:-1][:60] for name, value in data.items() if name not in KNOWN_FIELDS and value),
        )
    except InvalidFieldError as error:
        _raise_bad_config(str(error))


def parse_object(text: bytes) -> Mapping[str, Any]:
    """Raises AdapterError (slug "adapter-bad-config") for a text that is no JSON object, HeaderError for a pointer."""
    refuse_pointer(text, CONFIG_FILE)
    if len(text) > MAX_CONFIG_SIZE:
        _raise_bad_config(f"it has more than {MAX_CONFIG_SIZE:,} bytes")
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        _raise_bad_config("it is not JSON")
    if not isinstance(data, dict):
        _raise_bad_config("it is not a JSON object")
    return data


def _check_is_lora(data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind is None:
        _raise_bad_config('it has no peft_type, such as "LORA"')
    if kind != "LORA":
        raise AdapterError(
            f"The adapter has the PEFT type {ascii(kind)[:60]}; only LORA is supported.",
            cure=_NO_WEIGHTS if isinstance(kind, str) and kind in _PROMPTS else MERGE_CURE,
            slug="adapter-not-lora",
        )


def _check_is_supported(data: Mapping[str, Any]) -> None:
    reasons = [f"`{field}`: {what}" for field, what in _UNSUPPORTED.items() if data.get(field)]
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        reasons.append(f"`init_lora_weights` {ascii(start)[:40]}: it also changes the base")
    if reasons:
        raise AdapterError(
            f"The adapter is more than a scaled product of two factors ({listing(reasons, most=3)}).",
            cure=MERGE_CURE,
            slug="adapter-unsupported",
        )


def _check_rank(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise InvalidFieldError(f"{field} is {ascii(value)[:40]}; a whole number from 1 to {MAX_RANK:,} was expected")
    return value


def _check_number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
        raise InvalidFieldError(f"{field} is {ascii(value)[:40]}; a number of at most {MAX_ALPHA:g} was expected")
    return float(value)


def _read_flag(data: Mapping[str, Any], field: str) -> bool:
    value = data.get(field, False)
    if value not in (True, False, None):
        raise InvalidFieldError(f"{field} is {ascii(value)[:40]}; true or false was expected")
    return bool(value)


def _check_bias(value: object) -> str:
    if value not in ("none", "all", "lora_only"):
        raise InvalidFieldError(f"bias is {ascii(value)[:40]}; none, all or lora_only was expected")
    return str(value)


def _read_mapping(data: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = data.get(field) or {}
    if not isinstance(value, dict):
        raise InvalidFieldError(f"{field} is not a mapping from names to numbers")
    return value


def _read_names(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = data.get(field) or []
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise InvalidFieldError(f"{field} is not a list of names")
    return tuple(value)


def _read_class(data: Mapping[str, Any]) -> str:
    mapping = data.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return name if isinstance(name, str) and len(name) < _LONGEST_CLASS and name.isidentifier() else ""


def _read_saved(data: Mapping[str, Any]) -> tuple[str, ...]:
    """PEFT runs these names as expressions, in which a dot stands for any letter; any other expression is refused."""
    names = _read_names(data, "modules_to_save")
    if not all(is_plain_name(name) for name in names):
        raise InvalidFieldError(f"modules_to_save has names that are expressions: {ascii(list(names))[:60]}")
    return names


def _read_selector(data: Mapping[str, Any], field: str, *, default: ModuleSelector) -> ModuleSelector:
    value = data.get(field)
    if value is None:
        return default
    if isinstance(value, str):
        return ModuleSelector.from_expression(value)
    return ModuleSelector(suffixes=frozenset(_read_names(data, field)))


def _raise_bad_config(reason: str) -> NoReturn:
    raise AdapterError(
        f"`{CONFIG_FILE}` is invalid: {reason}.",
        cure="Download or copy the adapter again, or save it again with PEFT's `save_pretrained`.",
        slug="adapter-bad-config",
    ) from None
