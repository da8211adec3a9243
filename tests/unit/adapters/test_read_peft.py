"""An adapter adds what PEFT adds: compared with PEFT's own merge, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import peft_adapters as made
from deltarank.adapters import LoraUpdate, UnusedTensor, apply_adapter, open_adapter
from deltarank.checkpoints import open_checkpoint, pair_checkpoints

QKV = ["q_proj", "v_proj"]
CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "plain": (made.llama, {"r": 4, "lora_alpha": 4, "target_modules": QKV}),
    "alpha is not r": (made.llama, {"r": 4, "lora_alpha": 22, "target_modules": QKV}),
    "all linear": (made.llama, {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}),
    "rank-stabilised": (made.llama, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": QKV}),
    "patterns": (
        made.llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": [*QKV, "up_proj"],
            "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "(q|v)_proj": 5},
        },
    ),
    "patterns, rank-stabilised": (
        made.llama,
        {"r": 4, "use_rslora": True, "target_modules": QKV, "rank_pattern": {"1.self_attn.q_proj": 9}},
    ),
    "an expression for targets": (made.llama, {"r": 2, "target_modules": r".*layers\.1\.mlp\.(up|down)_proj"}),
    "excluded": (made.llama, {"r": 2, "target_modules": QKV, "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    "modules to save": (made.llama, {"r": 2, "target_modules": QKV, "modules_to_save": ["lm_head", "norm"]}),
    "embedding": (made.llama, {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]}),
    "head": (made.llama, {"r": 2, "target_modules": ["q_proj", "lm_head"]}),
    "lora bias": (made.qwen2, {"r": 2, "lora_alpha": 6, "target_modules": QKV, "lora_bias": True}),
    "all biases": (made.qwen2, {"r": 2, "target_modules": QKV, "bias": "all"}),
    "biases of LoRAs": (made.qwen2, {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only"}),
    "Conv1D": (made.gpt2, {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D that the configuration denies": (made.gpt2, {"r": 3, "target_modules": ["attn.c_proj"]}),
}


def added(base: Path, tuned: Path, adapter: Path) -> tuple[dict[str, Tensor], tuple[UnusedTensor, ...]]:
    """L of every tensor that changes, a few rows at a time; and the tensors that change nothing."""
    whole = {}
    with open_adapter(adapter) as lora, open_checkpoint(base) as before, open_checkpoint(tuned) as after:
        pairing = pair_checkpoints(before, after)
        targets = (*pairing.pairs, *pairing.summed)
        applied = apply_adapter(lora, targets, server=None, base=before)
        shapes = {target.name: target.shape for target in targets}
        for name, changes in applied.changes.items():
            update = LoraUpdate(lora, changes, device=torch.device("cpu"), dtype=torch.float64)
            rows = made.tensors(base)[name].double().reshape(changes[0].placement.target.base.shape)
            parts = [update.rows(first, rows[first : first + 5]) for first in range(0, len(rows), 5)]
            whole[name] = torch.cat(parts).reshape(shapes[name])
    return whole, applied.unused


def assert_equals_merge(found: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    for name, weight in before.items():
        truth = after[name].double() - weight.double()
        assert float((found.get(name, torch.zeros_like(truth)) - truth).abs().max()) < 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_what_is_added_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    base = made.write_base(make, tmp_path / "base")
    adapter = made.train(base, tmp_path / "adapter", **config)
    if "denies" in case:
        path = adapter / "adapter_config.json"
        path.write_text(path.read_text().replace('"fan_in_fan_out": true', '"fan_in_fan_out": false'))
    merged = made.merge(base, adapter, tmp_path / "merged")
    before, after = made.tensors(base), made.tensors(merged)

    found, unused = added(base, merged, adapter)

    assert unused == ()
    assert_equals_merge(found, before, after)
    assert any(float((after[name] - before[name]).abs().max()) > 1e-4 for name in before)


def test_what_peft_ignores_changes_nothing(tmp_path: Path) -> None:
    """A matrix outside target_modules, and a bias without lora_bias."""
    base = made.write_base(made.qwen2, tmp_path / "base")
    other = made.finetune(base, tmp_path / "other")
    stem = "base_model.model.model.layers.0.self_attn."
    weights = {
        f"{stem}q_proj.lora_A.weight": torch.randn(2, 32),
        f"{stem}q_proj.lora_B.weight": torch.randn(32, 2),
        f"{stem}q_proj.lora_B.bias": torch.randn(32),
        f"{stem}o_proj.lora_A.weight": torch.randn(2, 32),
        f"{stem}o_proj.lora_B.weight": torch.randn(32, 2),
    }
    adapter = made.write_adapter(tmp_path / "adapter", weights, r=2, lora_alpha=2, target_modules=["q_proj"])
    merged = made.merge(base, adapter, tmp_path / "merged")
    before, after = made.tensors(base), made.tensors(merged)

    found, unused = added(base, other, adapter)

    assert [name for name in before if not torch.equal(before[name], after[name])] == list(found)
    assert list(found) == ["model.layers.0.self_attn.q_proj.weight"]
    assert {entry.name.rsplit("attn.", 1)[1]: entry.reason.split(" ")[0] for entry in unused} == {
        "q_proj.lora_B.bias": "adapter_config.json",
        "o_proj.lora_A.weight": "target_modules",
        "o_proj.lora_B.weight": "target_modules",
    }


def test_a_whole_tensor_is_loaded_even_if_modules_to_save_does_not_name_it(tmp_path: Path) -> None:
    """PEFT gives the model every tensor whose name it has: a norm takes effect, a matrix behind a LoRA does not."""
    base = made.write_base(made.llama, tmp_path / "base")
    other = made.finetune(base, tmp_path / "other")
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{stem}.lora_A.weight": torch.randn(2, 32),
        f"{stem}.lora_B.weight": torch.randn(32, 2),
        f"{stem}.weight": torch.randn(32, 32),
        "base_model.model.model.norm.weight": torch.randn(32),
    }
    adapter = made.write_adapter(tmp_path / "adapter", weights, r=2, lora_alpha=2, target_modules=["q_proj"])
    merged = made.merge(base, adapter, tmp_path / "merged")
    before, after = made.tensors(base), made.tensors(merged)

    found, unused = added(base, other, adapter)

    assert [entry.name for entry in unused] == [f"{stem}.weight"]
    assert sorted(found) == [name for name in sorted(before) if not torch.equal(before[name], after[name])]
    for name, ours in found.items():
        assert float((ours - (after[name].double() - before[name].double())).abs().max()) < 1e-5, name


def test_a_folder_as_mergekit_writes_it(tmp_path: Path) -> None:
    """Ranks and alphas by exact names, targets by their last word, whole tensors for what is no matrix."""
    base = made.write_base(made.llama, tmp_path / "base")
    tuned = made.finetune(base, tmp_path / "tuned")
    weights = made.best_factors(base, tuned, 8)
    small = "model.layers.1.self_attn.k_proj"
    for end, cut in (("lora_A.weight", (slice(0, 5),)), ("lora_B.weight", (slice(None), slice(0, 5)))):
        key = f"base_model.model.{small}.{end}"
        weights[key] = weights[key][cut]
    whole = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
    after = made.tensors(tuned)
    weights |= {f"base_model.model.{name}": w for name, w in after.items() if name.split(".")[-2] in whole}
    ranks = {small: 5}
    adapter = made.write_adapter(
        tmp_path / "adapter",
        weights,
        r=8,
        lora_alpha=8,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        modules_to_save=whole,
        target_modules=sorted({key.split(".")[-3] for key in weights if "lora_" in key}),
        task_type="CAUSAL_LM",
        fan_in_fan_out=False,
    )
    merged = made.merge(base, adapter, tmp_path / "merged")
    before, after = made.tensors(base), made.tensors(merged)

    found, unused = added(base, tuned, adapter)

    assert unused == ()
    assert_equals_merge(found, before, after)
