"""adapter_config.json: what PEFT and the servers read first."""

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
    """The configuration of an adapter with lora_alpha = r, so that every reader scales by 1.

    Args:
        base, revision: what it is to be loaded on.
        targets: `target_modules`.
        transposed: the targets store inputs x outputs.
        ranks: modules of another rank than `rank`; each with an alpha that is its rank.
        whole: `modules_to_save`.
        model: the model's own config.json.
        parameters: `target_parameters`, bare parameters that have factors.
        bias: `lora_bias`: each module of `targets` has a bias beside its factors.
        tied: `ensure_weight_tying`: an embedding in `whole` takes the output head along.
    """
    # Few readers know these, and some refuse what they do not know: they are named only where they are needed.
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
    """By the model's class; a language model where nothing is said, which is what servers serve."""
    classes = model.get("architectures")
    if not isinstance(classes, list) or not classes:
        return "CAUSAL_LM"
    names = [name for name in classes if isinstance(name, str)]
    return next((task for task, ends in _TASKS.items() if any(name.endswith(ends) for name in names)), None)
