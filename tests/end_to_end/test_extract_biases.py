"""Biases beside factors, for PEFT alone: exact in its logits, counted in the budget, read back by `verify`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deltarank
import peft_adapters as made
from deltarank.results import Outcome
from tiny_architectures import DENSE, logits, write_pair

Pairs = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    home = tmp_path_factory.mktemp("biases")
    known = {name: write_pair(DENSE[name], home / name) for name in ("qwen2", "gpt2")}
    return lambda name: known[name]


def test_at_full_rank_a_model_with_biases_comes_back(pairs: Pairs, tmp_path: Path) -> None:
    base, finetune = pairs("qwen2")
    adapter = deltarank.extract(base, finetune, rank=32, server="peft", output=tmp_path / "a")

    seen = deltarank.verify(base, finetune, tmp_path / "a")

    assert made.config_of(tmp_path / "a")["lora_bias"]
    assert seen.unused == ()  # o_proj has no bias, and zeros in the file
    assert adapter.budget.kept == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(logits(base, tmp_path / "a"), logits(finetune), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_where_every_module_has_a_bias_peft_merges_it(pairs: Pairs, tmp_path: Path, merged: bool) -> None:
    """All of GPT-2 but its vocabulary, which is tied and stays the base's: so it does in the oracle."""
    base, finetune = pairs("gpt2")
    adapter = deltarank.extract(base, finetune, rank=32, server="peft", output=tmp_path / "a")
    weights = {**load_file(finetune / "model.safetensors")}
    weights["transformer.wte.weight"] = load_file(base / "model.safetensors")["transformer.wte.weight"]
    truth = made.write_checkpoint(tmp_path / "truth", weights, base)

    assert {t.kind for t in adapter.budget.tensors} == {"embedding"}
    assert not any("merge" in note for note in adapter.notes)
    torch.testing.assert_close(logits(base, tmp_path / "a", merged=merged), logits(truth), atol=2e-5, rtol=1e-4)


def test_biases_that_peft_cannot_merge_are_noted(pairs: Pairs, tmp_path: Path) -> None:
    """Qwen2's o_proj and mlp have no biases."""
    base, finetune = pairs("qwen2")
    told = deltarank.extract(base, finetune, rank=8, server="peft", output=tmp_path / "a").notes
    without = deltarank.extract(base, finetune, rank=8, server="peft", output=tmp_path / "b", exclude=["*.bias"])
    with pytest.raises(RuntimeError, match="lora_bias"):
        logits(base, tmp_path / "a", merged=True)

    assert any("cannot merge" in note for note in told)
    assert not any("cannot merge" in note for note in without.notes)
    assert "lora_bias" not in made.config_of(tmp_path / "b")
    assert logits(base, tmp_path / "b", merged=True).isfinite().all()


def test_rounding_of_biases_is_in_the_budget_and_verify_agrees(pairs: Pairs, tmp_path: Path) -> None:
    pair = pairs("gpt2")
    adapter = deltarank.extract(*pair, rank=32, server="peft", output=tmp_path / "a", dtype="bfloat16")
    seen = deltarank.verify(*pair, tmp_path / "a")
    before, after = (load_file(folder / "model.safetensors") for folder in pair)
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    name = "transformer.h.0.mlp.c_fc"
    change = after[f"{name}.bias"].double() - before[f"{name}.bias"].double()
    energies = next(row.energies for row in seen.tensors if row.name == f"{name}.bias")

    assert torch.equal(written[f"base_model.model.{name}.lora_B.bias"], change.bfloat16())
    assert energies.lost == pytest.approx(float((change - change.bfloat16().double()).square().sum()), rel=1e-3)
    assert 1 - adapter.budget.kept == pytest.approx(seen.whole.share_lost or 0, rel=1e-5)
    assert seen.unused == ()


def test_a_bias_that_alone_changed_brings_its_module_along(pairs: Pairs, tmp_path: Path) -> None:
    base, _ = pairs("qwen2")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.bias"] += 0.1
    tuned = made.write_checkpoint(tmp_path / "tuned", weights, base)
    adapter = deltarank.extract(base, tuned, rank=8, server="peft", output=tmp_path / "a")

    assert {m.outcome for m in adapter.matrices} == {Outcome.IDENTICAL}
    assert made.config_of(tmp_path / "a")["target_modules"] == ["k_proj"]
    torch.testing.assert_close(logits(base, tmp_path / "a"), logits(tuned), atol=1e-6, rtol=1e-5)


def test_without_biases_norms_are_saved_with_the_biases_of_the_base(pairs: Pairs, tmp_path: Path) -> None:
    """Which the note recommends: PEFT loads all of a module that is carried whole, or raises a KeyError."""
    base, finetune = pairs("gpt2")
    deltarank.extract(base, finetune, rank=8, server="peft", output=tmp_path / "a", exclude=["*.bias"])
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, finetune))
    name = next(name for name in before if name.endswith("h.0.ln_1.bias"))
    stored = next(key for key in written if key.endswith("h.0.ln_1.bias"))
    seen = deltarank.verify(base, finetune, tmp_path / "a")

    assert torch.equal(written[stored], before[name])
    assert not torch.equal(before[name], after[name])
    assert torch.isfinite(logits(base, tmp_path / "a", merged=True)).all()
    assert seen.unused == ()
