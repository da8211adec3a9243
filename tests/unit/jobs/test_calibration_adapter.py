"""A calibration loads the plain adapter as PEFT does, and states what of it is plain extraction's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltarank
from deltarank.architectures import silence_transformers
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.jobs.calibrate.evaluate import carries_all_matrices
from deltarank.jobs.calibrate.student import Student, add_tokens
from deltarank.jobs.calibrate.weights_kept import energy_kept
from deltarank.jobs.extract import ExtractedAdapter, ExtractJob, ExtractOptions
from deltarank.models import EditedWeights, Window, load_model, read_skeleton
from deltarank.results import WeightPlacement
from deltarank.runtime import ProgressListener
from tiny_architectures import DENSE, EXPERTS, VOCABULARY, Make, served, write_pair

CPU = torch.device("cpu")


def extract(pair: Path, **options: object) -> ExtractedAdapter:
    return deltarank.extract(pair / "base", pair / "finetune", output=pair / "adapter", rank=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [DENSE["llama"], EXPERTS["gpt-oss"]], ids=["llama", "gpt-oss"])
def test_it_is_loaded_as_peft_loads_it(make: Make, tmp_path: Path) -> None:
    """Of the fused experts of gpt-oss, the factors of one tensor are those of the other's base layer."""
    write_pair(make, tmp_path)
    extract(tmp_path, server="peft")
    with open_checkpoint(str(tmp_path / "base")) as base:
        model = load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    student = Student(model, tmp_path / "adapter", CPU, None, WeightPlacement.WHOLE)

    [inputs], head = student.predict([Window((3, 4, 5, 6), (0, 1, 2))])
    with torch.no_grad():
        model = served(tmp_path / "base", tmp_path / "adapter").eval()
        expected = model(torch.tensor([[3, 4, 5, 6]])).logits[0, :3]
    torch.testing.assert_close(head.logits(inputs), expected, rtol=1e-4, atol=1e-5)
    student.save(tmp_path / "saved.safetensors")
    saved, plain = (load_file(tmp_path / each) for each in ("saved.safetensors", "adapter/adapter_model.safetensors"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "options", [{}, {"server": "peft"}, {"exclude": ["*mlp*"]}, {"include": ["*q_proj*"]}], ids=lambda each: str(each)
)
def test_the_plain_adapter_gives_up_nothing_of_the_weights(options: dict[str, object], tmp_path: Path) -> None:
    """Of the tensors that the budget counts, whatever --include and --exclude left out."""
    write_pair(DENSE["llama"], tmp_path)
    plain = extract(tmp_path, dtype="float32", **options)
    with open_checkpoint(str(tmp_path / "base")) as base, open_checkpoint(str(tmp_path / "finetune")) as finetune:
        kept = energy_kept(tmp_path / "adapter", (base, finetune), "cpu", ProgressListener())

    budget = plain.budget.calibrated_to(kept)
    assert 0 < budget.kept == pytest.approx(plain.budget.kept, abs=1e-6)
    assert budget.fitted == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "largest", "carries"),
    [
        ({}, 1.0, True),
        ({"exclude": ["*lm_head*"]}, 1.0, True),
        ({"exclude": ["*mlp*"]}, 1.0, False),
        ({"server": "peft"}, 1.0, False),
        ({}, 1e30, False),
    ],
)
def test_other_ranks_are_compared_where_they_have_the_same_matrices(
    options: dict[str, object], largest: float, carries: bool, tmp_path: Path
) -> None:
    """Not where --exclude left matrices out, or where one failed because the square of a number overflows."""
    write_pair(DENSE["llama"], tmp_path)
    weights = load_file(tmp_path / "finetune" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = largest
    save_file(weights, tmp_path / "finetune" / "model.safetensors", {"format": "pt"})
    plain = extract(tmp_path, **options)
    with open_checkpoint(str(tmp_path / "base")) as base, open_checkpoint(str(tmp_path / "finetune")) as finetune:
        plan = ExtractJob(base, finetune, ExtractOptions(rank=2, **options)).plan  # type: ignore[arg-type]
        assert carries_all_matrices(plan, plain, pair_checkpoints(base, finetune)) is carries


def test_added_tokens_that_the_adapter_carries_are_added_to_the_base(tmp_path: Path) -> None:
    """PEFT loads embeddings and a head with more rows than the base's only then."""
    write_pair(DENSE["llama"], tmp_path)
    with silence_transformers():
        finetune = AutoModelForCausalLM.from_pretrained(tmp_path / "finetune")
        finetune.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
        finetune.save_pretrained(tmp_path / "finetune")
    extract(tmp_path, server="peft")
    with open_checkpoint(str(tmp_path / "base")) as base, open_checkpoint(str(tmp_path / "finetune")) as after:
        plan = ExtractJob(base, after, ExtractOptions(rank=2, server="peft")).plan
        model = load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    add_tokens(model, plan, VOCABULARY + 5)
    student = Student(model, tmp_path / "adapter", CPU, None, WeightPlacement.WHOLE)

    [inputs], head = student.predict([Window((3, 4, VOCABULARY + 2, 6), (0, 1, 2))])
    logits = head.logits(inputs)
    assert logits.shape == (3, VOCABULARY + 5)
    assert bool(logits.isfinite().all())


def test_verify_does_not_say_that_a_calibrated_adapter_keeps_less_than_nothing(tmp_path: Path) -> None:
    write_pair(DENSE["llama"], tmp_path)
    extract(tmp_path, dtype="float32")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * each for name, each in load_file(file).items()}, file, {"format": "pt"})
    metadata = tmp_path / "adapter" / "deltarank.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "calibration": {"method": "kl_distillation"}}))

    fit = deltarank.verify(tmp_path / "base", tmp_path / "finetune", tmp_path / "adapter")
    assert fit.kind == "calibrated"
    assert "Of the change in the weights it keeps nothing." in fit.sentences[0]
    assert "In the matrices that it changes it keeps nothing of the change" in fit.sentences[1]
