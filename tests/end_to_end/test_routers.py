"""Routers go to PEFT whole, by the names that its modules have; whoever does not know a model's leaves them out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deltarank
import peft_adapters as made
from deltarank.results import TensorChange
from deltarank.tensor_names import kind_of_tensor
from tiny_architectures import EXPERTS, MORE_EXPERTS, logits, write_pair

MAKES = {**EXPERTS, **MORE_EXPERTS}


def routers_of(folder: Path) -> list[str]:
    return [name for name in load_file(folder / "model.safetensors") if kind_of_tensor(name) == "router"]


def with_routers(base: Path, finetune: Path, folder: Path) -> Path:
    """The base with the finetune's routers and nothing else of it."""
    weights, tuned = (load_file(each / "model.safetensors") for each in (base, finetune))
    moved = {name: tuned[name] for name in routers_of(base)}
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in moved.items())
    return made.write_checkpoint(folder, weights | moved, base)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", MAKES)
def test_peft_gives_back_the_finetune_s_routers(name: str, merged: bool, tmp_path: Path) -> None:
    """In PEFT itself, whose warnings of missing keys are errors here."""
    base, finetune = write_pair(MAKES[name], tmp_path)
    tuned = with_routers(base, finetune, tmp_path / "tuned")
    adapter = deltarank.extract(base, tuned, rank=8, server="peft", output=tmp_path / "a")
    seen = deltarank.verify(base, tuned, tmp_path / "a")
    truth, plain = logits(tuned), logits(base)

    assert adapter.budget.kept == 1
    assert adapter.budget.tensors == ()
    assert {row.name for row in seen.tensors if row.change is TensorChange.WHOLE} == set(routers_of(base))
    assert (seen.whole.lost, seen.unused) == (0, ())
    assert float((logits(base, tmp_path / "a", merged=merged) - truth).abs().max()) < 1e-6
    assert float((plain - truth).abs().max()) > 1e-4


def test_a_model_of_which_it_is_not_known_keeps_the_base_s(tmp_path: Path) -> None:
    base, finetune = write_pair(MAKES["qwen3 moe"], tmp_path)
    for folder in (base, finetune):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "moe_of_tomorrow"}))
    adapter = deltarank.extract(base, finetune, rank=8, server="peft", output=tmp_path / "a")
    left = {t.name: t.reason for t in adapter.budget.tensors if t.kind == "router"}

    assert set(left) == set(routers_of(base))
    assert set(left.values()) == {"a router, and how PEFT addresses it is not known for this model type"}
    assert not any(".gate." in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))


def test_what_is_left_out_of_a_module_comes_along_as_the_base_has_it(tmp_path: Path) -> None:
    """PEFT loads all of a module that is carried whole, or fails."""
    base, finetune = write_pair(MAKES["gpt-oss"], tmp_path)
    deltarank.extract(base, finetune, rank=8, server="peft", output=tmp_path / "a", exclude=["*.router.bias"])
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, finetune))
    stem = "model.layers.1.mlp.router"

    assert torch.equal(written[f"base_model.model.{stem}.weight"], after[f"{stem}.weight"])
    assert torch.equal(written[f"base_model.model.{stem}.bias"], before[f"{stem}.bias"])
    assert not torch.equal(before[f"{stem}.bias"], after[f"{stem}.bias"])
    logits(base, tmp_path / "a")  # it loads


def test_a_trained_router_is_read_as_peft_merges_it(tmp_path: Path) -> None:
    """Mixtral's files say block_sparse_moe, and PEFT's say mlp."""
    base, _ = write_pair(MAKES["mixtral"], tmp_path)
    adapter = made.train(base, tmp_path / "a", r=2, target_modules=["q_proj"], modules_to_save=["gate"])
    merged = made.merge(base, adapter, tmp_path / "merged")
    seen = deltarank.verify(base, merged, adapter)
    whole = {row.name for row in seen.tensors if row.change is TensorChange.WHOLE and row.energies.energy > 0}

    assert seen.unused == ()
    assert whole == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
