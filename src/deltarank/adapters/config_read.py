"""adapter_config.json, read as text from a stranger: what PEFT would make of it, or a refusal that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from deltarank.adapters.file_names import CONFIG_FILE
from deltarank.adapters.patterns import InvalidField, ModulePatterns, ModuleSelector, name_suffixes
from deltarank.errors import AdapterError
from deltarank.results import listing

MAX_CONFIG = 16_000_000
"""Bytes. A pattern for each of 70,000 experts takes about 7 MB."""

MOST_RANK = 1_000_000
MOST_ALPHA = 1e9

_MERGE = (
    "Merge it into its base with PEFT (`merge_and_unload`, then `save_pretrained`), and give that folder to "
    "`deltarank compare`."
)
_KINDS = {
    "use_dora": "DoRA, which also rescales the base's columns",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "a block-diagonal LoRA",
    "alora_invocation_tokens": "an activated LoRA, which works on some tokens and not on others",
    "kasa_config": "KaSA, which also truncates the base",
    "monteclora_config": "a LoRA that draws samples",
    "arrow_config": "a router over several LoRAs",
    "layer_replication": "a LoRA over a stack of repeated layers",
    "trainable_token_indices": "a LoRA with trained tokens of its own",
}
_MOVING = ("pissa", "olora", "corda", "lora_ga", "loftq", "mica")
"""Ways to begin that also move the base, or that PEFT repeats when it loads the adapter."""


_FIELDS = frozenset(
    {
        *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "velora_config", "qalora_group_size", "runtime_config", "lora_bias"),
        *("target_parameters", "ensure_weight_tying", *_KINDS),
    }
)
"""Of PEFT 0.21 and before. What a later one adds may move numbers."""


@dataclass(frozen=True)
class LoraConfig:
    """What of the configuration moves a number.

    rank, alpha      of every module that no pattern names
    targets          the modules that PEFT puts a LoRA on; a tensor for another one is passed over
    ties             an embedding that is saved whole takes the output head along, of which the file has a copy
    some_layers      targets are meant in some layers only (`layers_to_transform`)
    unknown          fields that no version of PEFT read here has, and that are set
    base             the model that it says it was made for; "" where it says none
    parameters       ends of the names of bare parameters that have a LoRA (`target_parameters`)
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
    ties: bool = False
    some_layers: bool = False
    unknown: tuple[str, ...] = ()
    base: str = ""

    @property
    def has_patterns(self) -> bool:
        return bool(self.rank_pattern) or bool(self.alpha_pattern)

    def rank_of(self, module: str) -> int:
        return int(self.rank_pattern.get(module, self.rank))

    def alpha_of(self, module: str) -> float:
        return self.alpha_pattern.get(module, self.alpha)

    def aims_at(self, module: str) -> bool:
        return self.targets.cover(module) and not (self.excluded and self.excluded.cover(module))

    def aims_at_parameter(self, name: str) -> bool:
        return any(end in self.parameters for end in name_suffixes(name))

    def saves(self, module: str) -> bool:
        """PEFT compares the ends of names, without a dot before them."""
        return any(module.endswith(name) for name in self.modules_to_save)


def lora_scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def parse_config(text: bytes) -> LoraConfig:
    """Raises AdapterError.

    adapter-bad-config: not the JSON of a configuration; adapter-not-lora: of another method;
    adapter-unsupported: of a LoRA that is more than scale * B A.
    """
    data = _object(text)
    _refuse_others(data)
    _refuse_unsupported(data)
    try:
        ranks, alphas = _mapping(data, "rank_pattern"), _mapping(data, "alpha_pattern")
        return LoraConfig(
            rank=_rank(data.get("r", 8), "r"),
            alpha=_number(data.get("lora_alpha", 8), "lora_alpha"),
            rslora=_flag(data, "use_rslora"),
            rank_pattern=ModulePatterns({k: _rank(v, "rank_pattern") for k, v in ranks.items()}),
            alpha_pattern=ModulePatterns({k: _number(v, "alpha_pattern") for k, v in alphas.items()}),
            fan_in_fan_out=_flag(data, "fan_in_fan_out"),
            bias=_word(data.get("bias", "none")),
            lora_bias=_flag(data, "lora_bias"),
            modules_to_save=_words(data, "modules_to_save"),
            targets=_globs(data, "target_modules", missing=True),
            excluded=_globs(data, "exclude_modules", missing=False),
            parameters=frozenset(_words(data, "target_parameters")),
            ties=_flag(data, "ensure_weight_tying"),
            base=ascii(base)[1:-1][:120] if isinstance(base := data.get("base_model_name_or_path"), str) else "",
            some_layers=data.get("layers_to_transform") is not None,
            unknown=tuple(ascii(name)[1:-1][:60] for name, value in data.items() if name not in _FIELDS and value),
        )
    except InvalidField as unfit:
        _refuse(f"its {unfit}")


def _object(text: bytes) -> Mapping[str, Any]:
    if len(text) > MAX_CONFIG:
        _refuse(f"it has more than {MAX_CONFIG:,} bytes")
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        _refuse("it is not JSON")
    if not isinstance(data, dict):
        _refuse("it is not a JSON object")
    return data


def _refuse_others(data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind is None:
        _refuse("it names no peft_type, such as LORA")
    if kind != "LORA":
        raise AdapterError(
            f"The adapter is of PEFT's type {ascii(kind)[:60]}; LORA is read.", cure=_MERGE, slug="adapter-not-lora"
        )


def _refuse_unsupported(data: Mapping[str, Any]) -> None:
    found = [f"`{field}`: {what}" for field, what in _KINDS.items() if data.get(field)]
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVING):
        found.append(f"`init_lora_weights` {ascii(start)[:40]}: it changes the base, too")
    if found:
        raise AdapterError(
            f"The adapter is more than a scaled product of two factors ({listing(found, most=3)}).",
            cure=_MERGE,
            slug="adapter-unsupported",
        )


def _rank(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_RANK:
        raise InvalidField(f"{field} is {ascii(value)[:40]}, which is no rank")
    return value


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_ALPHA:
        raise InvalidField(f"{field} is {ascii(value)[:40]}, which is no number that can be meant")
    return float(value)


def _flag(data: Mapping[str, Any], field: str) -> bool:
    value = data.get(field, False)
    if value not in (True, False, None):
        raise InvalidField(f"{field} is {ascii(value)[:40]}, which is neither true nor false")
    return bool(value)


def _word(value: object) -> str:
    if value not in ("none", "all", "lora_only"):
        raise InvalidField(f"bias is {ascii(value)[:40]}; PEFT knows none, all and lora_only")
    return str(value)


def _mapping(data: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = data.get(field) or {}
    if not isinstance(value, dict):
        raise InvalidField(f"{field} is no mapping of names")
    return value


def _words(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = data.get(field) or []
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise InvalidField(f"{field} is no list of names")
    return tuple(value)


def _globs(data: Mapping[str, Any], field: str, *, missing: bool) -> ModuleSelector:
    """`missing`: what a configuration without this field means."""
    value = data.get(field)
    if value is None:
        return ModuleSelector.everything() if missing else ModuleSelector.nothing()
    return ModuleSelector.pattern(value) if isinstance(value, str) else ModuleSelector.names(_words(data, field))


def _refuse(what: str) -> NoReturn:
    raise AdapterError(
        f"`{CONFIG_FILE}` cannot be understood: {what}.",
        cure="Download or copy the adapter again, or save it again with PEFT's `save_pretrained`.",
        slug="adapter-bad-config",
    ) from None
