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

_HEADS = ("classifier", "score", "qa_outputs")


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
    can_generate: bool = True,
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
        can_generate: whether the model's class writes text, as PEFT's class for causal language models wants.
        tied: `ensure_weight_tying`, whether an embedding in `whole` is also the output head.
    """
    # Few readers know these fields, and some refuse unknown ones, so they are written only where they are needed.
    rare = {"target_parameters": list(parameters), "lora_bias": bias, "ensure_weight_tying": tied}
    return {
        "peft_type": "LORA",
        "task_type": _task(model, whole, can_generate=can_generate),
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


def _task(model: Mapping[str, Any], whole: Sequence[str], *, can_generate: bool) -> str | None:
    """By the model's class; a causal language model if the class is not known, because servers serve those.

    PEFT's classes for heads on top of a model expect the head itself in the adapter: None without it, which fits every
    model.
    """
    classes = model.get("architectures")
    if not isinstance(classes, list) or not classes:
        return "CAUSAL_LM" if can_generate else None
    names = [name for name in classes if isinstance(name, str)]
    task = next((task for task, ends in _TASKS.items() if any(name.endswith(ends) for name in names)), None)
    is_served = can_generate if task == "CAUSAL_LM" else any(module in _HEADS for module in whole)
    return task if is_served else None
