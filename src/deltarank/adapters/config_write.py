"""The contents of adapter_config.json for an extracted adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TASKS = {
    "CAUSAL_LM": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "SEQ_CLS": ("ForSequenceClassification",),
    "TOKEN_CLS": ("ForTokenClassification",),
    "QUESTION_ANS": ("ForQuestionAnswering",),
}


def adapter_config(
    *,
    base: str,
    revision: str | None,
    rank: int,
    targets: Sequence[str],
    transposed: bool,
    ranks: Mapping[str, int],
    whole: Sequence[str],
    model: Mapping[str, Any],
    parameters: Sequence[str] = (),
    bias: bool = False,
    tied: bool = False,
) -> dict[str, Any]:
    """A configuration with lora_alpha = r, so that every reader scales the product B A by 1.

    Args:
        base, revision: the model that the adapter is for.
        targets: `target_modules`.
        transposed: whether the targets store inputs x outputs (`fan_in_fan_out`).
        ranks: modules with a rank other than `rank`; their alpha equals their rank.
        whole: `modules_to_save`.
        model: the model's own config.json.
        parameters: `target_parameters`, the bare parameters that have factors.
        bias: `lora_bias`, whether the modules in `targets` have a bias beside their factors.
        tied: `ensure_weight_tying`, whether an embedding in `whole` is also the output head.
    """
    # Few readers know these fields, and some refuse unknown ones, so they are written only where they are needed.
    rare = {"target_parameters": list(parameters), "lora_bias": bias, "ensure_weight_tying": tied}
    return {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "modules_to_save": list(whole) or None,
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(ranks),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        **{key: value for key, value in rare.items() if value},
    }


def _task(model: Mapping[str, Any]) -> str | None:
    """By the model's class; a causal language model if the class is not known, because servers serve those."""
    classes = model.get("architectures")
    if not isinstance(classes, list) or not classes:
        return "CAUSAL_LM"
    names = [name for name in classes if isinstance(name, str)]
    return next((task for task, ends in _TASKS.items() if any(name.endswith(ends) for name in names)), None)
