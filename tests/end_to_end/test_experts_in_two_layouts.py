"""Experts in one tensor on one side, one by one on the other: the adapter is that of two equal layouts. And on both."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltarank
import peft_adapters as made
from deltarank.results import FitKind, TensorChange
from tiny_architectures import EXPERTS, MORE_EXPERTS, QWEN3_MOE, architecture, fused, logits, write_pair

MAKES = {
    "mixtral": EXPERTS["mixtral"],
    "qwen3 moe": architecture("qwen3_moe", **QWEN3_MOE | {"moe_intermediate_size": 24}),
}
TRUNCATED = {"rank": 8, "server": "peft"}


def factors(adapter: Path) -> Mapping[str, Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("in_base", [True, False])
@pytest.mark.parametrize("name", MAKES)
def test_the_adapter_is_that_of_equal_layouts(name: str, in_base: bool, tmp_path: Path) -> None:
    base, finetune = write_pair(MAKES[name], tmp_path)
    pair = (fused(base, tmp_path / "f"), finetune) if in_base else (base, fused(finetune, tmp_path / "f"))
    plain = deltarank.extract(base, finetune, **TRUNCATED, output=tmp_path / "plain")
    apart = deltarank.extract(*pair, **TRUNCATED, output=tmp_path / "apart")
    seen = deltarank.verify(*pair, tmp_path / "apart")

    assert apart.budget.kept == pytest.approx(plain.budget.kept, abs=1e-9)
    assert apart.budget.energy == pytest.approx(plain.budget.energy, rel=1e-9)
    assert any("expert by expert" in note for note in apart.notes)
    assert seen.unused == ()
    assert seen.whole.share_lost == pytest.approx(1 - plain.budget.kept, rel=1e-6)
    torch.testing.assert_close(logits(pair[0], tmp_path / "apart"), logits(base, tmp_path / "plain"))


FUSED = {
    **MAKES,
    # Gate and up of one expert make a square: its orientation cannot be seen from its shape.
    "square qwen3 moe": EXPERTS["qwen3 moe"],
    **MORE_EXPERTS,
}


@pytest.mark.parametrize("name", FUSED)
def test_of_two_fused_checkpoints_peft_gives_back_the_finetune(name: str, tmp_path: Path) -> None:
    """But for the biases of Qwen2-MoE, which PEFT takes beside no factors on bare parameters."""
    single = write_pair(FUSED[name], tmp_path)
    base, finetune = fused(single[0], tmp_path / "b"), fused(single[1], tmp_path / "f")
    if name == "qwen2 moe":
        weights = load_file(finetune / "model.safetensors")
        before = load_file(base / "model.safetensors")
        weights |= {key: tensor for key, tensor in before.items() if key.endswith("proj.bias")}
        save_file(weights, finetune / "model.safetensors", {"format": "pt"})
    adapter = deltarank.extract(base, finetune, rank=32, server="peft", output=tmp_path / "a")
    seen = deltarank.verify(base, finetune, tmp_path / "a")
    truth = logits(finetune)

    assert any("experts.gate_up_proj[3]" in m.name for m in adapter.matrices)
    assert adapter.budget.left_out == 0
    assert (seen.unused, seen.kind) == ((), FitKind.OPTIMAL)
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(logits(base, tmp_path / "a"), truth, atol=2e-5, rtol=1e-4)
    assert float((logits(base) - truth).abs().max()) > 1e-3


def test_one_expert_of_a_fused_tensor_cannot_stay_out_alone(tmp_path: Path) -> None:
    base, finetune = write_pair(MAKES["qwen3 moe"], tmp_path)
    adapter = deltarank.extract(
        fused(base, tmp_path / "f"), finetune, **TRUNCATED, exclude=["*experts.2.up_proj*"], output=tmp_path / "a"
    )

    assert not any("experts" in key for key in factors(tmp_path / "a"))
    assert any("all experts or none" in t.reason for t in adapter.budget.tensors)


def test_experts_of_ambiguous_orientation_are_left_out_with_a_note(tmp_path: Path) -> None:
    """Of 16 inner numbers gate and up make a square: it could be stored either way round."""
    base, finetune = write_pair(EXPERTS["qwen3 moe"], tmp_path)
    apart = fused(finetune, tmp_path / "f")
    adapter = deltarank.extract(base, apart, rank=8, server="peft", output=tmp_path / "a")
    seen = deltarank.verify(base, apart, tmp_path / "a")
    said = "experts are left out: the base contains 16 tensors of them (`model.layers.0.mlp.experts."

    for notes in (adapter.notes, seen.notes):
        assert any(said in note and "in another layout" in note for note in notes), notes
    assert not any("added tokens" in note for note in adapter.notes)
    assert all(t.share is None for t in adapter.budget.tensors if ".experts.0." in t.name and "gate" in t.name)


@pytest.mark.parametrize("aim", ["parameters", "modules"])
@pytest.mark.parametrize("name", MAKES)
def test_a_lora_that_peft_trained_on_fused_experts_is_read_from_single_ones(
    name: str, aim: str, tmp_path: Path
) -> None:
    """PEFT sees one tensor where files have many matrices; of gate and up by their names it makes twice the rank."""
    base, _ = write_pair(MAKES[name], tmp_path)
    experts = ["w1", "w2", "w3"] if name == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    fused_ones = ["experts.gate_up_proj", "experts.down_proj"]
    targets = (
        {"target_modules": ["q_proj"], "target_parameters": fused_ones, "alpha_pattern": {"experts.down_proj": 2}}
        if aim == "parameters"
        else {"target_modules": ["q_proj", *experts]}
    )
    adapter = made.train(base, tmp_path / "trained", r=2, lora_alpha=6, **targets)
    merged = made.merge(base, adapter, tmp_path / "merged")
    seen = deltarank.verify(base, merged, adapter)
    touched = {row.name: row for row in seen.tensors if row.change is TensorChange.LORA}
    measured = deltarank.compare(base, adapter, ranks=[2, 4])

    assert seen.unused == ()
    assert len(touched) == 2 * (1 + 4 * 3)
    assert all(row.energies.energy > 0 for row in touched.values())
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    assert {m.name for m in measured.matrices if m.frobenius} == set(touched)


@pytest.mark.parametrize("name", MAKES)
def test_a_lora_on_single_experts_is_fused_as_peft_fuses_it(name: str, tmp_path: Path) -> None:
    base, finetune = write_pair(MAKES[name], tmp_path)
    deltarank.extract(base, finetune, **TRUNCATED, output=tmp_path / "a")
    plain = deltarank.verify(base, finetune, tmp_path / "a")
    seen = deltarank.verify(fused(base, tmp_path / "b"), fused(finetune, tmp_path / "f"), tmp_path / "a")

    assert seen.unused == plain.unused == ()
    assert seen.whole.share_lost == pytest.approx(plain.whole.share_lost, rel=1e-6)
    torch.testing.assert_close(logits(tmp_path / "b", tmp_path / "a"), logits(base, tmp_path / "a"))
